"""Scorers and brokers that are killed, paused, stopped and added at random, while records are scored."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import msgspec
from aiokafka import AIOKafkaConsumer
from tests.helpers.kafka import KafkaCluster, Node, create_topics, topic_name

from loadtest.kafka.records import Records, send
from loadtest.kafka.system import Process, build_repository, start_scorer, write_pipeline

PARTITIONS = 6
_SCORERS = 3
_NODES = 3
_SESSION_TIMEOUT = 3.0
_SLICES = 40  # the records come in this many parts, with pauses
_SHORTEST, _LONGEST = 1.5, 4.0  # seconds between two faults
_PAUSED = 5.0  # seconds a scorer is stopped: long enough for its partitions to go to others
_BROKER_AWAY = 3.0
_SETTLED = 120.0  # seconds after the last fault in which everything has to be scored
_QUIET = 5.0  # seconds without a new record after which all duplicates are there, too

FAULTS = ("scorer killed", "scorer stopped", "scorer paused", "scorer added", "broker killed")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run.

    Attributes:
        delivery: "exactly-once" or "at-least-once".
        records: that were to be scored.
        faults: how often each was caused.
        missing: records without a score.
        doubled: scores too many.
        wrong: scores that are not right.
        disordered: records that are behind a later one of their partition, counting first appearances.
        dead: dead letters; no record deserved one.
        seconds: from the first record to the last score.
    """

    delivery: str
    records: int
    faults: dict[str, int]
    missing: int
    doubled: int
    wrong: int
    disordered: int
    dead: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it kept its promise."""
        kept = not (self.missing or self.wrong or self.disordered or self.dead)
        return kept and (self.delivery == "at-least-once" or not self.doubled)


@dataclass(slots=True)
class _Verdict:
    """Judges scores as they are read."""

    contents: Records
    seen: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    disordered: int = 0
    newest: dict[int, int] = field(default_factory=dict)

    def add(self, partition: int, number: int, value: bytes) -> None:
        self.wrong += not self.contents.right(number, value)
        if not self.seen[number]:
            self.disordered += number < self.newest.get(partition, -1)
            self.newest[partition] = max(number, self.newest.get(partition, -1))
        self.seen[number] += 1


class Chaos:
    """One run.

    Args:
        cluster: to be broken.
        directory: an empty folder.
        delivery: "exactly-once" or "at-least-once".
        records: how many.
        seconds: over how long they come.
        seed: of the faults.
        say: told what is done.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        directory: Path,
        *,
        delivery: str,
        records: int,
        seconds: float,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._directory = directory
        self._delivery = delivery
        self._records = records
        self._seconds = seconds
        self._random = random.Random(seed)
        self._say = say
        self._scorers: list[Process] = []
        self._started = 0
        self._faults: Counter[str] = Counter()
        self._pipeline = Path()

    async def run(self) -> Outcome:
        """Do it."""
        bootstrap = self._cluster.bootstrap
        self._directory.mkdir(parents=True)
        contents = Records.of(build_repository(self._directory / "models"))
        source, output, dead = (topic_name(stem) for stem in ("source", "output", "dead"))
        await create_topics(bootstrap, source, output, dead, partitions=PARTITIONS, replicas=_NODES)
        self._pipeline = write_pipeline(
            self._directory / "pipeline.yaml",
            bootstrap=bootstrap,
            repository=self._directory / "models",
            source=source,
            output=output,
            dead=dead,
            group=topic_name("group"),
            delivery=self._delivery,
            kafka={"session_timeout": _SESSION_TIMEOUT},
            limits={"max_in_flight": 6000, "commit_interval_ms": 100},
            window={"max_rows": 128},
        )
        with ExitStack() as stack:
            stack.callback(self._kill_all)
            for _ in range(_SCORERS):
                self._start()
            began = monotonic()
            sending = asyncio.create_task(self._send(bootstrap, source, contents))
            await self._break(sending)
            await sending
            verdict = await self._judge(bootstrap, output, contents)
            seconds = monotonic() - began
            letters = await _count(bootstrap, dead)
        return Outcome(
            delivery=self._delivery,
            records=self._records,
            faults=dict(self._faults),
            missing=self._records - len(verdict.seen),
            doubled=verdict.seen.total() - len(verdict.seen),
            wrong=verdict.wrong,
            disordered=verdict.disordered,
            dead=letters,
            seconds=round(seconds, 1),
        )

    def _kill_all(self) -> None:
        for scorer in self._scorers:
            scorer.kill()

    def _start(self) -> None:
        self._started += 1
        log = self._directory / f"scorer-{self._started}.log"
        self._scorers.append(start_scorer(self._pipeline, log))

    async def _send(self, bootstrap: str, source: str, contents: Records) -> None:
        began = monotonic()
        for part in range(_SLICES):
            numbers = range(part * self._records // _SLICES, (part + 1) * self._records // _SLICES)
            await send(bootstrap, source, contents, numbers, partitions=PARTITIONS)
            await asyncio.sleep(max(0.0, began + (part + 1) * self._seconds / _SLICES - monotonic()))

    async def _break(self, sending: asyncio.Task[None]) -> None:
        """Cause faults while records come. Each kind comes once before any comes again."""
        deck: list[str] = []
        while not sending.done():
            await asyncio.sleep(self._random.uniform(_SHORTEST, _LONGEST))
            deck = deck or self._random.sample(FAULTS, len(FAULTS))
            fault = deck.pop()
            self._say(fault)
            self._faults[fault] += 1
            await self._cause(fault)

    async def _cause(self, fault: str) -> None:
        if fault == "broker killed":
            await self._replace(self._random.choice(self._cluster.nodes))
        elif fault == "scorer added":
            self._start()
        else:
            victim = self._scorers.pop(self._random.randrange(len(self._scorers)))
            if fault == "scorer killed":
                victim.kill()
            elif fault == "scorer stopped":
                status = await victim.stop()
                # One that has not come so far as to handle signals has nothing to finish.
                if status and not (status == -signal.SIGTERM and not victim.log.stat().st_size):
                    raise RuntimeError(f"a scorer ended with {status}:\n{victim.log.read_text()[-2000:]}")
            else:
                victim.signal(signal.SIGSTOP)
                await asyncio.sleep(_PAUSED)
                victim.signal(signal.SIGCONT)
                self._scorers.append(victim)
        self._scorers = [scorer for scorer in self._scorers if scorer.running]
        while len(self._scorers) < _SCORERS:
            self._start()

    async def _replace(self, node: Node) -> None:
        node.kill()
        await asyncio.sleep(_BROKER_AWAY)
        self._cluster.spawn(node)
        await self._cluster.ready(node)

    async def _judge(self, bootstrap: str, output: str, contents: Records) -> _Verdict:
        """Read the output until everything is there and nothing more comes."""
        verdict = _Verdict(contents)
        consumer = AIOKafkaConsumer(
            output,
            bootstrap_servers=bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        await consumer.start()
        give_up = monotonic() + _SETTLED
        news = monotonic()
        try:
            while len(verdict.seen) < self._records or monotonic() < news + _QUIET:
                for source, records in (await consumer.getmany(timeout_ms=500)).items():
                    news = monotonic()
                    for record in records:
                        verdict.add(source.partition, int(record.key), record.value)
                if monotonic() > give_up:
                    break
        finally:
            await consumer.stop()
        return verdict


async def _count(bootstrap: str, topic: str) -> int:
    """Committed records of a topic."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        count = 0
        while found := await consumer.getmany(timeout_ms=2000):
            count += sum(len(records) for records in found.values())
        return count
    finally:
        await consumer.stop()


async def break_everything(
    directory: Path, *, records: int, seconds: float, seed: int, say: Callable[[str], None]
) -> list[Outcome]:
    """Run both deliveries on a cluster of three.

    Args:
        directory: an empty folder.
        records: of each run.
        seconds: over how long they come, in each.
        seed: of the faults.
        say: told what is done.
    """
    outcomes: list[Outcome] = []
    with KafkaCluster(directory / "kafka", nodes=_NODES, heap="512m") as cluster:
        for delivery in ("exactly-once", "at-least-once"):
            say(f"{delivery}: {records:,} records")
            chaos = Chaos(
                cluster,
                directory / delivery,
                delivery=delivery,
                records=records,
                seconds=seconds,
                seed=seed,
                say=say,
            )
            outcomes.append(await chaos.run())
            say(str(outcomes[-1]))
    return outcomes
