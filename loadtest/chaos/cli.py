"""The command line of the chaos test."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import tempfile
from pathlib import Path

import click
from rich.console import Console

from loadtest import environment
from loadtest.chaos import report, result
from loadtest.chaos.faults import FAULTS, schedule
from loadtest.chaos.run import Plan, Run, new_lanes
from qinfer.errors import QInferError

_PAGE = environment.ROOT / "docs" / "reliability.md"
_SEEDS = 1_000_000


class _Group(click.Group):
    """Runs `run` when no command is given, and shows the project's errors as messages without traceback."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except QInferError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=_Group)
def main() -> None:
    """Kill, stop and cut off the parts of a running system under load, and account for every request.

    Without a command, options are those of `run`.
    """


@main.command()
@click.option("--seed", type=int, help="Of faults, requests and payloads; a random one unless given.")
@click.option("--minutes", type=click.FloatRange(0.2, 60), default=3.0, show_default=True)
@click.option(
    "--report", "target", type=click.Path(path_type=Path), help="Markdown file; JSON goes beside it."
)
@click.option("--only", type=click.Choice(list(FAULTS)), multiple=True, help="These faults only; repeatable.")
@click.option("--no-keys", is_flag=True, help="Requests without idempotency keys only.")
@click.option(
    "--load", type=click.FloatRange(0.05, 20), default=1.0, show_default=True, help="Times the usual."
)
@click.option("--keep", is_flag=True, help="Keep the folder with logs, ledgers, models and queues.")
def run(
    seed: int | None,
    minutes: float,
    target: Path | None,
    only: tuple[str, ...],
    no_keys: bool,
    load: float,
    keep: bool,
) -> None:
    """Do one run; the exit status is 1 when anything happened that is not allowed."""
    seed = random.randrange(_SEEDS) if seed is None else seed
    console = Console(stderr=True, highlight=False)
    plan = Plan(
        seed=seed,
        seconds=minutes * 60,
        faults=schedule(seed, minutes * 60, faults=only or tuple(FAULTS)),
        lanes=new_lanes(load),
        keys=not no_keys,
    )
    logging.getLogger("qinfer").setLevel(logging.ERROR)  # connections and workers are lost on purpose
    console.print(f"seed {seed}, {minutes:g} minutes, {len(plan.faults)} faults")
    folder = Path(tempfile.mkdtemp(prefix="qinfer-chaos-"))
    try:
        done = asyncio.run(_run(plan, folder, console))
        keep = keep or not done.passed
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    report.show(done, console)
    if keep:
        console.print(f"logs, ledgers and models are in {folder}")
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(report.markdown(done), encoding="utf-8")
        result.write(done, target.with_suffix(".json"))
        console.print(f"wrote {target} and {target.with_suffix('.json')}")
    if not done.passed:
        raise click.exceptions.Exit(1)


async def _run(plan: Plan, folder: Path, console: Console) -> result.Result:
    return await Run(plan, folder, lambda text: console.print(text, markup=False)).run()


@main.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1)
@click.option("--into", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=_PAGE)
def page(results: tuple[Path, ...], into: Path) -> None:
    """Write docs/reliability.md: what is allowed, and the figures of some runs from their JSON files."""
    report.update(into, [result.read(path) for path in results])
