"""The message: what travels on the bus between gateway, workers and clients in any language.

A bus message is a frame: a MessagePack array that holds 1..N requests for one model, or the responses to
them. `docs/protocol.md` is the specification, `tests/vectors/` holds byte-level examples. Every struct here
is encoded as an array in field order; a reader ignores extra trailing fields and takes defaults for missing
ones, so fields are only ever appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from qinfer.datatypes import Array, datatype_of, to_numpy, to_raw
from qinfer.errors import MalformedMessage, QInferError, UnsupportedVersion, from_reason

PROTOCOL_VERSION = 1
CONTENT_TYPE = "application/vnd.qinfer.frame+msgpack; version=1"

FINAL = 1
"""Bit of `Response.flags`: no further response follows for this request."""

KEPT = 2
"""Bit of `Response.flags`: the blob of its claim is kept for who asks again, and removed by nobody."""

END = 4
"""Bit of `Response.flags`, with `FINAL`: this is no response of the model, only says that none follows."""

MAX_ERROR = 8192
"""Longest message of an error on the wire, in characters; longer ones are cut.

A model may raise whatever it likes, and what is above the broker's `max_payload` would reach nobody.
"""

if TYPE_CHECKING:
    Buffer: TypeAlias = bytes | memoryview
else:
    # Decoded as a view into the received message, so that a tensor is never copied on the way in.
    Buffer = memoryview


class Tensor(msgspec.Struct, array_like=True, gc=False):
    """One named tensor in its raw form (see `qinfer.datatypes`)."""

    name: str
    datatype: str
    shape: list[int]
    data: Buffer

    @classmethod
    def from_numpy(cls, name: str, array: Array, datatype: str | None = None) -> Tensor:
        """Wrap an array without copying where it is contiguous. `datatype` tells BF16 from UINT16.

        Raises:
            InvalidRequest: the array's dtype has no counterpart in the protocol.
        """
        kind = datatype or datatype_of(array)
        return cls(name, kind, list(array.shape), to_raw(kind, array))

    def numpy(self) -> Array:
        """View the data as an array.

        Raises:
            InvalidRequest: unknown datatype, or the size does not fit the shape.
        """
        return to_numpy(self.datatype, self.shape, self.data)


class Request(msgspec.Struct, array_like=True, gc=False):
    """One inference request.

    Attributes:
        id: correlation number, unique among the sender's requests in flight.
        request_id: the caller's own identifier, echoed in answers, logs and traces.
        inputs: input tensors; with batching, the first dimension is the request's rows.
        outputs: names of the wanted outputs; empty for all.
        deadline_us: absolute deadline, Unix time in microseconds of the sender's clock; 0 for none.
        parameters: free-form values handed to the model.
        priority: 0 for the model's default, 1 for the highest.
        tenant: whom the request is accounted to.
        attempt: how often the sender itself had published the request before.
        traceparent: W3C trace context; empty when the request is not traced.
        tracestate: W3C trace state.
        claim: name of the blob that holds the inputs' data, whose `data` are empty then (see `encode_claim`).
        idempotency: name under which the answer is kept for who asks again; empty for none.
        claim_bytes: size of that blob.
        fingerprint: told back in the answer, so that who finds it kept knows which request it answers.
        window: responses that may be on their way before the sender tells, in a `CancelFrame`, how many it
            has taken; 0 for a sender that takes everything at once. Of interest to decoupled models only.
    """

    id: int
    request_id: str
    inputs: list[Tensor]
    outputs: list[str] = []
    deadline_us: int = 0
    parameters: dict[str, Any] = {}
    priority: int = 0
    tenant: str = ""
    attempt: int = 0
    traceparent: str = ""
    tracestate: str = ""
    claim: str = ""
    idempotency: str = ""
    claim_bytes: int = 0
    fingerprint: str = ""
    window: int = 0


class RequestFrame(msgspec.Struct, array_like=True, gc=False):
    """1..N requests from one sender for one model.

    Attributes:
        version: protocol version; the first element of every frame in every version.
        reply_to: subject the responses are published on; the second element in every version.
        model: name of the model.
        model_version: the wanted version as a decimal number; empty for the one the worker serves.
        sent_us: when the frame was published, Unix time in microseconds of the sender's clock.
        in_flight: the sender's requests in flight for this model, these included; 0 when unknown. A worker
            need not hold a batch open for company that cannot come.
        requests: the requests.
    """

    version: int
    reply_to: str
    model: str
    model_version: str
    sent_us: int
    in_flight: int
    requests: list[Request]


class WireError(msgspec.Struct, array_like=True, gc=False):
    """An error as it travels: `reason` names the class in `qinfer.errors`."""

    reason: str
    message: str
    retry_after: float | None = None

    @classmethod
    def of(cls, error: QInferError) -> WireError:
        message = error.message
        if len(message) > MAX_ERROR:
            message = f"{message[:MAX_ERROR]}… ({len(message)} characters)"
        # Model code may put anything into a message: half a surrogate pair has no UTF-8.
        message = message.encode(errors="backslashreplace").decode()
        return cls(error.reason, message, error.retry_after)

    def exception(self) -> QInferError:
        return from_reason(self.reason, self.message, self.retry_after)


class BatchInfo(msgspec.Struct, array_like=True, gc=False):
    """The batch the responses of a frame were computed in; durations in nanoseconds."""

    rows: int = 0
    requests: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0


class Response(msgspec.Struct, array_like=True, gc=False):
    """One response to one request.

    Attributes:
        id: the request's correlation number.
        attempt: which delivery of the request this answers, from 1. The first response to arrive wins.
        error: why there are no outputs; None when there are.
        outputs: output tensors.
        parameters: values the model returned beside its tensors.
        flags: bit 0 (`FINAL`) marks the last response to a request, bit 1 (`KEPT`) a blob not to be removed,
            bit 2 (`END`) a last one that has nothing in it.
        queue_us: microseconds from the request's arrival at the worker to the start of its batch.
        claim: name of the blob that holds the outputs' data, whose `data` are empty then. Whoever has read it
            removes it, unless it is `KEPT`.
        claim_bytes: size of that blob.
        fingerprint: the request's.
        index: its place among the responses to this request, from 0. A request that is delivered again is
            answered from the start: a receiver drops what it has had.
    """

    id: int
    attempt: int
    error: WireError | None
    outputs: list[Tensor] = []
    parameters: dict[str, Any] = {}
    flags: int = FINAL
    queue_us: int = 0
    claim: str = ""
    claim_bytes: int = 0
    fingerprint: str = ""
    index: int = 0


class ResponseFrame(msgspec.Struct, array_like=True, gc=False):
    """Responses of one batch to one sender.

    Attributes:
        version: protocol version.
        worker: id of the worker that answers.
        model_version: the version that computed the responses.
        batch: what the responses share.
        responses: the responses.
        error: set, with no responses, when the worker could not read the request frame at all.
        backlog: requests known to wait behind this batch, at the broker and in the worker.
    """

    version: int
    worker: str
    model_version: str
    batch: BatchInfo
    responses: list[Response]
    error: WireError | None = None
    backlog: int = 0


class CancelFrame(msgspec.Struct, array_like=True, gc=False):
    """Requests of one sender whose answers nobody waits for any more, and how far it is with others.

    Attributes:
        version: protocol version.
        reply_to: the sender's inbox, as in its request frames.
        ids: correlation numbers of the requests that are cancelled.
        taken: correlation numbers of other requests, each with how many of its responses were taken in all.
    """

    version: int
    reply_to: str
    ids: list[int]
    taken: list[tuple[int, int]] = []


class _Envelope(msgspec.Struct, array_like=True):
    version: int
    reply_to: str


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding bytes from anywhere may raise: not MessagePack, not UTF-8, nested without end."""

