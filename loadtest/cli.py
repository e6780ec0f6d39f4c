"""The command line of the load tests."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from loadtest import clients, environment, processes, report, side_by_side
from loadtest.cpu_table import cpu_table
from loadtest.measure import Load, measure
from loadtest.peers import PEERS, Baseline
from loadtest.server import Server
from loadtest.verify import verify
from qinfer.errors import QInferError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CACHE = environment.ROOT / ".cache" / "loadtest"
_RESULTS = environment.ROOT / "loadtest" / "results"

_COUNT = click.IntRange(min=1)
_SECONDS = click.FloatRange(0, 600)
_console = Console(stderr=True, highlight=False)

_only = click.option("--only", type=click.Choice(list(PEERS)), help="Measure one server only.")
_keep = click.option("--keep", is_flag=True, help="Keep the servers' folders: models, requests and logs.")


class _Counts(click.ParamType[list[int]]):
    """A comma-separated list of positive numbers."""

    name = "N,N..."

    def convert(
        self, value: str | list[int], param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no comma-separated list of positive numbers", param, ctx)
        return [int(part) for part in parts]


class _Group(click.Group):
    """Runs `bench` when no command is given, and shows the project's errors as messages without traceback."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["bench", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except QInferError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=_Group)
def main() -> None:
    """Put the same load on qinfer and on its peers, and report what it costs.

    Without a command, options are those of `bench`.
    """


@main.command()
@_only
def prepare(only: str | None) -> None:
    """Install the peers and the load generators, and check what only you can install."""
    _prepare(_chosen(only), perf_analyzer=True)


@main.command()
@_only
@_keep
@click.option("--repeats", type=_COUNT, default=5, show_default=True)
@click.option(
    "--duration", type=click.FloatRange(1, 600), default=5.0, show_default=True, help="Seconds a measurement."
)
@click.option(
    "--connections", type=_Counts(), default="1,32,128", show_default=True, help="wrk's, each in turn."
)
@click.option("--grpc/--no-grpc", default=True, show_default=True, help="Also perf_analyzer over gRPC.")
@click.option("--http-binary", is_flag=True, help="Also perf_analyzer over HTTP with binary tensors.")
@click.option(
    "--perf-connections", type=_COUNT, default=32, show_default=True, help="perf_analyzer's concurrency."
)
@click.option(
    "--quick", is_flag=True, help="One repeat of a second without warm-up: shows that it works, not more."
)
@click.option(
    "--baseline",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Also another checkout of qinfer, for instance of the last release.",
)
@click.option("--results", type=click.Path(path_type=Path), help="Folder for the report.")
def bench(
    only: str | None,
    keep: bool,
    repeats: int,
    duration: float,
    connections: list[int],
    grpc: bool,
    http_binary: bool,
    perf_connections: int,
    quick: bool,
    baseline: Path | None,
    results: Path | None,
) -> None:
    """Measure the servers side by side and write a report (JSON, Markdown, PNG)."""
    wires: list[clients.Wire] = ["http-json"]
    wires += ["grpc"] if grpc else []
    wires += ["http-binary"] if http_binary else []
    peers = _chosen(only)
    if baseline is not None:
        PEERS[Baseline.name] = Baseline(baseline)
        peers.append(Baseline.name)
    plan = side_by_side.Plan(
        peers=peers,
        repeats=1 if quick else repeats,
        duration=1.0 if quick else duration,
        warmup=0.0 if quick else 1.0,
        idle=0.5 if quick else 5.0,
        connections=connections,
        wires=wires,
        perf_connections=perf_connections,
    )
    _prepare(plan.peers, perf_analyzer=len(wires) > 1)
    with _folder(keep) as folder:
        result = side_by_side.run(
            plan, cache=_CACHE, folder=folder, command=_invocation(), progress=_progress
        )
    # A quick run proves nothing, so it does not land where results are kept.
    target = results or (_CACHE / "quick" if quick else _RESULTS)
    name = only or "side-by-side"
    name += "-and-baseline" if baseline else ""
    written = report.write(result, target, f"{result.started[:10]}-{name}")
    for path in written:
        _console.print(f"wrote {path}")


@main.command("report")
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def rewrite(results: Path) -> None:
    """Write the Markdown and the plot again from the JSON of an earlier run."""
    for path in report.write(report.read(results), results.parent, results.stem):
        _console.print(f"wrote {path}")


@main.command()
@_only
@_keep
@click.option("--connections", type=_COUNT, default=128, show_default=True)
@click.option(
    "--duration", type=click.FloatRange(1, 600), default=5.0, show_default=True, help="Seconds measured."
)
@click.option("--warmup", type=_SECONDS, default=1.0, show_default=True, help="Seconds of load before.")
@click.option("--repeats", type=_COUNT, default=1, show_default=True)
@click.option("--wire", type=click.Choice(["http-json", "http-binary", "grpc"]), default="http-json")
@click.option("--threads", is_flag=True, help="Also each thread that took a percent or more.")
def cpu(
    only: str | None,
    keep: bool,
    connections: int,
    duration: float,
    warmup: float,
    repeats: int,
    wire: clients.Wire,
    threads: bool,
) -> None:
    """Show the CPU time, wake-ups and memory of each process of a server, for each request."""
    load = Load(wire=wire, connections=connections, duration=duration, warmup=warmup)
    for name in _chosen(only):
        _prepare([name], perf_analyzer=wire != "http-json")
        with (
            _folder(keep) as folder,
            Server(PEERS[name], cache=_CACHE, folder=folder / name) as server,
        ):
            verify(server, [wire])
            for repeat in range(1, repeats + 1):
                measurement, spent = measure(server, load, cache=_CACHE, repeat=repeat)
                Console().print(cpu_table(measurement, spent, threads=threads))


def _chosen(only: str | None) -> list[str]:
    return [only] if only else list(PEERS)


def _prepare(names: list[str], *, perf_analyzer: bool) -> None:
    processes.require()
    clients.require_wrk()
    if perf_analyzer:
        clients.prepare_perf_analyzer(_CACHE)
    for name in names:
        _console.print(f"preparing {PEERS[name].title}")
        PEERS[name].prepare(_CACHE)


def _progress(line: str) -> None:
    _console.print(line, soft_wrap=True)


def _invocation() -> str:
    return shlex.join(["python", "-m", "loadtest", *sys.argv[1:]])


@contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    """A folder for one run; removed at its end unless it is to be kept, or an error names a log in it."""
    path = Path(tempfile.mkdtemp(prefix="qinfer-loadtest-"))
    succeeded = False
    try:
        yield path
        succeeded = True
    finally:
        if keep or not succeeded:
            _console.print(f"kept {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)
