"""Prometheus metrics, made from the counters when they are scraped.

Triton's metrics keep Triton's names, labels and meaning, so that its dashboards and alerts work unchanged.
They are typed "unknown": an OpenMetrics counter must end in `_total`, which would rename them. PromQL does
not look at the type.

Collectors run in the thread that renders a scrape, while the event loop goes on counting: they copy each
container in one step and read the rest as it is, so a scrape can be one batch out of date but never fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from qinfer import __version__
from qinfer.telemetry.gateway import GatewayStats, QueueView
from qinfer.telemetry.histogram import Histogram
from qinfer.telemetry.stats import ModelStats

Role: TypeAlias = Literal["gateway", "worker", "kafka-score"]

_MODEL = ("model", "version")

_TRITON: Sequence[tuple[str, str, Callable[[ModelStats], float]]] = (
    ("request_success", "Requests answered", lambda stats: stats.succeeded),
    ("count", "Rows answered", lambda stats: stats.rows),
    ("exec_count", "Batches executed", lambda stats: stats.executions),
    (
        "request_duration_us",
        "Microseconds from publication to outputs ready, over all requests",
        lambda stats: stats.request_ns // 1000,
    ),
    (
        "queue_duration_us",
        "Microseconds from publication to start of the batch, over all requests",
        lambda stats: stats.queue_ns // 1000,
    ),
    (
        "compute_input_duration_us",
        "Microseconds making input tensors, over all requests",
        lambda stats: stats.compute_input_ns // 1000,
    ),
    (
        "compute_infer_duration_us",
        "Microseconds in the backend, over all requests",
        lambda stats: stats.compute_infer_ns // 1000,
    ),
    (
        "compute_output_duration_us",
        "Microseconds splitting outputs, over all requests",
        lambda stats: stats.compute_output_ns // 1000,
    ),
)

_TRITON_FAILURES: Mapping[str, str] = {
    "queue_full": "REJECTED",
    "deadline_exceeded": "REJECTED",
    "shutting_down": "REJECTED",
    "cancelled": "CANCELED",
    "model_failed": "BACKEND",
    "poisoned": "BACKEND",
}
_OTHER_FAILURE = "OTHER"

_WORKER_HISTOGRAMS: Sequence[tuple[str, str, Callable[[ModelStats], Histogram]]] = (
    (
        "qinfer_queue_wait_seconds",
        "Wait of a request in the broker, publication to arrival in the worker",
        lambda stats: stats.queue_wait,
    ),
    (
        "qinfer_batch_wait_seconds",
        "Wait of a request for its batch, arrival in the worker to start of the batch",
        lambda stats: stats.batch_wait,
    ),
    (
        "qinfer_compute_infer_seconds",
        "Time of a batch in the backend",
        lambda stats: stats.compute_infer,
    ),
    ("qinfer_batch_size", "Rows of a batch", lambda stats: stats.batch_rows),
)


_QUEUES: Sequence[tuple[str, str, Callable[[QueueView], float]]] = (
    ("qinfer_requests_in_flight", "Requests published and not yet answered", lambda queue: queue.count),
    (
        "qinfer_backlog_requests",
        "Requests that wait for the model, as far as this gateway knows",
        lambda queue: queue.known_backlog,
    ),
    (
        "qinfer_drain_rate_rows",
        "Rows of this gateway answered a second, measured while there is a backlog",
        lambda queue: queue.drain_rate,
    ),
)


class WorkerCollector(Collector):
    """Metrics of the models a worker serves.

    Args:
        models: the counters of every loaded model version, asked at each scrape, from another thread.
    """

    def __init__(self, models: Callable[[], Iterable[ModelStats]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """All families, one sample set a model version."""
        models = [((stats.model, stats.version), stats) for stats in tuple(self._models())]
        for name, help_text, read in _TRITON:
            family = UnknownMetricFamily(f"nv_inference_{name}", help_text, labels=_MODEL)
            for labels, stats in models:
                family.add_metric(labels, read(stats))
            yield family
        yield self._failures(models)
        pending = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests in the worker that await execution", labels=_MODEL
        )
        for labels, stats in models:
            pending.add_metric(labels, stats.pending())
        yield pending
        batches = CounterMetricFamily(
            "qinfer_batches", "Batches executed, by why they were closed", labels=(*_MODEL, "reason")
        )
        errors = CounterMetricFamily(
            "qinfer_request_failures",
            "Requests answered with an error, by reason",
            labels=(*_MODEL, "reason"),
        )
        for labels, stats in models:
            for reason, count in tuple(stats.closed.items()):
                batches.add_metric((*labels, reason), count)
            for reason, count in tuple(stats.failed.items()):
                errors.add_metric((*labels, reason), count)
        yield batches
        yield errors
        for name, help_text, histogram in _WORKER_HISTOGRAMS:
            yield histogram_family(
                name, help_text, _MODEL, ((labels, histogram(stats)) for labels, stats in models)
            )
        yield from self._streams([(labels, stats) for labels, stats in models if stats.responses])

    @staticmethod
    def _streams(models: Sequence[tuple[tuple[str, str], ModelStats]]) -> Iterator[Metric]:
        """What only models that give many responses to a request have."""
        responses = CounterMetricFamily(
            "qinfer_stream_responses", "Responses of decoupled models", labels=_MODEL
        )
        for labels, stats in models:
            responses.add_metric(labels, sum(one.success.count for one in tuple(stats.responses.values())))
        yield responses
        yield histogram_family(
            "qinfer_stream_first_response_seconds",
            "Arrival of a request in the worker to the first of its responses",
            _MODEL,
            ((labels, stats.first_response) for labels, stats in models),
        )

    @staticmethod
    def _failures(models: Iterable[tuple[tuple[str, str], ModelStats]]) -> Metric:
        family = UnknownMetricFamily(
            "nv_inference_request_failure", "Requests failed", labels=(*_MODEL, "reason")
        )
        for labels, stats in models:
            # All four, even at zero: rate() misses the first failure of a series that appears with it.
            counts = dict.fromkeys((*dict.fromkeys(_TRITON_FAILURES.values()), _OTHER_FAILURE), 0)
            for reason, count in tuple(stats.failed.items()):
                counts[_TRITON_FAILURES.get(reason, _OTHER_FAILURE)] += count
            for reason, count in counts.items():
                family.add_metric((*labels, reason), count)
        return family


class GatewayCollector(Collector):
    """Metrics of one gateway process."""

    def __init__(self, stats: GatewayStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Requests by outcome, their latency, frames, and requests in flight."""
        latencies = tuple(self._stats.requests.items())
        labels = ("model", "protocol", "outcome")
        requests = CounterMetricFamily(
            "qinfer_requests", "Requests finished; outcome is ok or the error's reason", labels=labels
        )
        for key, histogram in latencies:
            requests.add_metric(key, histogram.count)
        yield requests
        yield histogram_family(
            "qinfer_request_duration_seconds", "Arrival of a request to its answer", labels, latencies
        )
        yield histogram_family(
            "qinfer_first_response_seconds",
            "Arrival of a request to the first of its responses, where it takes many",
            labels[:2],
            tuple(self._stats.first_responses.items()),
        )
        frames = tuple(self._stats.frames.items())
        published = CounterMetricFamily("qinfer_frames_published", "Frames published", labels=("model",))
        for model, sizes in frames:
            published.add_metric((model,), sizes.rows.count)
        yield published
        for unit in ("rows", "requests"):
            yield histogram_family(
                f"qinfer_frame_{unit}",
                f"{unit.capitalize()} of a published frame",
                ("model",),
                (((model,), getattr(sizes, unit)) for model, sizes in frames),
            )
        yield from self._queues()
        yield CounterMetricFamily(
            "qinfer_answers_dropped",
            "Answers to no request: late ones, second ones, unreadable ones",
            value=self._stats.dropped,
        )
        yield CounterMetricFamily(
            "qinfer_requests_resent",
            "Requests published again after trouble with the broker",
            value=self._stats.resent,
        )

    def _queues(self) -> Iterator[Metric]:
        queues = tuple(self._stats.queues().items())
        for name, help_text, read in _QUEUES:
            family = GaugeMetricFamily(name, help_text, labels=("model",))
            for model, queue in queues:
                family.add_metric((model,), read(queue))
            yield family


