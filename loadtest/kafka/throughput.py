"""Scored records a second beside a plain loop, in one interleaved run, and memory before a long backlog."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Literal, TypeAlias

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.helpers.kafka import KafkaCluster, create_topics, topic_name

from loadtest.kafka.records import Records, send
from loadtest.kafka.system import Process, build_repository, start_scorer, write_pipeline

Format: TypeAlias = Literal["raw", "json"]

PARTITIONS = 6
FORMATS: Sequence[Format] = ("raw", "json")
PLAIN = "plain loop"

_SESSION_TIMEOUT = (
    3.0  # members notice sooner that others join: less of the backlog goes before all are there
)
_LOOK = 0.1
_PATIENCE = 180.0
_PAGE_MB = 4096 / 1e6
_UP = "{} scorers of group"
"""What the supervisor's log has once all its processes have joined."""


class System(msgspec.Struct, frozen=True, kw_only=True):
    """What scores.

    Attributes:
        name: for people.
        way: of the loop: "plain" or "fast"; or the delivery of the scorer.
        processes: of the scorer; 0 for a loop.
    """

    name: str
    way: str
    processes: int = 0


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    Attributes:
        system: its name.
        written_as: what a record is.
        records: how many were scored while the clock ran.
        records_per_second: while the clock ran.
        cpu_us: CPU time of all processes that score for each record then, microseconds.
        peak_mb: most resident memory of these processes together.
    """

    system: str
    written_as: Format
    records: int
    records_per_second: float
    cpu_us: float
    peak_mb: float


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        systems: names, the plain loop first.
        seconds: of each measurement.
        backlog: records before each measurement, by format.
        rates: every measurement.
        whole: one that scored a whole backlog of raw records.
    """

    systems: list[str]
    seconds: float
    backlog: dict[str, int]
    rates: list[Rate]
    whole: Rate | None = None

    def of(self, system: str, written_as: str) -> list[Rate]:
        """The measurements of a system."""
        return [rate for rate in self.rates if rate.system == system and rate.written_as == written_as]

    def median(self, system: str, written_as: str) -> float:
        """Records a second."""
        return statistics.median(rate.records_per_second for rate in self.of(system, written_as))

    def factor(self, system: str, written_as: str) -> float:
        """How much faster than the plain loop."""
        return self.median(system, written_as) / self.median(PLAIN, written_as)


def systems(processes: int) -> list[System]:
    """All that is measured, with scorers of one process and of so many."""
    found = [System(name=PLAIN, way="plain"), System(name="loop with uvloop and msgspec", way="fast")]
    for count in dict.fromkeys((1, processes)):
        for delivery in ("at-least-once", "exactly-once"):
            name = f"{delivery}, {count} process{'es' if count > 1 else ''}"
            found.append(System(name=name, way=delivery, processes=count))
    return found


async def measure(
    directory: Path,
    *,
    backlog: Mapping[Format, int],
    seconds: float,
    rounds: int,
    processes: int,
    whole: bool,
    say: Callable[[str], None],
) -> Throughput:
    """Measure all systems with all formats, one after the other, several times.

    Args:
        directory: a folder that is not there yet.
        backlog: records of each format that wait before each measurement.
        seconds: of each measurement; it ends before if the backlog does.
        rounds: measurements of each system.
        processes: of the scorer, beside one.
        whole: also have a backlog of raw records scored to its end.
        say: told what is going on.
    """
    model = build_repository(directory / "models")
    contenders = systems(processes)
    rates: list[Rate] = []
    with KafkaCluster(directory / "kafka", heap="1g", quick=False) as cluster:
        bench = _Bench(cluster.bootstrap, directory, model)
        sources: dict[Format, str] = {}
        for written_as, count in backlog.items():
            sources[written_as] = source = topic_name("source")
            contents = Records.of(model, raw=written_as == "raw")
            await create_topics(cluster.bootstrap, source, partitions=PARTITIONS)
            await send(cluster.bootstrap, source, contents, range(count), partitions=PARTITIONS)
            say(f"{count:,} records, {written_as}")
        for number in range(rounds):
            for written_as, source in sources.items():
                for system in contenders:
                    rate = await bench.run(system, written_as, source, backlog[written_as], seconds)
                    rates.append(rate)
                    say(f"round {number + 1}: {written_as}: {_told(rate)}")
        last: Rate | None = None
        if whole:
            last = await bench.run(contenders[-1], "raw", sources["raw"], backlog["raw"], _PATIENCE)
            say(f"whole backlog: {_told(last)}, {last.peak_mb:.0f} MB")
    return Throughput(
        systems=[system.name for system in contenders],
        seconds=seconds,
        backlog={str(written_as): count for written_as, count in backlog.items()},
        rates=rates,
        whole=last,
    )


