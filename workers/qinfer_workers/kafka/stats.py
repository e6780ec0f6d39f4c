"""What a scorer counts, and how `/metrics` shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qinfer.telemetry.histogram import DURATION_SECONDS, POWERS_OF_TWO, Histogram
from qinfer.telemetry.metrics import histogram_family

_SOURCE = ("topic", "partition")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a source partition is.

    Attributes:
        committed: offset up to which everything is done.
        end: offset of the newest record, and one; None before anything was read.
        in_flight: records that are read and not committed.
    """

    committed: int
    end: int | None
    in_flight: int

    @property
    def lag(self) -> int | None:
        """Records behind the newest one."""
        return None if self.end is None else max(0, self.end - self.committed)


def _durations() -> dict[str, Histogram]:
    return {stage: Histogram(DURATION_SECONDS) for stage in ("decode", "score", "encode")}


@dataclass(slots=True)
class PipelineStats:
    """Counters of one scorer since it started.

    Attributes:
        read, written, dropped: records; the latter are tombstones that are not passed on.
        buried: dead letters, by reason. Counted when they are sent, so those of an aborted transaction count
            again when they are sent again.
        groups: rows of each group.
        stages: seconds of each group in each stage.
        transactions: by outcome.
        rebalances: how often partitions were assigned anew.
        restarts: how often the scorer joined its group again after trouble.
        progress: asked at each scrape, from another thread: each partition this scorer has.
    """

    read: int = 0
    written: int = 0
    dropped: int = 0
    buried: dict[str, int] = field(default_factory=dict)
    groups: Histogram = field(default_factory=lambda: Histogram(POWERS_OF_TWO))
    stages: dict[str, Histogram] = field(default_factory=_durations)
    transactions: dict[str, int] = field(default_factory=lambda: {"committed": 0, "aborted": 0, "fenced": 0})
    rebalances: int = 0
    restarts: int = 0
    progress: Callable[[], Mapping[tuple[str, int], Progress]] = dict


class ScorerCollector(Collector):
    """Metrics of one scorer."""

    def __init__(self, stats: PipelineStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Records by what became of them, groups, transactions, and how far each partition is."""
        stats = self._stats
        yield CounterMetricFamily("qinfer_kafka_records_read", "Records read", value=stats.read)
        yield CounterMetricFamily("qinfer_kafka_records_written", "Records written", value=stats.written)
        yield CounterMetricFamily(
            "qinfer_kafka_tombstones_dropped", "Tombstones not passed on", value=stats.dropped
        )
        dead = CounterMetricFamily("qinfer_kafka_dead_letters", "Dead letters written", labels=("reason",))
        for reason, count in tuple(stats.buried.items()):
            dead.add_metric((reason,), count)
        yield dead
        outcomes = CounterMetricFamily("qinfer_kafka_transactions", "Transactions", labels=("outcome",))
        for outcome, count in tuple(stats.transactions.items()):
            outcomes.add_metric((outcome,), count)
        yield outcomes
        yield CounterMetricFamily(
            "qinfer_kafka_rebalances", "Assignments of partitions to this scorer", value=stats.rebalances
        )
        yield CounterMetricFamily(
            "qinfer_kafka_restarts", "Times the scorer joined its group again", value=stats.restarts
        )
        yield histogram_family("qinfer_kafka_group_records", "Records of a group", (), [((), stats.groups)])
        yield histogram_family(
            "qinfer_kafka_stage_seconds",
            "Time of a group in a stage",
            ("stage",),
            (((stage,), histogram) for stage, histogram in stats.stages.items()),
        )
        yield from self._progress()

    def _progress(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily("qinfer_kafka_lag", "Records behind the newest one", labels=_SOURCE)
        flight = GaugeMetricFamily("qinfer_kafka_in_flight", "Records read and not committed", labels=_SOURCE)
        for (topic, partition), progress in self._stats.progress().items():
            labels = (topic, str(partition))
            flight.add_metric(labels, progress.in_flight)
            if progress.lag is not None:
                lag.add_metric(labels, progress.lag)
        yield lag
        yield flight
