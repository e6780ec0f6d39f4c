"""Answers that are kept for who asks again: "Asking again" in `docs/protocol.md`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from qinfer.bus import Bus
from qinfer.errors import BusUnavailable, InternalError, QInferError, Retry
from qinfer.message import Response, ResponseFrame, decode_response_frame

_ATTEMPTS = 5  # of workers that keep answers of the same request at the same time


@dataclass(frozen=True, slots=True)
class Kept:
    """A response as it lies in the bucket.

    Attributes:
        frame: the frame it lies there in.
        response: the frame's only response.
        revision: of the entry.
    """

    frame: ResponseFrame
    response: Response
    revision: int

    @property
    def final(self) -> bool:
        """Whether it is the answer, now and later; else nothing was run to its end."""
        error = self.response.error
        return error is None or error.exception().retry is Retry.NEVER


async def find_kept(bus: Bus, name: str) -> Kept | None:
    """The response kept under a name.

    Raises:
        BusUnavailable: the broker does not answer.
        InternalError: what lies there is no response.
    """
    entry = await bus.get(bus.names.answers_bucket, name)
    return None if entry is None else _read(*entry)


def _read(data: bytes, revision: int) -> Kept:
    try:
        frame = decode_response_frame(data)
    except QInferError as error:
        raise InternalError(f"the answer kept under the idempotency key cannot be read: {error}") from None
    if len(frame.responses) != 1:
        raise InternalError(f"{len(frame.responses)} answers are kept under the idempotency key; expected 1")
    return Kept(frame, frame.responses[0], revision)


async def keep(bus: Bus, name: str, frame: bytes) -> Kept | None:
    """Keep an encoded frame with one response under a name, unless an answer is kept there already.

    A request that was run by two workers has two answers: who was told the first must not find the other.

    Returns:
        What lay there before, and stays; None when it is the frame now.

    Raises:
        BusUnavailable: the broker does not answer.
    """
    bucket = bus.names.answers_bucket
    for _ in range(_ATTEMPTS):
        entry = await bus.get(bucket, name)
        kept = None
        if entry is not None:
            with suppress(InternalError):  # of no use to anybody: it is replaced
                kept = _read(*entry)
        if kept is not None and kept.final:
            return kept
        if await bus.replace(bucket, name, frame, 0 if entry is None else entry[1]):
            return None
    raise BusUnavailable("the answer under the idempotency key keeps changing", retry_after=1.0)
