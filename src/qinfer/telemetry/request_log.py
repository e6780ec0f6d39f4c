"""One structured log line a request.

The event loop only appends a tuple; a thread renders and writes them a few times a second, many in one write,
so that neither formatting nor a slow reader of the log holds up requests. A role without it holds None.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from time import time
from typing import NamedTuple

from qinfer.telemetry.logs import LogHandler, json_line, text_fields, timestamp

logger = logging.getLogger(__name__)

_NAME = "qinfer.request"
_COALESCE_SECONDS = 0.05
_CHUNK = 1024


class _Line(NamedTuple):
    created: float
    request_id: str
    model: str
    version: str
    protocol: str
    status: int
    outcome: str
    rows: int
    queue_us: int
    compute_us: int
    total_us: int
    trace_id: str


class RequestLog:
    """Writes request lines through the handler of `configure_logging`.

    Args:
        handler: where they go, in its format.
        max_lines: lines held at most; when the reader is too slow, further ones are dropped, counted in
            `dropped`, and the loss is logged.
    """

    def __init__(self, handler: LogHandler, *, max_lines: int = 16384) -> None:
        self.dropped = 0
        self._handler = handler
        self._max_lines = max_lines
        self._lines: deque[_Line] = deque()
        self._reported = 0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self._thread.start()

    def record(
        self,
        *,
        request_id: str,
        model: str,
        protocol: str,
        status: int,
        outcome: str,
        version: str = "",
        rows: int = 0,
        queue_us: int = 0,
        compute_us: int = 0,
        total_us: int = 0,
        trace_id: str = "",
    ) -> None:
        """Log one finished request; never blocks.

        Args:
            request_id: the caller's identifier.
            model, version: as answered; version empty when no worker answered.
            protocol: "http", "grpc", ...
            status: HTTP or gRPC status code, as `protocol` says.
            outcome: "ok" or the reason of the error.
            rows: rows of the request.
            queue_us, compute_us, total_us: time in the queue, in the worker's computation, and in all.
            trace_id: 32 hex digits, where the request has a trace context.
        """
        if len(self._lines) >= self._max_lines:
            self.dropped += 1
            return
        self._lines.append(
            _Line(
                time(), request_id, model, version, protocol, status, outcome,
                rows, queue_us, compute_us, total_us, trace_id,
            )
        )  # fmt: skip
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout: float = 2.0) -> bool:
        """Write what is held, within `timeout` seconds, and stop; call it off the event loop.

        Returns:
            Whether everything was written in time.
        """
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            # Let lines gather: waking up for each would cost the event loop more than writing them does.
            self._stop.wait(_COALESCE_SECONDS)
            self._wake.clear()
            self._drain()
        self._drain()

    def _drain(self) -> None:
        while self._lines:
            count = min(len(self._lines), _CHUNK)
            chunk = "".join(self._render(self._lines.popleft()) for _ in range(count))
            try:
                self._handler.write(chunk)
            except (OSError, ValueError) as error:  # the reader has gone, or the stream is closed
                self.dropped += count
                logger.warning("request log: %d lines lost: %s", count, error)
        if self.dropped > self._reported:
            logger.warning("request log: %d lines dropped so far", self.dropped)
            self._reported = self.dropped

    def _render(self, line: _Line) -> str:
        fields = line._asdict()
        created = timestamp(fields.pop("created"))
        identity = self._handler.identity
        # Zero is a value, an empty text is none.
        fields = {name: value for name, value in fields.items() if value != ""}
        if self._handler.log_format == "json":
            return json_line({"ts": created, "level": "info", "logger": _NAME, **identity, **fields}) + "\n"
        return f"{created} INFO    {'/'.join(identity.values())} {_NAME}: {text_fields(fields)}\n"