_HEADER = Struct(">BI")  # of MessagePack's array 32 and bin 32: which it is, and how many or how long

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(RequestFrame)
_responses = msgspec.msgpack.Decoder(ResponseFrame)
_cancels = msgspec.msgpack.Decoder(CancelFrame)
_envelope = msgspec.msgpack.Decoder(_Envelope)
_claims = msgspec.msgpack.Decoder(list[Buffer])

encode = _encoder.encode
"""Encode a frame to bytes."""


def decode_request_frame(data: bytes) -> RequestFrame:
    """Decode a frame of requests; tensors are views into `data`.

    Raises:
        UnsupportedVersion: the frame is of another protocol version.
        MalformedMessage: the bytes are no such frame.
    """
    try:
        frame = _requests.decode(data)
    except _UNREADABLE as error:
        _check_version(data)
        raise MalformedMessage(f"not a request frame: {error}") from None
    if frame.version != PROTOCOL_VERSION:
        raise _unsupported(frame.version)
    return frame


def decode_response_frame(data: bytes) -> ResponseFrame:
    """Decode a frame of responses; tensors are views into `data`.

    Raises:
        UnsupportedVersion: the frame is of another protocol version.
        MalformedMessage: the bytes are no such frame.
    """
    try:
        frame = _responses.decode(data)
    except _UNREADABLE as error:
        _check_version(data)
        raise MalformedMessage(f"not a response frame: {error}") from None
    if frame.version != PROTOCOL_VERSION:
        raise _unsupported(frame.version)
    return frame


