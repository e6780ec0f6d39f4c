"""The gateway's counters: requests by outcome with their latency, and what was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from qinfer.telemetry.histogram import DURATION_SECONDS, POWERS_OF_TWO, Histogram

OK = "ok"
"""Outcome of a request that was answered; any other outcome is the reason of its error."""

UNKNOWN_MODEL = ""
"""Model label of requests for models that do not exist: names clients make up never become labels."""


RequestKey: TypeAlias = tuple[str, str, str]
"""What requests are counted by: model, protocol, outcome."""


class Frames:
    """What was published for one model: sizes of the frames, in rows and in requests."""

    __slots__ = ("requests", "rows")

    def __init__(self) -> None:
        self.rows = Histogram(POWERS_OF_TWO)
        self.requests = Histogram(POWERS_OF_TWO)


class GatewayStats:
    """Counters and latency histograms of one gateway process; all methods are called by one thread.

    Args:
        is_known: whether a model of that name exists. Asked only when a name is seen for the first time, and
            for each request that names an unknown one.
        in_flight: requests published and not yet answered, by model; asked when metrics are scraped, from
            another thread.
    """

    __slots__ = ("_is_known", "frames", "in_flight", "requests")

    def __init__(
        self, is_known: Callable[[str], bool], *, in_flight: Callable[[], Mapping[str, int]] = dict[str, int]
    ) -> None:
        self._is_known = is_known
        self.in_flight = in_flight
        self.requests: dict[RequestKey, Histogram] = {}
        self.frames: dict[str, Frames] = {}

    def record(self, model: str, protocol: str, outcome: str, seconds: float, trace_id: str = "") -> None:
        """Count one finished request.

        Args:
            model: as the client named it; an unknown name is counted under `UNKNOWN_MODEL`.
            protocol: "http", "grpc", "nats", "kafka" or "job".
            outcome: `OK`, or the reason of the error it was answered with.
            seconds: from its arrival to its answer.
            trace_id: its trace, when it is sampled (32 hex digits).
        """
        latency = self.requests.get((model, protocol, outcome))
        if latency is None:
            latency = self._latency(model, protocol, outcome)
        latency.observe(seconds, trace_id)

    def record_many(self, model: str, protocol: str, outcome: str, seconds: Sequence[float]) -> None:
        """Count requests that finished together, such as those of one response frame."""
        self._latency(model, protocol, outcome).observe_many(seconds)

    def record_frame(self, model: str, *, requests: int, rows: int) -> None:
        """Count one frame published for a known model."""
        frames = self.frames.get(model)
        if frames is None:
            frames = self.frames[model] = Frames()
        frames.requests.observe(requests)
        frames.rows.observe(rows)

    def forget(self, model: str) -> None:
        """Drop the series of a model that was removed for good."""
        self.frames.pop(model, None)
        for key in [key for key in self.requests if key[0] == model]:
            del self.requests[key]

    def _latency(self, model: str, protocol: str, outcome: str) -> Histogram:
        latency = self.requests.get((model, protocol, outcome))
        if latency is None:
            label = model if self._is_known(model) else UNKNOWN_MODEL
            latency = self.requests.setdefault((label, protocol, outcome), Histogram(DURATION_SECONDS))
        return latency
