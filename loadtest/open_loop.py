"""Requests at random times of their own, whether or not earlier ones are answered.

A closed loop waits for its answers and so can never overload a server. Latencies are counted from the time a
request was due, not from when the generator came round to send it.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING

from qinfer.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_MAX_CONNECTIONS = 4096
_PATIENCE = 60.0  # seconds that answers may take after the last request
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_REASON = re.compile(rb"\r\nx-qinfer-reason: (\S+)\r\n")
_POLL_SECONDS = 0.02
_BURST = 32  # requests sent without a look at answers, at most
_REFUSED = 429
_WARMED = 64  # connections opened before the first request

OK = "ok"
"""Outcome of an answer; that of an error is its reason."""


class Tally:
    """Outcomes of requests.

    Attributes:
        sent: requests.
        outcomes: how many ended how.
        accepted: seconds to the end of each request that was not refused with 429.
        good: requests answered within their deadline.
        lateness: seconds that requests were sent after they were due, at most.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.good = 0
        self.lateness = 0.0
        self.outcomes: Counter[str] = Counter()
        self.accepted: list[float] = []

    @property
    def ended(self) -> int:
        return self.outcomes.total()

    def percentile(self, share: float) -> float:
        """Seconds within which that share of the accepted requests ended; 0 when there is none."""
        ordered = sorted(self.accepted)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class _Connection(asyncio.Protocol):
    """One HTTP connection with one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._ended: Callable[[int, str], None] | None = None

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes, ended: Callable[[int, str], None]) -> None:
        """Send a request; `ended` is called with the status and outcome of its answer, 0 without one."""
        assert self._transport is not None
        self._ended = ended
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        head = buffer.find(b"\r\n\r\n")
        length = _LENGTH.search(buffer, 0, head + 2)
        if head < 0 or length is None or len(buffer) < head + 4 + int(length[1]):
            return
        self._buffer = b""
        reason = _REASON.search(buffer, 0, head + 2)
        self._end(int(buffer[9:12]), reason[1].decode() if reason else OK)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's)
        self._transport = None
        self._end(0, "connection_lost")

    def _end(self, status: int, outcome: str) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(status, outcome)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class OpenLoop:
    """Offers one request over and over to a server of this host. A context manager.

    Args:
        port: of its HTTP front.
        path: of the inference route.
        body: JSON.
        deadline: seconds that each request is given, from when it is sent.
        seed: of the times of arrival.
    """

    def __init__(self, port: int, path: str, body: bytes, *, deadline: float, seed: int = 1) -> None:
        self._port = port
        self._deadline = deadline
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"x-qinfer-timeout-ms: {deadline * 1000:.3f}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._random = random.Random(seed)
        self._idle: list[_Connection] = []
        self._connections: list[_Connection] = []
        self._opening: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> OpenLoop:
        self._idle += [await self._connect() for _ in range(_WARMED)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._opening:
            task.cancel()
        for connection in self._connections:
            connection.close()

    async def offer(self, rate: float, seconds: float, tally: Tally) -> None:
        """Send requests at exponentially distributed intervals. Returns when the last one is due.

        Args:
            rate: requests a second, in the mean.
            seconds: for how long.
            tally: gets the outcomes, which may come after the return.

        Raises:
            Unavailable: the server answers so slowly that thousands of connections do not suffice.
        """
        begin = due = perf_counter()
        while (due := due + self._random.expovariate(rate)) < begin + seconds:
            wait = due - perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            elif tally.sent % _BURST == 0:
                await asyncio.sleep(0)  # late: but answers have to be read, too
            self._send(due, tally)

    async def closed(self, callers: int, seconds: float) -> float:
        """Requests a second that are answered when that many callers ask one after the other."""
        tally = Tally()
        begin = perf_counter()

        def next_one() -> None:
            if perf_counter() < begin + seconds:
                self._send(perf_counter(), tally, next_one)

        for _ in range(callers):
            next_one()
        await asyncio.sleep(seconds)
        rate = tally.outcomes[OK] / (perf_counter() - begin)
        await self.settle(tally)
        return rate

    async def settle(self, tally: Tally) -> None:
        """Wait until all that was sent has ended.

        Raises:
            Unavailable: it does not.
        """
        give_up = perf_counter() + _PATIENCE
        while tally.ended < tally.sent:
            if perf_counter() > give_up:
                raise Unavailable(f"{tally.sent - tally.ended} requests were never answered")
            await asyncio.sleep(_POLL_SECONDS)

    def _send(self, due: float, tally: Tally, then: Callable[[], None] | None = None) -> None:
        tally.sent += 1
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                self._ask(connection, due, tally, then)
                return
        task = asyncio.ensure_future(self._open(due, tally, then))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, due: float, tally: Tally, then: Callable[[], None] | None) -> None:
        try:
            connection = await self._connect()
        except (OSError, Unavailable):  # the machine stood still, and all that was due came at once
            tally.outcomes["not_connected"] += 1
            return
        self._ask(connection, due, tally, then)

    async def _connect(self) -> _Connection:
        self._connections = [connection for connection in self._connections if connection.usable]
        if len(self._connections) >= _MAX_CONNECTIONS:
            raise Unavailable(f"{_MAX_CONNECTIONS} connections do not suffice for the requests in flight")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        self._connections.append(connection)
        return connection

    def _ask(
        self, connection: _Connection, due: float, tally: Tally, then: Callable[[], None] | None
    ) -> None:
        sent = perf_counter()
        tally.lateness = max(tally.lateness, sent - due)

        def ended(status: int, outcome: str) -> None:
            now = perf_counter()
            tally.outcomes[outcome] += 1
            if status != _REFUSED:
                tally.accepted.append(now - due)
            if outcome == OK and now - sent <= self._deadline:
                tally.good += 1
            self._idle.append(connection)
            if then is not None:
                then()

        connection.send(self._request, ended)
