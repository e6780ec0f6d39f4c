"""`python -m loadtest.kafka chaos|throughput`."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from tests.helpers.kafka import unavailable

from loadtest import environment
from loadtest.kafka.chaos import break_everything
from loadtest.kafka.report import ChaosResult, ThroughputResult, keep
from loadtest.kafka.throughput import FORMATS, Format, measure
from qinfer.errors import SetupError
from qinfer_workers.backends.threads import available_cpus

_SEEDS = 1_000_000


@click.group()
def main() -> None:
    """Break the stream scorer, and measure it, on a real Kafka."""
    if reason := unavailable():
        raise click.ClickException(reason)


@main.command()
@click.option("--records", type=click.IntRange(min=1000), default=200_000, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=5), default=80.0, show_default=True, help="Of each run.")
@click.option("--seed", type=int, help="Of the faults; a random one unless given.")
@click.option("--keep", "kept", is_flag=True, help="Keep the folder with logs and topics.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write docs/kafka.md.")
def chaos(records: int, seconds: float, seed: int | None, kept: bool, report: bool) -> None:
    """Kill scorers and brokers while records are scored, and account for every record."""
    console = Console(highlight=False)
    seed = random.randrange(_SEEDS) if seed is None else seed
    console.print(f"seed {seed}")
    machine, commit = environment.machine(), environment.commit()
    directory = Path(tempfile.mkdtemp(prefix="qinfer-kafka-"))
    try:
        outcomes = asyncio.run(
            break_everything(
                directory / "run", records=records, seconds=seconds, seed=seed, say=console.print
            )
        )
    finally:
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)
    if report:
        keep(ChaosResult(day=_today(), commit=commit, machine=machine, seed=seed, outcomes=outcomes))
    if not all(outcome.passed for outcome in outcomes):
        raise click.ClickException("a promise was broken; see above")


@main.command()
@click.option(
    "--format", "formats", type=click.Choice(FORMATS), multiple=True, help="May be repeated; else all."
)
@click.option("--raw-backlog", type=click.IntRange(min=10_000), default=1_800_000, show_default=True)
@click.option("--json-backlog", type=click.IntRange(min=10_000), default=800_000, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(min=0.5), default=5.0, show_default=True, help="Of each run."
)
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--processes", type=click.IntRange(min=1), default=available_cpus, help="Of the scorer, beside 1."
)
@click.option("--whole/--no-whole", default=True, show_default=True, help="Score a raw backlog to its end.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write docs/kafka.md.")
def throughput(
    formats: tuple[Format, ...],
    raw_backlog: int,
    json_backlog: int,
    seconds: float,
    rounds: int,
    processes: int,
    whole: bool,
    report: bool,
) -> None:
    """Score a backlog, beside a plain loop, in one interleaved run."""
    console = Console(highlight=False)
    machine, commit = environment.machine(), environment.commit()
    sizes: dict[Format, int] = {"raw": raw_backlog, "json": json_backlog}
    backlog = {written_as: sizes[written_as] for written_as in formats or FORMATS}
    with tempfile.TemporaryDirectory(prefix="qinfer-kafka-") as directory:
        figures = asyncio.run(
            measure(
                Path(directory) / "run",
                backlog=backlog,
                seconds=seconds,
                rounds=rounds,
                processes=processes,
                whole=whole and "raw" in backlog,
                say=console.print,
            )
        )
    for written_as in backlog:
        for system in figures.systems:
            factor = figures.factor(system, written_as)
            console.print(f"{written_as}: {system}: {factor:.1f} times the plain loop")
    if report:
        keep(ThroughputResult(day=_today(), commit=commit, machine=machine, throughput=figures))


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _stop(number: int, _frame: object) -> None:
    """End like after an error, so that the processes are stopped too."""
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        signal.signal(signal.SIGTERM, _stop)
        main(prog_name="python -m loadtest.kafka")
    except SetupError as error:
        raise SystemExit(error.message) from error
