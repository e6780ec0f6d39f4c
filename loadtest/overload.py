"""How a server behaves when more is asked for than its model can answer: `python -m loadtest.overload`.

A model with a known capacity is offered half to three times that at random times, every request with a
deadline. Goodput is what is answered in time. `--memory MINUTES` offers ten times the capacity instead, and
watches the memory of every process.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.table import Table

from loadtest import environment, overload_plot, processes
from loadtest.open_loop import OpenLoop, Tally
from loadtest.server import Server
from loadtest.slow_model import BODY, SlowModel
from qinfer.errors import QInferError

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESULTS = environment.ROOT / "loadtest" / "results"
_CAPACITY_SECONDS = 4.0
_SAMPLE_SECONDS = 5.0
_console = Console(stderr=True, highlight=False)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is run.

    Attributes:
        batch: rows of a batch of the model.
        batch_ms: milliseconds it takes for one.
        deadline_ms: of each request, in milliseconds.
        gateways, workers: processes of each.
        seconds: each load is measured for, after `warmup` seconds of the same load.
        seed: of the times of arrival.
    """

    batch: int
    batch_ms: float
    deadline_ms: float
    gateways: int
    workers: int
    seconds: float
    warmup: float
    seed: int


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One load.

    Attributes:
        times: the capacity.
        offered: requests a second.
        goodput: requests a second that were answered within their deadline.
        outcomes: requests by outcome, "ok" or the reason of the error.
        p50_ms, p99_ms: latency of the requests that were not refused with 429, however they ended.
        lateness_ms: by how much the generator itself was late, at most.
    """

    times: float
    offered: float
    goodput: float
    outcomes: dict[str, int]
    p50_ms: float
    p99_ms: float
    lateness_ms: float


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of the server's processes by role and number, in megabytes, at a time."""

    seconds: float
    rss_mb: dict[str, float]


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory under a lasting overload.

    Attributes:
        times: the capacity.
        samples: over time.
        outcomes: requests by outcome.
    """

    times: float
    samples: list[Sample]
    outcomes: dict[str, int]

    @property
    def growth(self) -> dict[str, float]:
        """Memory at the end as a multiple of that after one minute, by process and in all."""
        early = next(sample for sample in self.samples if sample.seconds >= min(60.0, self._half))
        late = self.samples[-1]
        grown = {name: late.rss_mb[name] / size for name, size in early.rss_mb.items() if name in late.rss_mb}
        grown["all"] = sum(late.rss_mb.values()) / sum(early.rss_mb.values())
        return grown

    @property
    def _half(self) -> float:
        return self.samples[-1].seconds / 2


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run; `capacity` in requests a second, as callers that wait for their answers get it."""

    started: str
    commit: str
    machine: environment.Machine
    settings: Settings
    capacity: float
    points: list[Point] = []
    memory: Memory | None = None

    @property
    def peak(self) -> float:
        """The highest goodput of all loads."""
        return max(point.goodput for point in self.points)


async def _measure(loop: OpenLoop, settings: Settings, capacity: float, times: float) -> Point:
    rate = times * capacity
    warm, tally = Tally(), Tally()
    await loop.offer(rate, settings.warmup, warm)
    await loop.offer(rate, settings.seconds, tally)
    await loop.settle(warm)
    await loop.settle(tally)
    return Point(
        times=times,
        offered=tally.sent / settings.seconds,
        goodput=tally.good / settings.seconds,
        outcomes=dict(tally.outcomes),
        p50_ms=tally.percentile(0.5) * 1e3,
        p99_ms=tally.percentile(0.99) * 1e3,
        lateness_ms=tally.lateness * 1e3,
    )


async def _remember(
    loop: OpenLoop, server: Server, capacity: float, *, times: float, minutes: float
) -> Memory:
    samples: list[Sample] = []
    outcomes: dict[str, int] = {}
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < minutes * 60:
        sample = Sample(seconds=round(passed, 1), rss_mb=_resident(server))
        samples.append(sample)
        tally = Tally()
        await loop.offer(times * capacity, _SAMPLE_SECONDS, tally)
        await loop.settle(tally)
        for outcome, count in tally.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
        sizes = "  ".join(f"{name} {size:.0f}" for name, size in sample.rss_mb.items())
        _console.print(f"{passed:6.0f} s, MB: {sizes}")
    samples.append(Sample(seconds=round(passed, 1), rss_mb=_resident(server)))
    return Memory(times=times, samples=samples, outcomes=outcomes)


def _resident(server: Server) -> dict[str, float]:
    by_role: dict[str, list[float]] = {}
    for process in server.snapshot().values():
        by_role.setdefault(process.role, []).append(process.rss_mb)
    return {
        f"{role} {index}" if len(sizes) > 1 else role: size
        for role, sizes in sorted(by_role.items())
        for index, size in enumerate(sizes)
    }


