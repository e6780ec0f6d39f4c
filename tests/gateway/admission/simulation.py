"""A model's queue, its instances and some gateways, in simulated time: what admission does to goodput."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qinfer.errors import QueueFull
from qinfer.message import BatchInfo, ResponseFrame
from qinfer.registry import ModelRecord, TensorRecord
from qinfer_gateway.admission import Admission, Flight
from qinfer_gateway.catalog import Target

_TENSOR = TensorRecord("x", "FP32", (1,))


def target(max_batch_size: int) -> Target:
    record = ModelRecord("m", "1", "stub", "stub", max_batch_size, (_TENSOR,), (_TENSOR,), b"")
    return Target("", record, served=True, subject="stub.m")


@dataclass(slots=True, eq=False)
class Job:
    """One request that was let in."""

    gateway: SimulatedGateway
    arrived: float
    deadline: float
    ended: bool = False


@dataclass(slots=True)
class Outcome:
    """One request, let in or not, by when it arrived.

    Attributes:
        arrived: when.
        latency: seconds to its answer; infinite for one that passed its deadline; None for a refused one.
    """

    arrived: float
    latency: float | None


class World:
    """Simulated time, and the model with its queue.

    Args:
        max_batch: rows of a batch.
        service: seconds a batch takes, whatever its size.
        instances: that run batches at once.
        seed: of arrivals, and of the spread of service times.
    """

    def __init__(self, *, max_batch: int, service: float, instances: int = 1, seed: int = 1) -> None:
        self.now = 1000.0
        self.max_batch = max_batch
        self.service = service
        self.random = random.Random(seed)
        self.target = target(max_batch)
        self._queue: deque[Job] = deque()
        self._idle = instances
        self._to_kill = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    @property
    def instance_rate(self) -> float:
        """Requests a second that one instance answers when its batches are full."""
        return self.max_batch / self.service

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._serial), action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def add_instances(self, count: int) -> None:
        self._idle += count
        self._start()

    def kill_instances(self, count: int) -> None:
        """They answer nothing any more; what they run is lost until it expires."""
        idle = min(count, self._idle)
        self._idle -= idle
        self._to_kill += count - idle

    def enqueue(self, job: Job) -> None:
        self._queue.append(job)
        self._start()

    def _start(self) -> None:
        while self._idle and self._queue:
            batch: list[Job] = []
            while self._queue and len(batch) < self.max_batch:
                job = self._queue.popleft()
                if not job.ended:
                    batch.append(job)
            if not batch:
                return
            self._idle -= 1
            duration = self.service * self.random.uniform(0.9, 1.1)
            self.at(self.now + duration, lambda batch=batch: self._finish(batch))  # type: ignore[misc]

    def _finish(self, batch: list[Job]) -> None:
        if self._to_kill:
            self._to_kill -= 1
            return
        self._idle += 1
        by_gateway: dict[SimulatedGateway, list[Job]] = {}
        for job in batch:
            by_gateway.setdefault(job.gateway, []).append(job)
        backlog = len(self._queue)
        for gateway, jobs in by_gateway.items():
            gateway.answered(jobs, backlog, len(batch))
        self._start()


@dataclass(eq=False)
class SimulatedGateway:
    """Offers requests at random times and lets admission decide."""

    world: World
    max_in_flight: int = 1_000_000
    outcomes: list[Outcome] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    errors: list[QueueFull] = field(default_factory=list)
    flight: Flight = field(default_factory=Flight)

    def __post_init__(self) -> None:
        self.admission = Admission(max_in_flight=self.max_in_flight, clock=lambda: self.world.now)

    def load(self, rate: float, seconds: float, *, deadline: float) -> None:
        """Offer Poisson arrivals from now on."""
        when, end = self.world.now, self.world.now + seconds
        while (when := when + self.world.random.expovariate(rate)) < end:
            self.world.at(when, lambda: self.offer(deadline))

    def offer(self, deadline: float) -> None:
        world = self.world
        due = world.now + deadline
        try:
            self.admission.check(self.flight.count, self.flight, world.target, 1, due)
        except QueueFull as error:
            self.refusals[error.reason] += 1
            self.errors.append(error)
            self.outcomes.append(Outcome(world.now, None))
            return
        self.flight.count += 1
        self.flight.rows += 1
        job = Job(self, world.now, due)
        world.at(due, lambda: self._expire(job))
        world.enqueue(job)

    def answered(self, jobs: list[Job], backlog: int, batch: int) -> None:
        now = self.world.now
        live = [job for job in jobs if not job.ended]  # the others' answers come too late, but they come
        for job in live:
            job.ended = True
            self.flight.count -= 1
            self.flight.rows -= 1
            self.outcomes.append(Outcome(job.arrived, now - job.arrived))
        if live:
            frame = ResponseFrame(1, "w", "1", BatchInfo(batch, batch), [], backlog=backlog)
            self.flight.heard(frame, len(jobs), self.world.max_batch, now, latency=now - live[0].arrived)

    def _expire(self, job: Job) -> None:
        if not job.ended:
            job.ended = True
            self.flight.expired(1, 0, self.world.now)
            self.outcomes.append(Outcome(job.arrived, float("inf")))

    def seen(self, since: float) -> Seen:
        """What became of the requests that arrived at or after a time."""
        chosen = [outcome for outcome in self.outcomes if outcome.arrived >= since]
        accepted = sorted(outcome.latency for outcome in chosen if outcome.latency is not None)
        good = sum(latency != float("inf") for latency in accepted)
        return Seen(len(chosen), len(accepted), good, accepted)


@dataclass(frozen=True)
class Seen:
    """Requests offered, let in, answered in time; latencies of those let in, ascending."""

    offered: int
    accepted: int
    good: int
    latencies: list[float]

    def percentile(self, share: float) -> float:
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]
