"""uvicorn's HTTP/1.1 protocol with a fast path for `infer`.

`POST /v2/models/{model}[/versions/{version}]/infer` is answered here, without a task, an ASGI scope or a
future; every other request goes the base class's way to the ASGI application. An exchange of the fast path
takes the place of the base class's request cycle, so keep-alive, pipelining order, drain at shutdown and TLS
stay uvicorn's.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any, NamedTuple
from urllib.parse import unquote

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from qinfer_gateway.http.exchange import WANTED_HEADERS, Exchange, HttpFront

_INFER = re.compile(rb"/v2/models/([^/?]+)(?:/versions/([^/?]+))?/infer(?:\?.*)?")
_MAX_ROUTES = 1024
_DISCARD_SECONDS = 2.0
_BUSY = float("inf")
_UNPLAIN = frozenset((b"transfer-encoding", b"expect", b"upgrade"))

Route = tuple[str, str]


class KnownHead(NamedTuple):
    """The head of an infer request as the parser understood it.

    A client that keeps its connection sends the same bytes before every body. Where a request comes whole in
    one read and begins with the very bytes the parser has accepted before, its verdict is used again; any
    other byte, and the parser reads.
    """

    raw: bytes
    size: int  # of the whole request
    route: Route
    headers: dict[bytes, bytes]


class InferProtocol(HttpToolsProtocol):
    """One HTTP connection."""

    front: HttpFront  # set by `make_protocol`
    # The current request: one of uvicorn's cycles, or an exchange of the fast path.
    cycle: Any
    pipeline: deque[Any]

    _routes: dict[bytes, Route | None] = {}  # noqa: RUF012 (shared by all connections on purpose)

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._busy_until = 0.0
        self._discarding = False
        self._known: KnownHead | None = None
        self._messages = 0  # that the parser has begun
        self._between = True  # the parser is at the end of a message, or has seen none

    # Parsing

    def data_received(self, data: bytes) -> None:
        known = self._known
        if (
            known is not None
            and len(data) == known.size
            and data.startswith(known.raw)
            and self._between
            and self.cycle.response_complete
            and not self._discarding
        ):
            self._busy_until = _BUSY
            exchange = Exchange(self, self.front, known.route, self.loop.time(), known.headers)
            self.cycle = exchange
            exchange.start(data[len(known.raw) :])
        elif not self._discarding:
            messages, whole = self._messages + 1, self._between
            super().data_received(data)
            if whole and self._between and self._messages == messages:
                self._remember(data)

    def _remember(self, data: bytes) -> None:
        """Keep the head of a request that was all of one read."""
        exchange = self.cycle
        if not isinstance(exchange, Exchange) or not exchange.keep_alive:
            self._known = None
            return
        if any(name in _UNPLAIN for name, _ in self.headers) or not exchange.received:
            return
        head = data[: len(data) - exchange.received]
        self._known = KnownHead(head, len(data), exchange.route, exchange.headers)

    def on_message_begin(self) -> None:
        # The base class makes the ASGI scope here; the fast path has no use for it.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._messages += 1
        self._between = False

    def on_headers_complete(self) -> None:
        route = _route(self._routes, self.url) if self.parser.get_method() == b"POST" else None
        if route is None:
            self._base_headers_complete()
            return
        headers = {name: value for name, value in self.headers if name in WANTED_HEADERS}
        exchange = Exchange(self, self.front, route, self.loop.time(), headers)
        exchange.keep_alive = self.parser.should_keep_alive()
        exchange.expects_continue = self.expect_100_continue
        exchange.check_length()
        existing = self.cycle
        self.cycle = exchange
        if existing is not None and not existing.response_complete:
            # Pipelined: its turn comes when the one before it is answered.
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))
        else:
            exchange.on_turn()

    def _base_headers_complete(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        exchange = self.cycle
        if isinstance(exchange, Exchange):
            if not exchange.response_complete:
                exchange.on_body(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._between = True
        exchange = self.cycle
        if isinstance(exchange, Exchange):
            if not exchange.response_complete:
                exchange.on_complete()
        else:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            cycle.on_turn()
        else:
            super()._start_asgi_task(cycle, app)

    # Keep-alive: one timer a connection that looks when it was last used, not one a request.

    def _unset_keepalive_if_required(self) -> None:
        self._busy_until = _BUSY

    def exchange_done(self, exchange: Exchange) -> None:
        """An exchange's response was written."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if not exchange.keep_alive:
            self._close_gently(exchange)
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._busy_until = self.loop.time() + self.timeout_keep_alive
        if self.timeout_keep_alive_task is None:
            self._watch_idle(self._busy_until)

    def on_response_complete(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        super().on_response_complete()

    def _watch_idle(self, until: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_at(until, self._idle_check)

    def _idle_check(self) -> None:
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self._busy_until <= now:
            self.transport.close()
        else:
            self._watch_idle(min(self._busy_until, now + self.timeout_keep_alive))

    def _close_gently(self, exchange: Exchange) -> None:
        """Close after an answer that came before the whole body was read.

        Closing a socket with unread data resets the connection, and the client would lose the answer: so the
        rest is read and dropped for a moment.
        """
        if exchange.body_complete:
            self.transport.close()
            return
        self._discarding = True
        self.flow.resume_reading()
        self.loop.call_later(_DISCARD_SECONDS, self.transport.close)

    # Connection

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        for cycle in (self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if isinstance(cycle, Exchange):
                cycle.on_disconnect()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        exchange = self.cycle
        if isinstance(exchange, Exchange) and not exchange.response_complete:
            exchange.keep_alive = False
        else:
            super().shutdown()


def _route(routes: dict[bytes, Route | None], url: bytes) -> Route | None:
    """Model and version of an infer URL; None for any other URL."""
    try:
        return routes[url]
    except KeyError:
        pass
    match = _INFER.fullmatch(url)
    if match is None:
        return None
    route = (_text(match[1]), _text(match[2] or b""))
    if len(routes) >= _MAX_ROUTES:
        routes.clear()
    routes[url] = route
    return route


def _text(raw: bytes) -> str:
    return unquote(raw.decode("ascii", "replace"), errors="replace")


def make_protocol(front: HttpFront) -> type[InferProtocol]:
    """The protocol class for uvicorn's `http` option, bound to a gateway."""
    return type("BoundInferProtocol", (InferProtocol,), {"front": front, "_routes": {}})
