"""Dead letters: requests that killed every worker that ran them, with their history.

A letter is a MessagePack map, so that what reads it needs no schema. It lies in the dead-letter stream of its
namespace until it is replayed, purged, or older than the stream keeps letters.
"""

from __future__ import annotations

from typing import Any

import msgspec

from qinfer.errors import MalformedMessage
from qinfer.message import Request


class Attempt(msgspec.Struct, frozen=True):
    """One run of a request that did not end.

    Attributes:
        worker: id of the worker that ran it.
        at_us: when it began, Unix microseconds of that worker's clock.
        mates: request ids of what ran in the same batch; empty for a run on its own.
    """

    worker: str
    at_us: int
    mates: list[str] = []


class DeadLetter(msgspec.Struct, frozen=True):
    """A request that is not tried again.

    Attributes:
        model, version: what it was for; the version is empty for the newest.
        reason, error: of the error its caller got.
        request_id: the caller's own identifier.
        tenant: whom it was accounted to.
        trace_id: its trace (32 hex digits), if it was sampled.
        buried_us: when it was given up, Unix microseconds.
        worker: id of the worker that gave it up.
        attempts: its runs, as far as they are known, oldest first.
        request: the request as it was received. Its inputs have no data where they were too large to keep.
        complete: whether the inputs' data are there, so that it can be replayed.
    """

    model: str
    version: str
    reason: str
    error: str
    request_id: str
    tenant: str
    trace_id: str
    buried_us: int
    worker: str
    attempts: list[Attempt]
    request: Request
    complete: bool = True


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DeadLetter)


def encode_letter(letter: DeadLetter) -> bytes:
    """Encode a letter to bytes."""
    return _encoder.encode(letter)


def decode_letter(data: bytes) -> DeadLetter:
    """Decode a letter; the request's tensors are views into `data`.

    Raises:
        MalformedMessage: the bytes are no letter.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"not a dead letter: {error}") from None


def summary(letter: DeadLetter) -> dict[str, Any]:
    """What a letter says, without its data, for people and programs."""
    return {
        "model": letter.model,
        "version": letter.version,
        "reason": letter.reason,
        "error": letter.error,
        "request_id": letter.request_id,
        "tenant": letter.tenant,
        "trace_id": letter.trace_id,
        "buried_us": letter.buried_us,
        "worker": letter.worker,
        "complete": letter.complete,
        "attempts": [msgspec.to_builtins(attempt) for attempt in letter.attempts],
        "inputs": [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
            for tensor in letter.request.inputs
        ],
    }
