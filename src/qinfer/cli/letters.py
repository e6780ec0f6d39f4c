"""The dead letters of a fleet, at its broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

import msgspec

from qinfer.bus import Bus, Letter, connect
from qinfer.client import Result
from qinfer.client.nats import NatsClient
from qinfer.client.transport import Settings
from qinfer.deadletter import DeadLetter, decode_letter
from qinfer.errors import InvalidRequest, MalformedMessage, NotFound
from qinfer.message import Request

_PAGE = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """One letter.

    Attributes:
        id: its number; never used again.
        letter: what it says; None where that cannot be read.
        problem: why it cannot be read.
    """

    id: int
    letter: DeadLetter | None
    problem: str = ""


class Letters:
    """Reads, replays and removes dead letters.

    Args:
        bus: a started bus.
        client: not started; asks models again.
    """

    def __init__(self, bus: Bus, client: NatsClient) -> None:
        self._bus = bus
        self._client = client
        self._asks = False

    async def page(self, model: str = "", *, after: int = 0, limit: int = _PAGE) -> list[Entry]:
        """At most `limit` letters of a model or of all, oldest first, with ids above `after`."""
        return [_entry(found) for found in await self._bus.letters(model, after=after, limit=limit)]

    async def all(self, model: str = "") -> AsyncIterator[Entry]:
        """Every letter of a model or of all, oldest first."""
        after = 0
        while page := await self.page(model, after=after):
            for entry in page:
                yield entry
            after = page[-1].id

    async def get(self, number: int) -> DeadLetter:
        """One letter.

        Raises:
            NotFound: there is none of that id.
            MalformedMessage: it cannot be read.
        """
        for found in await self._bus.letters(after=number - 1, limit=1):
            if found.sequence == number:
                return decode_letter(found.data)
        raise NotFound(f"there is no dead letter {number}")

    async def replay(self, number: int, *, timeout: float) -> Result:
        """Ask for what the letter's request asked for, with a new deadline, and wait for the answer.

        The answer goes to nobody but the caller of this method; the letter stays. A request that is given up
        once more becomes another letter.

        Raises:
            NotFound: there is none of that id.
            InvalidRequest: it was too large to be kept as a whole.
            NoWorker: nobody serves the model now.
            QInferError: the error it is answered with.
        """
        letter = await self.get(number)
        if not letter.complete:
            raise InvalidRequest(
                f"dead letter {number} has no input data, which were too large to keep: it cannot be replayed"
            )
        if not self._asks:
            await self._client.start()
            self._asks = True
        return await self._client.exchange(
            letter.model, letter.version, _anew(letter, number), monotonic() + timeout
        )

    async def remove(self, number: int) -> bool:
        """Remove one letter; False when there is none of that id."""
        return await self._bus.forget_letter(number)


def _entry(found: Letter) -> Entry:
    try:
        return Entry(found.sequence, decode_letter(found.data))
    except MalformedMessage as error:
        return Entry(found.sequence, None, error.message)


def _anew(letter: DeadLetter, number: int) -> Request:
    """The request without what belonged to its first life: its claim, key, trace and attempts."""
    return msgspec.structs.replace(
        letter.request,
        id=number,
        attempt=0,
        traceparent="",
        tracestate="",
        claim="",
        claim_bytes=0,
        idempotency="",
        fingerprint="",
    )


@asynccontextmanager
async def open_letters(nats: str, namespace: str) -> AsyncIterator[Letters]:
    """The dead letters of a fleet.

    Raises:
        BusUnavailable: the broker does not answer.
    """
    bus, asking = (connect(nats, namespace=namespace, name="qinfer dlq") for _ in range(2))
    client = NatsClient(asking, Settings())
    await bus.start()
    try:
        yield Letters(bus, client)
    finally:
        await client.close()
        await bus.close()
