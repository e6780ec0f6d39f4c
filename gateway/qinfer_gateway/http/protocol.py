"""uvicorn's HTTP/1.1 protocol with a fast path for `infer`.

`POST /v2/models/{model}[/versions/{version}]/infer` is answered here, without a task, an ASGI scope or a
future; every other request goes the base class's way to the ASGI application. An exchange of the fast path
takes the place of the base class's request cycle, so keep-alive, pipelining order, drain at shutdown and TLS
stay uvicorn's.
"""

from __future__ import annotations

from asyncio import Transport
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from qinfer.errors import HeadTooLarge, InvalidRequest, QInferError, Unavailable
from qinfer_gateway.auth.http import CERTIFICATE
from qinfer_gateway.http.exchange import Exchange, wanted_headers
from qinfer_gateway.http.front import HttpFront
from qinfer_gateway.http.jsondata import encode_json
from qinfer_gateway.http.limits import MIN_RATE
from qinfer_gateway.http.route import Route, infer_route
from qinfer_gateway.tls import certificate_names

_MAX_HEAD_BYTES = 64 * 1024
_DISCARD_SECONDS = 2.0
_MAX_HEADS = 1024
_MAX_KNOWN_HEAD = 2048
_MAX_TURNED_AWAY = 256  # connections above the limit that are told so, at once
# Not worth keeping, or not said by the head alone. Trace contexts and keys are new with every request.
_UNPLAIN = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"traceparent", b"idempotency-key"))
_FRAMING = (b"content-length", b"transfer-encoding")


class KnownHead:
    """The head of an infer request as the parser understood it.

    Clients send the same few heads again and again. Where a request comes whole in one read and its head is
    byte for byte one that the parser has accepted before, the parser's verdict is used again; any other byte,
    and the parser reads.
    """

    __slots__ = ("body", "headers", "route")

    def __init__(self, body: int, route: Route, headers: dict[bytes, bytes]) -> None:
        self.body = body  # its Content-Length
        self.route = route
        self.headers = headers


