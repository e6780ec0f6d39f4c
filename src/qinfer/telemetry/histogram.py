"""A histogram cheap enough for the hot path: one binary search and two additions a value."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from time import time
from typing import NamedTuple

from qinfer.errors import SetupError

DURATION_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Bucket bounds for durations: from what one hop costs to the longest deadline in common use."""

POWERS_OF_TWO = tuple(float(2**exponent) for exponent in range(12))
"""Bucket bounds for batch and frame sizes, 1 to 2048."""


class Exemplar(NamedTuple):
    """The last traced value of a bucket; `value` in the unit of the bounds, `timestamp` in Unix seconds."""

    trace_id: str
    value: float
    timestamp: float


class Histogram:
    """Counts of values by bucket, their sum, and an exemplar a bucket.

    Written by one thread; another may read at any time and sees each bucket either before or after an update.

    Args:
        bounds: inclusive upper bounds of the buckets, increasing; a last bucket without bound is added.
        unit: what one observed unit is worth in the unit of the bounds; 1e-9 when bounds are in seconds and
            observed values in nanoseconds, so that no value is converted on the hot path.

    Raises:
        SetupError: the bounds are empty or not increasing.
    """

    __slots__ = ("_edges", "_sum", "bounds", "counts", "exemplars", "unit")

    def __init__(self, bounds: Sequence[float], *, unit: float = 1.0) -> None:
        if not bounds or any(low >= high for low, high in pairwise(bounds)):
            raise SetupError(
                f"histogram bounds {list(bounds)} are not increasing; expected at least one bound"
            )
        self.bounds = tuple(bounds)
        self.unit = unit
        # Rounded, so that a value equal to a bound is counted in its bucket whatever the division's last bit.
        self._edges = [bound if unit == 1.0 else round(bound / unit, 3) for bound in bounds]
        self.counts = [0] * (len(bounds) + 1)
        self._sum: float = 0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, value: float, trace_id: str = "") -> None:
        """Count one value; `trace_id`, when it was traced, becomes its bucket's exemplar."""
        bucket = bisect_left(self._edges, value)
        self.counts[bucket] += 1
        self._sum += value
        if trace_id:
            self.exemplars[bucket] = Exemplar(trace_id, value * self.unit, time())

    def observe_many(self, values: Sequence[float], trace_ids: Mapping[int, str] | None = None) -> None:
        """Count many values; `trace_ids` names the traced ones by their index in `values`."""
        edges, counts = self._edges, self.counts
        for value in values:
            counts[bisect_left(edges, value)] += 1
        self._sum += sum(values)
        if trace_ids:
            now = time()
            for index, trace_id in trace_ids.items():
                value = values[index]
                self.exemplars[bisect_left(edges, value)] = Exemplar(trace_id, value * self.unit, now)

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    @property
    def total(self) -> float:
        """Sum of the observed values, in the unit of the bounds."""
        return self._sum * self.unit
