"""The gateway's counters: requests by outcome with their latency, and what was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

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


class QueueView(Protocol):
    """What a gateway knows of one model's queue."""

    @property
    def count(self) -> int:
        """Requests of this gateway in flight."""

    @property
    def known_backlog(self) -> int:
        """Requests that wait, those of others included."""

    @property
    def drain_rate(self) -> float:
        """Rows of this gateway that are answered a second while there is a backlog; 0 when not known."""


class GatewayStats:
    """Counters and latency histograms of one gateway process; all methods are called by one thread.

    Args:
        is_known: whether a model of that name exists. Asked only when a name is seen for the first time, and
            for each request that names an unknown one.
        queues: what is in flight and what waits, by model; asked when metrics are scraped, from another
            thread.

    Attributes:
        dropped: answers that came for no request: late or second ones, and what cannot be read.
        resent: requests published again, after a lost connection or a refusal of the broker.
    """

    __slots__ = ("_is_known", "dropped", "first_responses", "frames", "queues", "requests", "resent")

    def __init__(
        self,
        is_known: Callable[[str], bool],
        *,
        queues: Callable[[], Mapping[str, QueueView]] = dict[str, QueueView],
    ) -> None:
        self._is_known = is_known
        self.queues = queues
        self.requests: dict[RequestKey, Histogram] = {}
        self.frames: dict[str, Frames] = {}
        self.first_responses: dict[tuple[str, str], Histogram] = {}
        self.dropped = 0
        self.resent = 0

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

    def record_first(self, model: str, protocol: str, seconds: float) -> None:
        """Count the first of many responses to a request for a known model, which took so many seconds."""
        latency = self.first_responses.get((model, protocol))
        if latency is None:
            latency = self.first_responses[model, protocol] = Histogram(DURATION_SECONDS)
        latency.observe(seconds)

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
        for first in [first for first in self.first_responses if first[0] == model]:
            del self.first_responses[first]

    def _latency(self, model: str, protocol: str, outcome: str) -> Histogram:
        latency = self.requests.get((model, protocol, outcome))
        if latency is None:
            label = model if self._is_known(model) else UNKNOWN_MODEL
            latency = self.requests.setdefault((label, protocol, outcome), Histogram(DURATION_SECONDS))
        return latency
