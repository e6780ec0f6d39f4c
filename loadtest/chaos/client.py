"""A client process: lanes that ask one request after the other and tell how each ended.

    python -m loadtest.chaos.client < SETTINGS-AND-ORDERS

The first line of its standard input is a `Settings` as JSON, each further one an `Order`. The rules by which
it sends a request again are in `Client._again`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Literal

import msgspec
import numpy as np

from loadtest.chaos.asks import Answer, Ask, Refusal, Sender, Settings
from loadtest.chaos.faults import CONNECTION, Way
from loadtest.chaos.models import MAX_ROWS, MODELS, POISON, WIDTH
from loadtest.chaos.records import GRACE, Intent, Outcome, Record, line

_DEADLINES = (12.0, 18.0)
_HURRIED = (0.01, 0.15)
_BURST_DEADLINE = 8.0
_POISON_DEADLINE = 40.0

_WEIGHTS = {"quick": 5, "slow": 3, "affine": 2}
_HURRIED_SHARE = 0.04
_KEYED_SHARE = 0.3
_REPLAYED_SHARE = 0.3

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_TRIED_AGAIN = frozenset((CONNECTION, "bus_unavailable", "shutting_down"))
_WORTH_TRYING = 0.5  # seconds that have to be left for another try
_BIG = 2**31


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """What a client is to do beside its steady load."""

    do: Literal["burst", "poison", "stop"]
    model: str = ""
    count: int = 0


class Client:
    """Lanes on one way in.

    Args:
        settings: what to do.
        sender: how to ask.
        tell: gets each record.
    """

    def __init__(self, settings: Settings, sender: Sender, tell: Callable[[Record], None]) -> None:
        self._settings = settings
        self._sender = sender
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._grace = GRACE[settings.way]
        self._extra: set[asyncio.Task[None]] = set()
        self._next = (list(Way).index(settings.way) + 1) << 40
        self._random = Random(f"{settings.seed} {settings.way}")

    async def run(self) -> None:
        """Ask until told to stop, and until all that was asked has ended."""
        await self._sender.start()
        try:
            lanes = (self._lane(number) for number in range(self._settings.lanes))
            await asyncio.gather(*lanes)
            await asyncio.gather(*self._extra)
        finally:
            await self._sender.close()

    def obey(self, order: Order) -> None:
        """Do something in addition; returns at once."""
        if order.do == "stop":
            self._stopping.set()
            return
        intent = Intent.BURST if order.do == "burst" else Intent.POISON
        for number in range(max(1, order.count)):
            ask = self._ask(self._random, intent, order.model)
            task = asyncio.ensure_future(self._settle(ask, self._settings.lanes + number))
            self._extra.add(task)
            task.add_done_callback(self._extra.discard)

    async def _lane(self, number: int) -> None:
        settings = self._settings
        random = Random(f"{settings.seed} {settings.way} {number}")
        while not await self._stopped_within(random.expovariate(1 / settings.think)):
            model = random.choices(MODELS, [_WEIGHTS[name] for name in MODELS])[0]
            hurried = random.random() < _HURRIED_SHARE
            ask = self._ask(random, Intent.HURRIED if hurried else Intent.STEADY, model)
            await self._settle(ask, number)

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False

    def _ask(self, random: Random, intent: Intent, model: str) -> Ask:
        self._next += 1
        rows = random.randint(1, MAX_ROWS)
        x = np.array([[random.randrange(-_BIG, _BIG) for _ in range(WIDTH)] for _ in range(rows)], np.int64)
        budget = random.uniform(*_DEADLINES)
        if intent is Intent.HURRIED:
            budget = random.uniform(*_HURRIED)
        elif intent is Intent.BURST:
            budget = _BURST_DEADLINE
        elif intent is Intent.POISON:
            budget, x[0, 0] = _POISON_DEADLINE, POISON
        keyed = self._settings.keys and random.random() < _KEYED_SHARE
        key = f"{self._settings.seed}-{self._next}" if keyed and intent is Intent.STEADY else ""
        return Ask(
            id=self._next, model=model, x=x, intent=intent, deadline=self._loop.time() + budget, key=key
        )

    async def _settle(self, ask: Ask, lane: int) -> None:
        """See a request to its end and tell it; some that had a key are asked again with it."""
        first = await self._outcome(ask, lane)
        self._tell(first)
        for earlier, fault in self._sender.further:
            outcome = Outcome.DUPLICATE if fault else Outcome.SPARE
            self._tell(self._record(earlier, self._loop.time(), outcome, detail=fault))
        self._sender.further.clear()
        replayed = self._random.random() < _REPLAYED_SHARE
        if ask.key and first.outcome is Outcome.RIGHT and replayed:
            again = Ask(
                id=ask.id,
                model=ask.model,
                x=ask.x,
                intent=Intent.REPLAY,
                deadline=self._loop.time() + _DEADLINES[0],
                key=ask.key,
            )
            self._tell(_compared(first, await self._outcome(again, lane)))

    async def _outcome(self, ask: Ask, lane: int) -> Record:
        sent = self._loop.time()
        pause = _FIRST_PAUSE
        try:
            async with asyncio.timeout_at(ask.deadline + self._grace):
                while True:
                    ask.sends += 1
                    try:
                        answer = await self._sender.send(ask, lane, ask.deadline - self._loop.time())
                        return self._answered(ask, sent, answer)
                    except Refusal as refusal:
                        if not self._again(ask, refusal):
                            return self._refused(ask, sent, refusal)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except TimeoutError:
            detail = f"no outcome {self._grace:.0f} s after its deadline"
            return self._record(ask, sent, Outcome.LOST, detail=detail)

    def _again(self, ask: Ask, refusal: Refusal) -> bool:
        """Whether to send a request again: only with an idempotency key, so that nothing is done twice.

        Even a request that is safe to repeat is not repeated: it shall be seen what becomes of the first.
        """
        enough_time = ask.deadline - self._loop.time() >= _WORTH_TRYING
        return bool(ask.key) and enough_time and refusal.reason in _TRIED_AGAIN

    def _answered(self, ask: Ask, sent: float, answer: Answer) -> Record:
        fault = answer.fault(ask)
        if ask.intent is Intent.POISON:
            fault = "an answer, and not an error, to a request that kills its worker"
        if fault:
            return self._record(ask, sent, Outcome.WRONG, detail=fault)
        return self._record(ask, sent, Outcome.RIGHT, version=answer.version, run=answer.run)

    def _refused(self, ask: Ask, sent: float, refusal: Refusal) -> Record:
        return self._record(
            ask,
            sent,
            Outcome.REFUSED,
            reason=refusal.reason,
            status=refusal.status,
            pause=refusal.pause,
            detail=refusal.detail,
        )

    def _record(
        self,
        ask: Ask,
        sent: float,
        outcome: Outcome,
        *,
        reason: str = "",
        status: int = 0,
        pause: float | None = None,
        detail: str = "",
        version: int = 0,
        run: int = 0,
    ) -> Record:
        return Record(
            id=ask.id,
            way=self._settings.way,
            intent=ask.intent,
            model=ask.model,
            sent=sent,
            ended=self._loop.time(),
            deadline=ask.deadline,
            outcome=outcome,
            keyed=bool(ask.key),
            sends=ask.sends,
            reason=reason,
            status=status,
            pause=pause,
            detail=detail,
            version=version,
            run=run,
        )


def _compared(first: Record, replay: Record) -> Record:
    """A replay has to get the very answer of the first, and no second execution's."""
    same = (replay.run, replay.version) == (first.run, first.version)
    if replay.outcome is not Outcome.RIGHT or same:
        return replay
    detail = f"its key had the answer of execution {first.run}, and now has that of {replay.run}"
    return msgspec.structs.replace(replay, outcome=Outcome.DUPLICATE, detail=detail)


def make_sender(settings: Settings) -> Sender:
    """The sender of a way in; only what that needs is imported."""
    if settings.way is Way.HTTP:
        from loadtest.chaos.http_sender import HttpSender

        return HttpSender(settings)
    if settings.way is Way.GRPC:
        from loadtest.chaos.grpc_sender import GrpcSender

        return GrpcSender(settings)
    from loadtest.chaos.nats_sender import NatsSender

    return NatsSender(settings)


async def _main() -> None:
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    settings = msgspec.json.decode(await orders.readline(), type=Settings)
    ledger = os.open(Path(settings.ledger), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    client = Client(settings, make_sender(settings), lambda record: _write(ledger, record))
    heeding = asyncio.ensure_future(_heed(orders, client))
    try:
        await client.run()
    finally:
        heeding.cancel()


async def _heed(orders: asyncio.StreamReader, client: Client) -> None:
    while text := await orders.readline():
        client.obey(msgspec.json.decode(text, type=Order))
    client.obey(Order(do="stop"))  # whoever gave orders has gone


def _write(ledger: int, record: Record) -> None:
    os.write(ledger, line(record))


if __name__ == "__main__":
    asyncio.run(_main())
