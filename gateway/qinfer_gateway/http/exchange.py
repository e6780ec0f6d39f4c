"""One `infer` request on one HTTP connection: from its headers to its response."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from qinfer.errors import InternalError, InvalidRequest, PayloadTooLarge, QInferError, Unavailable
from qinfer.headers import JSON_LENGTH
from qinfer.keys import Permission
from qinfer.message import Response, ResponseFrame
from qinfer_gateway.auth.access import CHALLENGE, CREDENTIAL_HEADERS, Access
from qinfer_gateway.auth.principal import Principal
from qinfer_gateway.catalog import Target
from qinfer_gateway.dispatcher import Call
from qinfer_gateway.http.codec import InferBody, decode_body, encode_body
from qinfer_gateway.http.compression import MIN_SIZE, accepted, compress, decompress
from qinfer_gateway.http.deadline import HEADER as TIMEOUT_HEADER
from qinfer_gateway.http.deadline import read_timeout
from qinfer_gateway.http.front import HttpFront
from qinfer_gateway.http.jsondata import encode_json
from qinfer_gateway.http.prefer import JOB_HEADERS, PREFER
from qinfer_gateway.idempotency import KEY_HEADER, set_key
from qinfer_gateway.refusal import metadata

if TYPE_CHECKING:
    from qinfer_gateway.http.protocol import InferProtocol

logger = logging.getLogger(__name__)

OFF_LOOP_BYTES = 64 * 1024
"""Bodies above this many bytes are converted in a thread, so that they do not hold up the others."""

_MAX_DIGITS = 18
_MAX_CHUNKS = 1024  # a body that trickles in by bytes takes no more memory than its bytes
_HEADER_LENGTH = JSON_LENGTH.encode()
_KEY = KEY_HEADER.encode()
_TIMEOUT = TIMEOUT_HEADER.encode()
WANTED_HEADERS = frozenset(
    (
        _HEADER_LENGTH,
        _KEY,
        b"content-length",
        b"content-encoding",
        b"accept-encoding",
        _TIMEOUT,
        b"traceparent",
        b"tracestate",
        PREFER,
        *JOB_HEADERS,
        *CREDENTIAL_HEADERS,
    )
)
_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
_BINARY_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
    b"inference-header-content-length: %d\r\ncontent-length: %d\r\n"
)


def wanted_headers(given: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Of a request's headers those that mean something here."""
    headers = {name: value for name, value in given if name in WANTED_HEADERS}
    if PREFER in headers:  # preferences may be spread over several lines
        headers[PREFER] = b",".join([value for name, value in given if name == PREFER])
    return headers


class _Nobody:
    """Stands for the event on which the base class's cycles wait; an exchange has nobody waiting."""

    def set(self) -> None:
        """Nobody waits."""


