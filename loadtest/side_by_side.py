"""The side-by-side run: the same loads on all servers in turn, again and again."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from loadtest import clients, environment, processes
from loadtest.measure import Load, Measurement, measure
from loadtest.peers import PEERS
from loadtest.results import Result, ServerInfo, Settings
from loadtest.server import Server
from loadtest.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure.

    Attributes:
        peers: names of the servers, in the order of each turn.
        repeats: turns for each load.
        duration: seconds of each measurement.
        warmup: seconds of the same load before each measurement.
        idle: seconds each server is watched without load.
        connections: wrk's connections, one load each.
        wires: what to measure; the wires other than "http-json" with `perf_connections` only.
        perf_connections: requests perf_analyzer keeps in flight.
    """

    peers: list[str]
    repeats: int
    duration: float
    warmup: float
    idle: float
    connections: list[int]
    wires: list[clients.Wire]
    perf_connections: int

    def loads(self) -> list[Load]:
        """All loads of one repeat."""
        pairs: list[tuple[clients.Wire, int]] = []
        for wire in self.wires:
            counts = self.connections if wire == "http-json" else [self.perf_connections]
            pairs += [(wire, count) for count in counts]
        return [
            Load(wire=wire, connections=count, duration=self.duration, warmup=self.warmup)
            for wire, count in pairs
        ]


def run(plan: Plan, *, cache: Path, folder: Path, command: str, progress: Callable[[str], object]) -> Result:
    """Start all servers, check their answers, and measure them in turn.

    All servers run the whole time and one is loaded at a time, A B A B; what each takes while idle is
    measured and reported. Restarting them for each measurement would measure cold processes and put seconds
    of start-up load between the two halves of a pair.

    Args:
        plan: what to measure.
        cache: where the peers are installed.
        folder: an empty folder for the servers' files.
        command: the command line to report.
        progress: told what is being done, one line at a time.

    Raises:
        QInferError: a server does not start, answers wrongly or ends; a load generator fails.
    """
    machine = environment.machine()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with ExitStack() as stack:
        servers = []
        for name in plan.peers:
            progress(f"starting {PEERS[name].title}")
            server = stack.enter_context(Server(PEERS[name], cache=cache, folder=folder / name))
            verify(server, [wire for wire in plan.wires if wire in server.peer.wires])
            servers.append(server)
        infos = {server.peer.name: _info(server, plan.idle, cache, folder) for server in servers}
        measurements = _measure_all(plan, servers, cache, progress)
    return Result(
        started=started,
        commit=environment.commit(),
        command=command,
        machine=machine,
        settings=Settings(
            repeats=plan.repeats,
            duration=plan.duration,
            warmup=plan.warmup,
            clients=clients.versions(plan.wires),
        ),
        servers=infos,
        measurements=measurements,
    )


def _measure_all(
    plan: Plan, servers: list[Server], cache: Path, progress: Callable[[str], object]
) -> list[Measurement]:
    measurements = []
    for repeat in range(1, plan.repeats + 1):
        for load in plan.loads():
            for server in servers:
                if load.wire in server.peer.wires:
                    measurement, _ = measure(server, load, cache=cache, repeat=repeat)
                    measurements.append(measurement)
                    progress(_line(plan, measurement))
    return measurements


def _info(server: Server, seconds: float, cache: Path, folder: Path) -> ServerInfo:
    """Describe a server, and watch what it takes without load."""
    before = server.snapshot()
    time.sleep(seconds)
    spent = processes.difference(before, server.snapshot())
    places = {str(folder): "FOLDER", str(cache): "CACHE", sys.prefix: "VENV"}
    arguments = server.command.arguments
    for path, name in places.items():
        arguments = [argument.replace(path, name) for argument in arguments]
    return ServerInfo(
        title=server.peer.title,
        remark=server.peer.remark,
        arguments=arguments,
        versions=dict(server.peer.versions()),
        idle_ms=sum(process.cpu_us for process in spent) / 1e3 / seconds,
        idle_rss_mb=sum(process.rss_mb for process in spent),
    )


def _line(plan: Plan, measurement: Measurement) -> str:
    errors = f", errors {measurement.errors}" if measurement.errors else ""
    return (
        f"{measurement.repeat}/{plan.repeats} {measurement.wire} {measurement.connections:>4} "
        f"{measurement.server:<8} {measurement.rate:>8,.0f}/s  p50 {measurement.p50_ms:6.2f} ms  "
        f"p99 {measurement.p99_ms:6.2f} ms  {measurement.cpu_us:6.1f} µs/request  "
        f"others {measurement.foreign_cpu:.1%}{errors}"
    )