async def run(
    settings: Settings, loads: Sequence[float], *, memory: float = 0.0, times: float = 10.0
) -> Result:
    """Start a server and put the loads on it.

    Args:
        settings: of the model and the runs.
        loads: multiples of the capacity.
        memory: minutes of overload under which memory is watched; 0 for none.
        times: the capacity that is offered then.

    Raises:
        Unavailable: the server does not start, or leaves requests without an answer.
    """
    peer = SlowModel(
        batch=settings.batch,
        seconds=settings.batch_ms / 1e3,
        gateways=settings.gateways,
        workers=settings.workers,
    )
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = environment.machine()
    with tempfile.TemporaryDirectory(prefix="qinfer-overload-") as folder:
        server = Server(peer, cache=Path(folder), folder=Path(folder, "server"))
        with server:
            generator = OpenLoop(
                server.ports.http,
                peer.infer_path,
                BODY,
                deadline=settings.deadline_ms / 1e3,
                seed=settings.seed,
            )
            async with generator as loop:
                callers = 4 * settings.batch * settings.workers
                capacity = await loop.closed(callers, _CAPACITY_SECONDS)
                _console.print(f"capacity: {capacity:.0f} requests/s")
                points = []
                for load in loads:
                    points.append(await _measure(loop, settings, capacity, load))
                    _console.print(_line(points[-1]))
                watched = None
                if memory:
                    watched = await _remember(loop, server, capacity, times=times, minutes=memory)
    return Result(
        started=started,
        commit=environment.commit(),
        machine=machine,
        settings=settings,
        capacity=capacity,
        points=points,
        memory=watched,
    )


def _line(point: Point) -> str:
    return (
        f"{point.times:4.1f} x: offered {point.offered:6.0f}/s, in time {point.goodput:6.0f}/s, "
        f"p99 of what was let in {point.p99_ms:6.0f} ms, {point.outcomes}"
    )


def table(result: Result) -> Table:
    """The loads, for people to read."""
    made = Table(
        title=f"capacity {result.capacity:.0f} requests/s, deadline {result.settings.deadline_ms:g} ms"
    )
    for name in ("load", "offered/s", "in time/s", "of peak", "p50 ms", "p99 ms", "refused", "expired"):
        made.add_column(name, justify="right")
    for point in result.points:
        refused = point.outcomes.get("wait_too_long", 0) + point.outcomes.get("queue_full", 0)
        made.add_row(
            f"{point.times:g} x",
            f"{point.offered:.0f}",
            f"{point.goodput:.0f}",
            f"{point.goodput / result.peak:.0%}",
            f"{point.p50_ms:.0f}",
            f"{point.p99_ms:.0f}",
            f"{refused}",
            f"{point.outcomes.get('deadline_exceeded', 0)}",
        )
    return made


_FLOATS = click.FloatRange(min=0, min_open=True)


@click.command(context_settings={"show_default": True})
@click.option("--batch", type=click.IntRange(1), default=16, help="Rows of a batch of the model.")
@click.option("--batch-ms", type=_FLOATS, default=40.0, help="Milliseconds the model takes for one.")
@click.option("--deadline-ms", type=_FLOATS, default=1000.0, help="Deadline of every request.")
@click.option("--gateways", type=click.IntRange(1), default=1)
@click.option("--workers", type=click.IntRange(1), default=1)
@click.option("--loads", default="0.5,0.8,1,1.2,1.5,2,2.5,3", help="Multiples of the measured capacity.")
@click.option("--seconds", type=_FLOATS, default=10.0, help="Each load is measured for.")
@click.option("--warmup", type=_FLOATS, default=4.0, help="Seconds of the same load before.")
@click.option("--seed", default=1, help="Of the times of arrival.")
@click.option("--memory", type=float, default=0.0, help="Watch memory for that many minutes instead.")
@click.option("--times", type=_FLOATS, default=10.0, help="The capacity that is offered then.")
@click.option("--out", type=click.Path(path_type=Path), default=_RESULTS, help="Folder of the results.")
def main(loads: str, memory: float, times: float, out: Path, **given: float) -> None:
    """Offer a server more than it can answer; write a JSON file and a plot."""
    settings = msgspec.convert(given, Settings)
    chosen = [] if memory else [float(load) for load in loads.split(",")]
    try:
        processes.require()
        result = asyncio.run(run(settings, chosen, memory=memory, times=times))
        stem = f"{result.started[:10]}-overload" + ("-memory" if memory else "")
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{stem}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
        overload_plot.draw(result, out / f"{stem}.png")
    except QInferError as error:
        raise click.ClickException(error.message) from error
    if result.points:
        _console.print(table(result))
    if result.memory is not None:
        for name, factor in result.memory.growth.items():
            _console.print(f"{name}: {factor:.3f} times the memory after one minute")
    _console.print(f"written: {out / stem}.json and .png")


if __name__ == "__main__":
    main(prog_name="python -m loadtest.overload")
