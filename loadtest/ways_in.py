"""The Python client over NATS and over HTTP, side by side: `python -m loadtest.ways_in`.

One `qinfer serve`, one client of each kind in this process. Both ask for the same, by turns in short blocks,
so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import click
import msgspec
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from loadtest import environment
from loadtest.mlp import INPUT_NAME, INPUT_SIZE, MODEL_NAME
from loadtest.peers.base import Command, Ports
from loadtest.peers.qinfer import QInfer
from loadtest.server import Server
from qinfer.client import AsyncClient, connect
from qinfer.embedded import running_url
from qinfer.errors import QInferError

RESULTS = environment.ROOT / "loadtest" / "results"
_PERCENTILES = (50, 90, 99)
_console = Console(stderr=True, highlight=False)


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """One way in at one number of requests in flight.

    Attributes:
        way: "nats" or "http".
        in_flight: requests at once.
        requests: measured.
        rate: requests a second while this way had its turn.
        p50_ms, p90_ms, p99_ms: milliseconds from the call to its answer.
    """

    way: str
    in_flight: int
    requests: int
    rate: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All measurements of a run."""

    started: str
    commit: str
    machine: environment.Machine
    versions: Mapping[str, str]
    latencies: list[Latency]


class _Served(QInfer):
    """`qinfer serve` whose broker can be found."""

    def command(self, cache: Path, folder: Path, ports: Ports) -> Command:
        own = super().command(cache, folder, ports)
        return Command(
            arguments=[*own.arguments, "--store-dir", str(folder / "broker")], environment=own.environment
        )


async def block(client: AsyncClient, *, requests: int, in_flight: int) -> list[float]:
    """Ask so often, keeping so many requests in flight; seconds that each took.

    Raises:
        QInferError: one was not answered.
    """
    row = {INPUT_NAME: np.ones((1, INPUT_SIZE), np.float32)}
    left = iter(range(requests))
    taken: list[float] = []

    async def ask() -> None:
        for _ in left:
            started = perf_counter()
            await client.infer(MODEL_NAME, row)
            taken.append(perf_counter() - started)

    await asyncio.gather(*(ask() for _ in range(in_flight)))
    return taken


async def by_turns(
    clients: Mapping[str, AsyncClient], *, requests: int, in_flight: int, turns: int
) -> list[Latency]:
    """Measure all clients, a block each in turn, `turns` times; every second time in reverse order."""
    taken: dict[str, list[float]] = {way: [] for way in clients}
    spent = dict.fromkeys(clients, 0.0)
    for client in clients.values():
        await block(client, requests=requests, in_flight=in_flight)  # warm
    for turn in range(turns):
        for way in list(clients) if turn % 2 == 0 else reversed(list(clients)):
            started = perf_counter()
            taken[way] += await block(clients[way], requests=requests, in_flight=in_flight)
            spent[way] += perf_counter() - started
    return [_latency(way, in_flight, taken[way], spent[way]) for way in clients]


def _latency(way: str, in_flight: int, taken: list[float], seconds: float) -> Latency:
    p50, p90, p99 = (round(float(value) * 1000, 3) for value in np.percentile(taken, _PERCENTILES))
    return Latency(
        way=way,
        in_flight=in_flight,
        requests=len(taken),
        rate=round(len(taken) / seconds, 1),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
    )


async def measure(nats: str, http: str, loads: list[int], *, requests: int, turns: int) -> list[Latency]:
    """Measure a running fleet, with each of the numbers of requests in flight."""
    found: list[Latency] = []
    async with connect(nats) as direct, connect(http) as through_gateway:
        clients = {"nats": direct, "http": through_gateway}
        for in_flight in loads:
            each = max(requests, in_flight)
            found += await by_turns(clients, requests=each, in_flight=in_flight, turns=turns)
    return found


def table(latencies: list[Latency]) -> Table:
    """The measurements, for people to read."""
    made = Table(title="the Python client, by turns")
    for name in ("in flight", "way", "requests", "requests/s", "p50 ms", "p90 ms", "p99 ms"):
        made.add_column(name, justify="right")
    for each in latencies:
        numbers = (f"{value:.2f}" for value in (each.p50_ms, each.p90_ms, each.p99_ms))
        made.add_row(str(each.in_flight), each.way, str(each.requests), f"{each.rate:.0f}", *numbers)
    return made


@click.command(context_settings={"show_default": True})
@click.option("--loads", default="1,8,64", help="Requests in flight, one measurement each.")
@click.option("--requests", type=click.IntRange(1), default=200, help="Of each block.")
@click.option("--turns", type=click.IntRange(1), default=20, help="Blocks of each way.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the result.")
def main(loads: str, requests: int, turns: int, out: Path) -> None:
    """Measure latencies of both ways in; write a JSON file."""
    peer = _Served()
    before = environment.machine()
    try:
        with tempfile.TemporaryDirectory(prefix="qinfer-ways-") as folder:
            peer.prepare(Path(folder))
            with Server(peer, cache=Path(folder), folder=Path(folder, "server")) as server:
                nats = running_url(server.folder / "broker")
                wanted = [int(load) for load in loads.split(",")]
                latencies = uvloop.run(
                    measure(nats, server.ports.base, wanted, requests=requests, turns=turns)
                )
    except QInferError as error:
        raise click.ClickException(error.message) from error
    now = datetime.now(UTC).isoformat(timespec="seconds")
    result = Result(
        started=now,
        commit=environment.commit(),
        machine=before,
        versions=peer.versions(),
        latencies=latencies,
    )
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{now[:10]}-ways-in.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    _console.print(table(latencies))
    _console.print(f"written: {file}")


if __name__ == "__main__":
    main(prog_name="python -m loadtest.ways_in")