class Exchange(Call):
    """An infer exchange; in uvicorn's protocol it stands where a request cycle would."""

    __slots__ = (
        "_arriving",
        "_body",
        "_chunks",
        "_front",
        "_held",
        "_principal",
        "_protocol",
        "_target",
        "_turn",
        "_waiting",
        "body_complete",
        "disconnected",
        "expects_continue",
        "headers",
        "keep_alive",
        "received",
        "response_complete",
        "route",
    )

    protocol = "http"
    operation = "POST /v2/models/{model}/infer"
    message_event: ClassVar[_Nobody] = _Nobody()

    def __init__(
        self,
        protocol: InferProtocol,
        front: HttpFront,
        route: tuple[str, str],
        started: float,
        headers: dict[bytes, bytes],
    ) -> None:
        super().__init__(started)
        self._protocol = protocol
        self._front = front
        self.route = route
        self.headers = headers
        self._target: Target | None = None
        self._body: InferBody | None = None
        self._principal: Principal | None = None
        self._chunks: list[bytes | bytearray] = []
        self._arriving = 0
        self.received = 0
        self._turn = False
        self._waiting: asyncio.Task[None] | None = None
        self._held: tuple[bytes, bytes] | None = None
        self.body_complete = False
        self.disconnected = False
        self.expects_continue = False
        self.keep_alive = True
        self.response_complete = False

    def check_head(self) -> None:
        """Refuse what the head alone decides, before a body is read: credentials, and a length it tells."""
        length = self.headers.get(b"content-length")
        access = self._front.access
        try:
            if access is not None:
                self._identify(access).check_rate()
        except QInferError as error:
            self.break_off(error)
            return
        if length is not None and int(length) > self._front.max_body_bytes:
            self._too_large()

    def _identify(self, access: Access) -> Principal:
        principal = access.identify(self.headers, self._protocol.certificate, Permission.INFERENCE)
        principal.require_model(self.route[0])
        return principal

    # From the connection

    def on_turn(self) -> None:
        """The exchanges before this one on the connection are answered."""
        self._turn = True
        if self._held is not None:
            self.respond(self._held)
        elif self.body_complete:
            self.start(self._take_body())
        elif self.expects_continue:
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, chunk: bytes) -> None:
        if self._held is not None:
            return
        self._chunks.append(chunk)
        if len(self._chunks) > _MAX_CHUNKS:
            self._fold()
        front, size = self._front, len(chunk)
        self.received += size
        self._arriving += size
        front.arriving += size
        if self.received > front.max_body_bytes:
            self._too_large()
        elif front.arriving > front.max_arriving:
            arriving = front.arriving
            self.break_off(
                Unavailable(
                    f"{arriving} bytes of request bodies are arriving, as many as may", retry_after=1.0
                )
            )

    def on_complete(self) -> None:
        self.body_complete = True
        if self._turn and self._held is None:
            self.start(self._take_body())

    def _take_body(self) -> bytes:
        self._arrived()
        chunks, self._chunks = self._chunks, []
        only = chunks[0] if len(chunks) == 1 else None
        return only if isinstance(only, bytes) else b"".join(chunks)

    def _arrived(self) -> None:
        """The body is this exchange's no more: it goes on, or nobody wants it."""
        self._front.arriving -= self._arriving
        self._arriving = 0

    def _fold(self) -> None:
        first, *rest = self._chunks
        folded = first if isinstance(first, bytearray) else bytearray(first)
        folded += b"".join(rest)
        self._chunks = [folded]

    def break_off(self, error: QInferError) -> None:
        """The rest of the body will not be read: answer with an error, in turn, and end the connection."""
        self._arrived()
        self._chunks.clear()
        self.keep_alive = False
        self.reject(error)

    def on_disconnect(self) -> None:
        self._arrived()
        if not self.response_complete:
            self.disconnected = True
            self.response_complete = True
            self._front.dispatcher.abandon(self)
            if self._waiting is not None:
                self._waiting.cancel()

    def _too_large(self) -> None:
        limit = self._front.max_body_bytes
        self.break_off(PayloadTooLarge(f"request body is above the limit of {limit} bytes (--max-body)"))

    # Request

    def start(self, body: bytes) -> None:
        """Go on with the whole body, when it is this exchange's turn."""
        self._turn = self.body_complete = True
        access = self._front.access
        try:
            if access is not None:  # again: a key may have been revoked while the body came
                self._principal = self._identify(access)
                self._principal.take()
            catalog = self._front.catalog
            # A job can wait for a worker.
            find = catalog.known if PREFER in self.headers else catalog.find
            target = self._target = find(*self.route)
            # What a compressed body decodes to may be a thousand times its size.
            if len(body) > OFF_LOOP_BYTES or b"content-encoding" in self.headers:
                self._in_thread(partial(self._decode, target), body, self._submit)
                return
            decoded = self._decode(target, body)
        except QInferError as error:
            self.reject(error)
        else:
            self._submit(decoded)

    def _decode(self, target: Target, body: bytes) -> InferBody:
        headers = self.headers
        if b"content-encoding" in headers:
            coding = headers[b"content-encoding"].decode("latin-1").strip().lower()
            body = decompress(body, coding, self._front.max_body_bytes)
        length = headers.get(_HEADER_LENGTH)
        if length is not None and not (length.isdigit() and len(length) <= _MAX_DIGITS):
            raise InvalidRequest(
                f"Inference-Header-Content-Length is {length[:40].decode('latin-1')!r}; expected a number"
            )
        return decode_body(body, None if length is None else int(length), target)

    def _submit(self, body: InferBody) -> None:
        if self.response_complete or self._target is None:
            return
        self._body = body
        if self._principal is not None:
            self._principal.stamp(body.request)
        trace = self.headers.get(b"traceparent")
        if trace is not None:
            body.request.traceparent = trace.decode("latin-1")
            body.request.tracestate = self.headers.get(b"tracestate", b"").decode("latin-1")
        try:
            timeout = body.timeout
            if _TIMEOUT in self.headers:
                allowed = read_timeout(self.headers[_TIMEOUT])
                timeout = min(timeout, allowed) if timeout else allowed
            if PREFER in self.headers and self._deferred(body, timeout):
                return
            if _KEY in self.headers or self._front.ids_are_keys:
                self._set_key(body)
            self._front.dispatcher.submit(self, self._target, body.request, timeout=timeout)
        except QInferError as error:
            self.request_id = body.request.request_id
            self.reject(error)

    def _deferred(self, body: InferBody, timeout: float) -> bool:
        """Whether the request becomes a job, as its caller prefers."""
        deferred, target = self._front.deferred, self._target
        if deferred is not None and target is not None:
            self._waiting = deferred.take(self, target, body, self._principal, timeout)
        if self._waiting is None:
            self._front.catalog.find(*self.route)
        return self._waiting is not None

    def _set_key(self, body: InferBody) -> None:
        key = self.headers.get(_KEY)
        given = None if key is None else key.decode("latin-1")
        if self._target is not None:
            set_key(body.request, self._target, given, ids=self._front.ids_are_keys)

    def reject(self, error: QInferError) -> None:
        """Answer with an error before the request was submitted."""
        self._front.dispatcher.refused(self, self.route[0], error)
        self.failed(error)

    # Response

    def answered(self, frame: ResponseFrame, response: Response) -> None:
        size = sum([len(tensor.data) for tensor in response.outputs])
        if size > OFF_LOOP_BYTES:
            self._in_thread(lambda _: self._encode(frame, response), b"", self.respond)
            return
        try:
            encoded = self._encode(frame, response)
        except QInferError as error:
            self.failed(error)
        else:
            self.respond(encoded)

    def failed(self, error: QInferError) -> None:
        body = encode_json({"error": error.message})
        status = error.http_status
        phrase = "Client Closed Request" if status == 499 else HTTPStatus(status).phrase
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        for name, value in metadata(error):
            head += f"{name}: {value}\r\n"
        if status == 415:
            head += "accept-encoding: gzip, deflate\r\n"
        elif status == 401:
            head += f"www-authenticate: {CHALLENGE}\r\n"
        self.respond((head.encode(), body))

    def _encode(self, frame: ResponseFrame, response: Response) -> tuple[bytes, bytes]:
        """Head (without the blank line) and body of the response."""
        if self._body is None or self._target is None:  # both are set before a call is submitted
            raise InternalError("answer to a request that was never read")
        body, header_length = encode_body(self._target, frame.model_version, self._body, response)
        coding = ""
        if len(body) >= MIN_SIZE and b"accept-encoding" in self.headers:
            coding = accepted(self.headers[b"accept-encoding"])
            if coding:
                body = compress(body, coding)
        size = len(body)
        head = _JSON_HEAD % size if header_length is None else _BINARY_HEAD % (header_length, size)
        if coding:
            head += b"content-encoding: %s\r\nvary: accept-encoding\r\n" % coding.encode()
        return head, body

    def respond(self, encoded: tuple[bytes, bytes]) -> None:
        """Send head (without the blank line) and body, when it is this exchange's turn."""
        if self.response_complete:
            return
        if not self._turn:
            self._held = encoded  # answers leave in the order of their requests
            return
        self.response_complete = True
        head, body = encoded
        if self._front.leaving:
            self.keep_alive = False
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        if len(body) > OFF_LOOP_BYTES:
            self._protocol.transport.write(head + end)
            self._protocol.transport.write(body)  # not copied
        else:
            self._protocol.transport.write(b"".join((head, end, body)))
        self._protocol.exchange_done(self)

    # Threads

    def _in_thread(
        self, function: Callable[[bytes], Any], argument: bytes, then: Callable[[Any], None]
    ) -> None:
        """Run a conversion of a large body in a thread, then go on with its result on the loop."""
        future = asyncio.get_running_loop().run_in_executor(self._front.threads, function, argument)
        future.add_done_callback(lambda done: self._converted(done, then))

    def _converted(self, done: asyncio.Future[Any], then: Callable[[Any], None]) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled():
            self.failed(InternalError("the gateway stopped while it converted the request"))
        elif error is None:
            then(done.result())
        elif isinstance(error, QInferError):
            self.reject(error)
        else:
            logger.error("conversion of a body failed", exc_info=error)
            self.reject(InternalError("the gateway failed to convert the request"))
