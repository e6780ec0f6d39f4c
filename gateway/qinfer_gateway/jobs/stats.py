"""What a gateway counts of jobs, and its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qinfer.jobs import JobState


class JobStats:
    """Counters of one gateway.

    Attributes:
        submitted: jobs accepted, by model.
        ended: jobs that this gateway saw to their end, by model and state.
        attempts: attempts that were begun, by model.
        running: jobs that run here, by model.
        waiting: jobs that wait at the broker, those of all gateways, by model; as last seen.
        webhooks: tries of webhooks, by outcome: "delivered", "failed", "given_up" or "refused".
    """

    def __init__(self) -> None:
        self.submitted: Counter[str] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()
        self.attempts: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.waiting: dict[str, int] = {}
        self.webhooks: Counter[str] = Counter({"delivered": 0, "failed": 0, "given_up": 0, "refused": 0})

    def end(self, model: str, state: JobState) -> None:
        """A job of a model has ended."""
        self.ended[model, state.value] += 1


class JobsCollector(Collector):
    """Metrics of jobs of one gateway."""

    def __init__(self, stats: JobStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Counters and gauges, by model."""
        stats = self._stats
        for name, text, counts in (
            ("qinfer_jobs_submitted", "Jobs accepted", stats.submitted),
            ("qinfer_job_attempts", "Attempts of jobs that were begun", stats.attempts),
        ):
            family = CounterMetricFamily(name, text, labels=("model",))
            for model, count in tuple(counts.items()):
                family.add_metric((model,), count)
            yield family
        ended = CounterMetricFamily("qinfer_jobs_ended", "Jobs ended, by state", labels=("model", "state"))
        for labels, count in tuple(stats.ended.items()):
            ended.add_metric(labels, count)
        yield ended
        for name, text, gauges in (
            ("qinfer_jobs_running", "Jobs that run in this gateway", stats.running),
            ("qinfer_jobs_waiting", "Jobs that wait at the broker, as last seen", stats.waiting),
        ):
            gauge = GaugeMetricFamily(name, text, labels=("model",))
            for model, count in tuple(gauges.items()):
                gauge.add_metric((model,), count)
            yield gauge
        webhooks = CounterMetricFamily("qinfer_webhook_attempts", "Webhooks tried", labels=("outcome",))
        for outcome, count in tuple(stats.webhooks.items()):
            webhooks.add_metric((outcome,), count)
        yield webhooks