def _told(rate: Rate) -> str:
    return f"{rate.system}: {rate.records_per_second:,.0f} records/s of {rate.records:,}"


class _Bench:
    """Runs one system over a topic."""

    def __init__(self, bootstrap: str, directory: Path, model: Path) -> None:
        self._bootstrap = bootstrap
        self._directory = directory
        self._model = model

    async def run(
        self, system: System, written_as: Format, source: str, records: int, seconds: float
    ) -> Rate:
        output, dead, group = topic_name("output"), topic_name("dead"), topic_name("group")
        await create_topics(self._bootstrap, output, dead, partitions=PARTITIONS)
        log = self._directory / f"{group}.log"
        if not system.processes:
            command = [sys.executable, "-m", "loadtest.kafka.baseline"]
            arguments = [self._bootstrap, source, output, group, str(self._model), written_as, system.way]
            process = Process([*command, *arguments], log)
        else:
            pipeline = write_pipeline(
                self._directory / f"{group}.yaml",
                bootstrap=self._bootstrap,
                repository=self._directory / "models",
                source=source,
                output=output,
                dead=dead,
                group=group,
                delivery=system.way,
                raw=written_as == "raw",
                kafka={"session_timeout": _SESSION_TIMEOUT},
            )
            process = start_scorer(pipeline, log, processes=system.processes)
        try:
            return await self._watch(system, written_as, process, output, records, seconds)
        finally:
            process.kill()

    async def _watch(
        self,
        system: System,
        written_as: Format,
        process: Process,
        output: str,
        records: int,
        seconds: float,
    ) -> Rate:
        """Follow the ends of the output's partitions; the few markers of transactions do not matter.

        The clock runs from when all processes have joined and results come, until `seconds` are over or all
        is scored.
        """
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap)
        await consumer.start()
        try:
            partitions = [TopicPartition(output, number) for number in range(PARTITIONS)]
            joined = system.processes <= 1
            began: tuple[float, int, float] | None = None
            peak = 0.0
            give_up = monotonic() + _PATIENCE
            while True:
                count = sum((await consumer.end_offsets(partitions)).values())
                at = monotonic()
                peak = max(peak, _rss_mb(process.pid))
                if not process.running or at > give_up:
                    raise RuntimeError(f"{system.name}: {count} scored\n{process.log.read_text()[-2000:]}")
                joined = joined or _UP.format(system.processes) in process.log.read_text()
                if began is None:
                    if joined and count:
                        began = (at, count, _cpu_seconds(process.pid))
                elif at - began[0] >= seconds or count >= records:
                    break
                if began is None and count >= records:
                    raise RuntimeError(f"{system.name}: {records} records are too few to measure it")
                await asyncio.sleep(_LOOK)
            cpu = _cpu_seconds(process.pid) - began[2]
        finally:
            await consumer.stop()
        scored = count - began[1]
        return Rate(
            system=system.name,
            written_as=written_as,
            records=scored,
            records_per_second=round(scored / (at - began[0]), 1),
            cpu_us=round(cpu / scored * 1e6, 2),
            peak_mb=round(peak, 1),
        )


def _family(pid: int) -> list[int]:
    """A process and its children."""
    with suppress(OSError):
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return [pid]


def _rss_mb(pid: int) -> float:
    total = 0
    for member in _family(pid):
        with suppress(OSError):
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return total * _PAGE_MB


def _cpu_seconds(pid: int) -> float:
    total = 0
    for member in _family(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / 100
