"""One measurement: a load on one server, and what it cost that server's processes."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from loadtest import clients, processes
from loadtest.mlp import example_rows
from loadtest.verify import DISTINCT_REQUESTS, requests_file
from qinfer.errors import ModelFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from loadtest.peers.base import Counters
    from loadtest.server import Server

_SETTLE_SECONDS = 5.0
_SETTLE_STEP_SECONDS = 0.25


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of one role spent, for each completed request, and their memory.

    Attributes:
        cpu_us: CPU time a request, user and system, in microseconds.
        switches: voluntary context switches a request: how often a thread had to wait for something.
        rss_mb: resident memory after the measurement, in megabytes.
    """

    cpu_us: float
    switches: float
    rss_mb: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one measurement.

    Attributes:
        server: name of the peer.
        wire: how requests travelled, see `loadtest.clients.Wire`.
        connections: requests in flight.
        repeat: which repeat, from 1.
        requests: completed requests the load generator reports, failed ones included.
        served: requests the server worked on meanwhile; costs are divided by it.
        rate: good answers a second.
        errors: failed requests by kind.
        p50_ms, p90_ms, p99_ms: latency percentiles in milliseconds.
        mean_batch: mean rows a batch by the server's own counters; None when it has none.
        cost: cost by role of the server's processes.
        client_us: CPU time of the load generator a request, in microseconds.
        foreign_cpu: share of the machine's CPU time taken by everything else, 0 to 1. Above a few percent the
            measurement was disturbed.
        speed: how fast one core did a fixed computation right before, see `processes.core_speed`.
    """

    server: str
    wire: clients.Wire
    connections: int
    repeat: int
    requests: int
    served: int
    rate: float
    errors: dict[str, int]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_batch: float | None
    cost: dict[str, Cost]
    client_us: float
    foreign_cpu: float
    speed: float

    @property
    def cpu_us(self) -> float:
        """CPU time of all the server's processes a request, in microseconds."""
        return sum(cost.cpu_us for cost in self.cost.values())

    @property
    def rss_mb(self) -> float:
        return sum(cost.rss_mb for cost in self.cost.values())


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A load to put on servers.

    Attributes:
        wire: how requests travel.
        connections: requests in flight.
        duration: seconds measured.
        warmup: seconds of the same load before, not measured; 0 for none.
    """

    wire: clients.Wire
    connections: int
    duration: float
    warmup: float


def measure(
    server: Server, load: Load, *, cache: Path, repeat: int = 1
) -> tuple[Measurement, list[processes.Process]]:
    """Put a load on a verified server and work out what it cost.

    Returns:
        The measurement, and what each process of the server spent in all (not a request).

    Raises:
        ModelFailed: not one request succeeded.
        InternalError: the load generator failed.
        Unavailable: the server, or one of its processes, ended.
    """
    generate = _generator(server, load, cache)
    if load.warmup:
        generate(load.warmup)
    counted, speed = _counters(server), processes.core_speed()
    before, machine, start = server.snapshot(), processes.machine_busy_us(), time.monotonic()
    outcome = generate(load.duration)
    wall_s, busy_us = time.monotonic() - start, processes.machine_busy_us() - machine
    spent = processes.difference(before, server.snapshot())
    counted_after = _counters(server)
    good = outcome.requests - outcome.errors.get("status", 0)
    if good <= 0:
        raise ModelFailed(f"{server.peer.name}: all requests failed: {outcome.errors}; see {server.log}")
    served, mean_batch = outcome.requests, None
    if counted is not None and counted_after is not None:
        inferences = counted_after.inferences - counted.inferences
        mean_batch = inferences / max(1, counted_after.executions - counted.executions)
        if load.wire != "http-json":
            # perf_analyzer reports its windows only, but the server has worked before and after them too.
            served = inferences
    served = max(1, served)
    measurement = Measurement(
        server=server.peer.name,
        wire=load.wire,
        connections=load.connections,
        repeat=repeat,
        requests=outcome.requests,
        served=served,
        rate=good / outcome.duration_s,
        errors=outcome.errors,
        p50_ms=outcome.p50_ms,
        p90_ms=outcome.p90_ms,
        p99_ms=outcome.p99_ms,
        mean_batch=mean_batch,
        cost=cost_by_role(spent, served),
        client_us=outcome.cpu_us / served,
        foreign_cpu=_foreign_share(busy_us, spent, outcome, wall_s),
        speed=speed,
    )
    return measurement, spent


def cost_by_role(spent: Iterable[processes.Process], requests: int) -> dict[str, Cost]:
    """Add up processes of the same role and divide by the requests they served."""
    by_role: dict[str, list[processes.Process]] = defaultdict(list)
    for process in spent:
        by_role[process.role].append(process)
    return {
        role: Cost(
            cpu_us=sum(process.cpu_us for process in members) / requests,
            switches=sum(process.switches for process in members) / requests,
            rss_mb=sum(process.rss_mb for process in members),
        )
        for role, members in sorted(by_role.items())
    }


def _generator(server: Server, load: Load, cache: Path) -> Callable[[float], clients.Outcome]:
    connections = load.connections
    if load.wire == "http-json":
        bodies = requests_file(server)
        return lambda duration: clients.run_wrk(
            server.infer_url, bodies, connections=connections, duration=duration
        )
    data = server.folder / "rows.json"
    if not data.exists():
        clients.write_perf_input(data, example_rows(DISTINCT_REQUESTS))
    port = server.ports.grpc if load.wire == "grpc" else server.ports.http
    return lambda duration: clients.run_perf_analyzer(
        cache, f"127.0.0.1:{port}", data, wire=load.wire, connections=connections, duration=duration
    )


def _counters(server: Server) -> Counters | None:
    """The server's counters, once they stand still: it may count a batch after it has answered."""
    counters = server.peer.counters(server.ports.base)
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_SETTLE_STEP_SECONDS)
        earlier, counters = counters, server.peer.counters(server.ports.base)
        if counters == earlier:
            break
    return counters


def _foreign_share(
    busy_us: float, spent: Iterable[processes.Process], outcome: clients.Outcome, wall_s: float
) -> float:
    """The share of the machine that neither the server nor the generator used."""
    known_us = sum(process.cpu_us for process in spent) + outcome.cpu_us
    return max(0.0, (busy_us - known_us) / (wall_s * 1e6 * (os.cpu_count() or 1)))