class InferProtocol(HttpToolsProtocol):
    """One HTTP connection."""

    front: HttpFront  # set by `make_protocol`
    certificate: Sequence[str] = ()
    """Names of the client's certificate, which TLS has verified."""
    # The current request: one of uvicorn's cycles, or an exchange of the fast path.
    cycle: Any
    pipeline: deque[Any]

    # Shared by all connections of a gateway on purpose.
    _routes: dict[bytes, Route | None] = {}  # noqa: RUF012
    _heads: dict[bytes, KnownHead] = {}  # noqa: RUF012

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._last_used = 0.0
        self._unsent = float("inf")  # bytes in the write buffer when the connection was last looked at
        self._discarding = False
        self._stalled = False  # answers wait for the client to read them: nothing further is started
        self._messages = 0  # that the parser has begun
        self._between = True  # the parser is at the end of a message, or has seen none
        self._in_head = False
        self._head_bytes = 0  # read since the head began, beyond the read it began in
        self._began = 0.0  # when the message that is being read began, or, before the first, the connection
        self._taken = 0  # bytes read since then
        self._reframing = False  # see `_decline_upgrade`

    # Parsing

    def data_received(self, data: bytes) -> None:
        body = data.find(b"\r\n\r\n") + 4
        known = self._heads.get(data[:body])
        if (
            known is not None
            and len(data) == body + known.body
            and self._between
            and (self.cycle is None or self.cycle.response_complete)
            and not self._discarding
            and not self._stalled
        ):
            exchange = Exchange(self, self.front, known.route, monotonic(), known.headers)
            self._last_used = exchange.started
            self.cycle = exchange
            exchange.start(data[body:])
        elif not self._discarding:
            messages, whole = self._messages + 1, self._between
            self._parse(data)
            if whole and self._between and self._messages == messages:
                self._remember(data)

    def _parse(self, data: bytes) -> None:
        self._last_used = self.loop.time()
        self._taken += len(data)
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(InvalidRequest(f"not a valid HTTP/1.1 request: {error}"))
        else:
            if self._in_head and self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(
                    HeadTooLarge(f"the head of the request is above the limit of {_MAX_HEAD_BYTES} bytes")
                )

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 with a client that offers another protocol, as Java's does with h2c.

        The parser takes the offer for accepted and skips the body. A new one is given the request's framing,
        and then what follows.
        """
        framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in _FRAMING]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._reframing = True
        self._parse(b"".join((b"POST / HTTP/1.1\r\n", *framing, b"\r\n", rest)))

    def _refuse(self, error: QInferError) -> None:
        """Nothing further can be understood: say so once what was asked before is answered, and end."""
        self._discarding = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            body = encode_json({"error": error.message})
            head = (
                b"content-type: application/json\r\ncontent-length: %d\r\nx-qinfer-reason: %s\r\n"
                b"connection: close\r\n" % (len(body), error.reason.encode())
            )
            if error.retry_after is not None:
                head += b"retry-after: %d\r\n" % max(1, round(error.retry_after))
            head += b"\r\n"
            self.transport.write(b"".join((STATUS_LINE[error.http_status], head, body)))
            self._linger()
        elif isinstance(cycle, Exchange) and not cycle.body_complete:
            cycle.break_off(error)
        else:
            cycle.keep_alive = False

    def _remember(self, data: bytes) -> None:
        """Keep the head of a request that was all of one read."""
        exchange = self.cycle
        if not isinstance(exchange, Exchange) or not exchange.keep_alive or not exchange.received:
            return
        head = data[: len(data) - exchange.received]
        if len(head) > _MAX_KNOWN_HEAD or any(name in _UNPLAIN for name, _ in self.headers):
            return
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[head] = KnownHead(exchange.received, exchange.route, exchange.headers)

    def on_message_begin(self) -> None:
        # The base class makes the ASGI scope here; the fast path has no use for it.
        if self._reframing:
            return
        self._in_head = True
        self._head_bytes = 0
        self._began = self._last_used
        self._taken = 0
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._messages += 1
        self._between = False

    def on_url(self, url: bytes) -> None:
        if not self._reframing:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._reframing:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._reframing:
            self._reframing = False
            return
        self._in_head = False
        route = infer_route(self._routes, self.url) if self.parser.get_method() == b"POST" else None
        if route is None:
            self._base_headers_complete()
            return
        headers = wanted_headers(self.headers)
        exchange = Exchange(self, self.front, route, monotonic(), headers)
        # A client of 1.0 reads until the end, unless it is told in its own terms that there is none.
        modern = self.parser.get_http_version() != "1.0"
        exchange.keep_alive = modern and self.parser.should_keep_alive()
        exchange.expects_continue = modern and self.expect_100_continue
        exchange.check_head()
        existing = self.cycle
        self.cycle = exchange
        if self._stalled or (existing is not None and not existing.response_complete):
            # Pipelined: its turn comes when the one before it is answered.
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))
        else:
            exchange.on_turn()

    def _base_headers_complete(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        if self.certificate:
            self.scope["state"][CERTIFICATE] = self.certificate
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()
        if not self.pipeline:
            self._stalled = False  # this request has the turn: it goes on with the next itself

    def on_body(self, body: bytes) -> None:
        exchange = self.cycle
        if isinstance(exchange, Exchange):
            if not exchange.response_complete:
                exchange.on_body(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # only the parser believes so: see `_decline_upgrade`
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

    # One exchange after the other

    def exchange_done(self, exchange: Exchange) -> None:
        """An exchange's response was written."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if not exchange.keep_alive:
            if exchange.body_complete:
                self.transport.close()
            else:
                self._linger()
            return
        self._last_used = self.loop.time()
        if self.flow.write_paused:
            self._stalled = True
            self.flow.pause_reading()
        else:
            self._next()

    def _next(self) -> None:
        """Let the next request have its turn; read further ones only when none waits."""
        if not self.pipeline:
            self.flow.resume_reading()
            return
        cycle, app = self.pipeline.pop()
        if not self.pipeline:
            self.flow.resume_reading()
        self._start_asgi_task(cycle, app)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled = False
            self._next()

    def on_response_complete(self) -> None:
        self._stop_watching()
        super().on_response_complete()
        if self.transport.is_closing():
            return
        self._last_used = self.loop.time()
        if self.pipeline:
            self.flow.pause_reading()
        self._stop_watching()  # the base class's timer knows only of idleness
        self._watch(self._last_used + self.timeout_keep_alive)

    def _linger(self) -> None:
        """Close after an answer that came before everything was read.

        Closing a socket with unread data resets the connection, and the client would lose the answer: so the
        rest is read and dropped for a moment.
        """
        self._discarding = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_DISCARD_SECONDS, self.transport.close)

    # Keep-alive: one timer a connection that looks when it was last used, not one a request. It also ends
    # connections that stop in the middle of a request, or do not read their answers.

    def _unset_keepalive_if_required(self) -> None:
        """The timer runs for as long as the connection."""

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        if self._at_work() or 0 < unsent < self._unsent:
            self._last_used = self._began = now
        elif self.flow.read_paused:
            self._began = now  # it is not the client who is slow
        self._unsent = unsent or float("inf")
        due = min(self._last_used + self.timeout_keep_alive, self._received_by())
        if due > now:
            self._watch(due)
        elif unsent:
            self.transport.abort()
        else:
            self.transport.close()

    def _received_by(self) -> float:
        """When the message that is being read must be there, however steadily it trickles in."""
        if self._between and self.cycle is not None:
            return float("inf")
        return self._began + self.front.limits.receive + self._taken / MIN_RATE

    def _at_work(self) -> bool:
        """Whether a request that has been read is being answered."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(cycle.body_complete if isinstance(cycle, Exchange) else not cycle.more_body)

    def _watch(self, until: float) -> None:
        # A message may begin meanwhile, and has less time than idleness has.
        until = min(until, self.loop.time() + self.front.limits.receive)
        self.timeout_keep_alive_task = self.loop.call_at(until, self.timeout_keep_alive_handler)

    def _stop_watching(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    # Connection

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._began = self._last_used = self.loop.time()
        self._watch(self._last_used + self.timeout_keep_alive)
        encrypted = transport.get_extra_info("ssl_object")
        if encrypted is not None:
            self.certificate = certificate_names(encrypted.getpeercert())
        over = len(self.connections) - self.front.limits.connections
        if over > _MAX_TURNED_AWAY:
            transport.abort()
        elif over > 0:
            self._refuse(
                Unavailable(
                    f"this gateway has {self.front.limits.connections} connections, as many as it may",
                    retry_after=1.0,
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
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


def make_protocol(front: HttpFront) -> type[InferProtocol]:
    """The protocol class for uvicorn's `http` option, bound to a gateway."""
    return type("BoundInferProtocol", (InferProtocol,), {"front": front, "_routes": {}, "_heads": {}})
