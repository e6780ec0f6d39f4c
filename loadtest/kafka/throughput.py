"""Scored records a second beside a plain loop, in one interleaved run, and memory before a long backlog."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.helpers.kafka import KafkaCluster, create_topics, topic_name

from loadtest.kafka.records import Records, send
from loadtest.kafka.system import Process, build_repository, start_scorer, write_pipeline

PARTITIONS = 6
SYSTEMS = ("plain loop", "at-least-once", "exactly-once")
_FROM, _TO = 0.1, 0.95
"""The part of the records whose time counts: neither the start nor the end."""

_LOOK = 0.05
_PATIENCE = 180.0
_PAGE_MB = 4096 / 1e6


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    Attributes:
        system: "plain loop", "at-least-once" or "exactly-once".
        records_per_second: in the middle of the backlog.
        cpu_us: CPU time of the scoring process for each record, microseconds, its start included.
        peak_mb: most resident memory of that process.
    """

    system: str
    records_per_second: float
    cpu_us: float
    peak_mb: float


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        written_as: "raw" or "json": what a record is.
        records: backlog of each measurement.
        rates: every measurement.
        backlog: the one before `backlog_records`.
    """

    written_as: str
    records: int
    rates: list[Rate]
    backlog: Rate | None = None
    backlog_records: int = 0

    def median(self, system: str) -> float:
        """Records a second."""
        return statistics.median(r.records_per_second for r in self.rates if r.system == system)

    def factor(self, system: str) -> float:
        """How much faster than the plain loop."""
        return self.median(system) / self.median("plain loop")


async def measure(
    directory: Path, *, written_as: str, records: int, rounds: int, backlog: int, say: Callable[[str], None]
) -> Throughput:
    """Measure all systems, one after the other, several times.

    Args:
        directory: a folder that is not there yet.
        written_as: "raw" or "json": what a record is.
        records: backlog of each measurement.
        rounds: measurements of each system.
        backlog: records of the long backlog; 0 for none.
        say: told what is going on.
    """
    model = build_repository(directory / "models")
    contents = Records.of(model, raw=written_as == "raw")
    with KafkaCluster(directory / "kafka", heap="1g", quick=False) as cluster:
        bench = _Bench(cluster.bootstrap, directory, model, written_as)
        source = topic_name("source")
        await create_topics(cluster.bootstrap, source, partitions=PARTITIONS)
        await send(cluster.bootstrap, source, contents, range(records), partitions=PARTITIONS)
        rates: list[Rate] = []
        for number in range(rounds):
            for system in SYSTEMS:
                rate = await bench.run(system, source, records)
                rates.append(rate)
                say(f"round {number + 1}: {system}: {rate.records_per_second:,.0f} records/s")
        long: Rate | None = None
        if backlog:
            await send(cluster.bootstrap, source, contents, range(records, backlog), partitions=PARTITIONS)
            long = await bench.run("exactly-once", source, backlog)
            say(f"backlog of {backlog:,}: {long.records_per_second:,.0f} records/s, {long.peak_mb:.0f} MB")
    return Throughput(
        written_as=written_as, records=records, rates=rates, backlog=long, backlog_records=backlog
    )


class _Bench:
    """Runs one system over a whole topic."""

    def __init__(self, bootstrap: str, directory: Path, model: Path, written_as: str) -> None:
        self._bootstrap = bootstrap
        self._directory = directory
        self._model = model
        self._written_as = written_as

    async def run(self, system: str, source: str, records: int) -> Rate:
        output, dead, group = topic_name("output"), topic_name("dead"), topic_name("group")
        await create_topics(self._bootstrap, output, dead, partitions=PARTITIONS)
        log = self._directory / f"{group}.log"
        if system == "plain loop":
            command = [sys.executable, "-m", "loadtest.kafka.baseline"]
            arguments = [self._bootstrap, source, output, group, str(self._model), self._written_as]
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
                delivery=system,
                raw=self._written_as == "raw",
            )
            process = start_scorer(pipeline, log)
        try:
            return await self._watch(system, process, output, records)
        finally:
            process.kill()

    async def _watch(self, system: str, process: Process, output: str, records: int) -> Rate:
        """Follow the ends of the output's partitions; the few markers of transactions do not matter."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap)
        await consumer.start()
        try:
            partitions = [TopicPartition(output, number) for number in range(PARTITIONS)]
            seen: list[tuple[float, int]] = []
            peak = 0.0
            give_up = monotonic() + _PATIENCE
            while not seen or seen[-1][1] < records:
                ends = await consumer.end_offsets(partitions)
                seen.append((monotonic(), sum(ends.values())))
                peak = max(peak, _rss_mb(process.pid))
                if not process.running or monotonic() > give_up:
                    raise RuntimeError(
                        f"{system}: {seen[-1][1]} of {records}\n{process.log.read_text()[-2000:]}"
                    )
                await asyncio.sleep(_LOOK)
            cpu = _cpu_seconds(process.pid)
        finally:
            await consumer.stop()
        inside = [(at, count) for at, count in seen if _FROM * records <= count <= _TO * records]
        (began, first), (ended, last) = inside[0], inside[-1]
        return Rate(
            system=system,
            records_per_second=round((last - first) / (ended - began), 1),
            cpu_us=round(cpu / records * 1e6, 2),
            peak_mb=round(peak, 1),
        )


def _rss_mb(pid: int) -> float:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MB
    return 0.0


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