def decode_cancel_frame(data: bytes) -> CancelFrame:
    """Decode a cancellation.

    Raises:
        UnsupportedVersion: the frame is of another protocol version.
        MalformedMessage: the bytes are no such frame.
    """
    try:
        frame = _cancels.decode(data)
    except _UNREADABLE as error:
        _check_version(data)
        raise MalformedMessage(f"not a cancellation: {error}") from None
    if frame.version != PROTOCOL_VERSION:
        raise _unsupported(frame.version)
    return frame


def encode_claim(tensors: Sequence[Tensor]) -> list[bytes | memoryview]:
    """The blob a claim stands for: a MessagePack array of the tensors' data, in their order.

    Returns:
        Parts to be joined; the tensors' data are among them as they are, not copied.
    """
    parts: list[bytes | memoryview] = [_HEADER.pack(0xDD, len(tensors))]
    for tensor in tensors:
        parts += (_HEADER.pack(0xC6, len(tensor.data)), tensor.data)
    return parts


def redeem_claim(tensors: Sequence[Tensor], blob: bytes | bytearray | memoryview) -> None:
    """Give tensors the data that their claim stands for, as views into `blob`.

    Raises:
        MalformedMessage: the blob is not what the tensors' claim stands for.
    """
    try:
        data = _claims.decode(blob)
    except _UNREADABLE as error:
        raise MalformedMessage(f"claimed tensor data: {error}") from None
    if len(data) != len(tensors):
        raise MalformedMessage(f"claimed data of {len(data)} tensors; expected {len(tensors)}")
    for tensor, part in zip(tensors, data, strict=True):
        tensor.data = part


def reply_address(data: bytes) -> str:
    """The reply subject of a frame of any version, even one that cannot be read further; "" if none."""
    try:
        return _envelope.decode(data).reply_to
    except _UNREADABLE:
        return ""


def _check_version(data: bytes) -> None:
    """Tell a frame of another version from garbage: the first two elements are the same in every version."""
    try:
        envelope = _envelope.decode(data)
    except _UNREADABLE:
        return
    if envelope.version != PROTOCOL_VERSION:
        raise _unsupported(envelope.version)


def _unsupported(version: int) -> UnsupportedVersion:
    return UnsupportedVersion(f"protocol version {version} is not supported; expected {PROTOCOL_VERSION}")
