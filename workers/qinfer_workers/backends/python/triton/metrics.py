"""Metrics of the model's own, exported with the worker's.

Metrics of one name and kind share their values, whichever instance makes them, and are exported as long as
one of their families is alive. Both families and series are bounded, so that a label taken from requests
ends in an error and not in the memory of the worker.
"""

from __future__ import annotations

import re
import threading
import weakref
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from qinfer_workers.backends.python.triton.errors import TritonModelException

MAX_FAMILIES = 256
MAX_SERIES = 1024
"""Of each family."""

Exported = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_lock = threading.Lock()


class Metric:
    """One series. Made by `MetricFamily.Metric`."""

    __slots__ = ("_bounds", "_counts", "_family", "_sum")

    def __init__(self, family: _Family, bounds: Sequence[float]) -> None:
        self._family = family
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def increment(self, value: float) -> None:
        """Add to a counter or gauge.

        Raises:
            TritonModelException: a histogram, or a negative value for a counter.
        """
        self._expect("increment", MetricFamily.COUNTER, MetricFamily.GAUGE)
        if value < 0 and self._family.kind == MetricFamily.COUNTER:
            raise TritonModelException(
                f"metric {self._family.name}: increment: found {value}; expected 0 or more for a counter"
            )
        with _lock:
            self._sum += value

    def set(self, value: float) -> None:
        """Set a gauge.

        Raises:
            TritonModelException: another kind.
        """
        self._expect("set", MetricFamily.GAUGE)
        with _lock:
            self._sum = float(value)

    def observe(self, value: float) -> None:
        """Count a value into its bucket of a histogram.

        Raises:
            TritonModelException: another kind.
        """
        self._expect("observe", MetricFamily.HISTOGRAM)
        with _lock:
            self._sum += value
            self._counts[bisect_left(self._bounds, value)] += 1

    def value(self) -> float:
        """The value of a counter or gauge.

        Raises:
            TritonModelException: a histogram.
        """
        self._expect("value", MetricFamily.COUNTER, MetricFamily.GAUGE)
        return self._sum

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound and cumulative count of each bucket."""
        total = 0
        cumulative: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            cumulative.append((bound, total))
        return cumulative

    def total(self) -> float:
        """The value, or the sum of the observed values of a histogram."""
        return self._sum

    def _expect(self, operation: str, *kinds: str) -> None:
        if self._family.kind not in kinds:
            raise TritonModelException(
                f"metric {self._family.name}: {operation}: found a {self._family.kind}; expected a"
                f" {' or '.join(kinds)}"
            )


class _Family:
    """The values of all families of one name."""

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name
        self.description = description
        self.kind = kind
        self.labels: tuple[str, ...] | None = None
        self.series: dict[tuple[str, ...], Metric] = {}

    def metric(self, labels: Mapping[str, str], bounds: Sequence[float]) -> Metric:
        names = tuple(sorted(labels))
        if self.labels is None:
            self.labels = names
        if names != self.labels:
            raise TritonModelException(
                f"metric {self.name}: labels: found {', '.join(names)}; expected {', '.join(self.labels)}"
                " as in its"
                " other series"
            )
        key = tuple(str(labels[name]) for name in names)
        metric = self.series.get(key)
        if metric is None:
            if len(self.series) >= MAX_SERIES:
                raise TritonModelException(
                    f"metric {self.name}: labels: found more than {MAX_SERIES} combinations; expected"
                    " labels with few"
                    " values"
                )
            metric = self.series[key] = Metric(self, bounds)
        return metric

    def export(self) -> Exported:
        names = self.labels or ()
        if self.kind == MetricFamily.HISTOGRAM:
            histogram = HistogramMetricFamily(self.name, self.description, labels=names)
            for key, metric in self.series.items():
                histogram.add_metric(list(key), metric.buckets(), metric.total())
            return histogram
        family = (CounterMetricFamily if self.kind == MetricFamily.COUNTER else GaugeMetricFamily)(
            self.name, self.description, labels=names
        )
        for key, metric in self.series.items():
            family.add_metric(list(key), metric.total())
        return family


_families: weakref.WeakValueDictionary[str, _Family] = weakref.WeakValueDictionary()


class MetricFamily:
    """A metric with all its series.

    Args:
        name: its name; a counter's is exported with `_total`.
        description: its help text.
        kind: `COUNTER`, `GAUGE` or `HISTOGRAM`.

    Raises:
        TritonModelException: a wrong name or kind, a name in use for another kind, or too many families.
    """

    COUNTER: ClassVar[str] = "counter"
    GAUGE: ClassVar[str] = "gauge"
    HISTOGRAM: ClassVar[str] = "histogram"

    def __init__(self, name: str, description: str, kind: str) -> None:
        if not _NAME.fullmatch(name):
            raise TritonModelException(
                f"metric {name!r}: found a name that Prometheus does not take; expected {_NAME.pattern}"
            )
        if kind not in (self.COUNTER, self.GAUGE, self.HISTOGRAM):
            raise TritonModelException(
                f"metric {name}: kind: found {kind!r}; expected COUNTER, GAUGE or HISTOGRAM of MetricFamily"
            )
        with _lock:
            family = _families.get(name)
            if family is None:
                if len(_families) >= MAX_FAMILIES:
                    raise TritonModelException(
                        f"metric {name}: found {MAX_FAMILIES} families of models already; expected fewer"
                    )
                family = _families[name] = _Family(name, description, kind)
        if family.kind != kind:
            raise TritonModelException(
                f"metric {name}: kind: found {kind}; expected {family.kind}, as it is in use"
            )
        self._family = family

    def Metric(  # noqa: N802  the name models know
        self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> Metric:
        """The series with these labels, made where it is new.

        Args:
            labels: label values by name; the same names for every series of a family.
            buckets: upper bounds of a histogram's buckets, ascending.

        Raises:
            TritonModelException: other label names than before, too many series, or wrong buckets.
        """
        bounds = [float(bound) for bound in buckets or ()]
        if bounds != sorted(set(bounds)) or bool(bounds) != (self._family.kind == self.HISTOGRAM):
            raise TritonModelException(
                f"metric {self._family.name}: buckets: found {buckets}; expected ascending bounds for a"
                " histogram"
                " and none for another kind"
            )
        with _lock:
            return self._family.metric(labels or {}, bounds)


class ModelMetrics(Collector):
    """Collects the metrics of all Python models of the process."""

    def collect(self) -> Iterable[Exported]:
        with _lock:
            families = sorted(_families.values(), key=lambda family: family.name)
            return [family.export() for family in families]


REGISTRY = CollectorRegistry()
"""Holds the metrics of Python models and nothing else; the worker exports it beside its own."""

REGISTRY.register(ModelMetrics())