class _BuildInfo(Collector):
    def __init__(self, role: Role) -> None:
        self._role = role

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("qinfer_build", "What runs here", {"version": __version__, "role": self._role})


def new_registry(role: Role, *collectors: Collector) -> CollectorRegistry:
    """A registry of the given collectors and those of the process: memory, CPU, file descriptors, Python, GC.

    It is not the library's global one, so that several roles can live in one process, each with its own.
    """
    registry = CollectorRegistry()
    for collector in (_BuildInfo(role), *collectors):
        registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def histogram_family(
    name: str,
    help_text: str,
    labels: Sequence[str],
    histograms: Iterable[tuple[Sequence[str], Histogram]],
) -> HistogramMetricFamily:
    """A family of our histograms.

    Args:
        name, help_text: of the family.
        labels: names of its labels.
        histograms: each with the values of its labels.
    """
    family = HistogramMetricFamily(name, help_text, labels=labels)
    for values, histogram in histograms:
        family.add_metric(values, _buckets(histogram), histogram.total)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    for index, (bound, count) in enumerate(zip(bounds, accumulate(tuple(histogram.counts)), strict=True)):
        exemplar = histogram.exemplars.get(index)
        if exemplar is None:
            buckets.append((bound, count))
        else:
            traced = Exemplar({"trace_id": exemplar.trace_id}, exemplar.value, exemplar.timestamp)
            buckets.append((bound, count, traced))
    return buckets
