"""Requests that came before: one of them may kill whoever runs it.

A frame that is delivered again was not answered by the worker that had it. Mostly that worker was stopped
or cut off; but it may have died of one of the requests. So the requests of such a frame run in small
batches first and one by one after that, never two suspects at a time in one worker, and with nothing else
on the model's instances. Before each run a record of it is put on the broker, and removed with the frame's
end: what killed its worker leaves a record behind. A request that was alone in its last recorded run, and
has had as many deliveries as are allowed, is given up: it is buried as a dead letter and its caller told.
All others are answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from time import time_ns
from typing import TYPE_CHECKING

import msgspec

from qinfer.bus import Bus
from qinfer.deadletter import Attempt, DeadLetter, encode_letter
from qinfer.errors import PayloadTooLarge, Poisoned, QInferError
from qinfer.lifecycle import cancelled
from qinfer.message import Request
from qinfer.naming import escape
from qinfer.telemetry.w3c import trace_id
from qinfer_workers.batch import HeldFrame, Member

if TYPE_CHECKING:
    from qinfer_workers.served import ServedVersion

logger = logging.getLogger(__name__)

_SHARE = 4  # the first isolated run of requests has at most this part of a full batch
_PAUSE = 0.5  # seconds before a frame is tried again whose records the broker could not take

Runs = dict[int, list[Attempt]]
"""The runs of each request of a frame, by its place in the frame."""

_decoder = msgspec.msgpack.Decoder(Runs)


@dataclass(slots=True, eq=False)
class Case:
    """A redelivered frame.

    Attributes:
        held: the frame.
        served: what runs it.
        version: the wanted version; empty for the newest.
        members: those of its requests that are still to be run, by their place in the frame.
        runs: what is known of earlier runs; none of a request that was answered.
        recorded: there is a record of them.
    """

    held: HeldFrame
    served: ServedVersion
    version: str
    members: dict[int, Member]
    runs: Runs = field(default_factory=dict)
    recorded: bool = False

    @property
    def key(self) -> str:
        """Of its record. A queue that is made anew counts from 1 again, so the time is part of it."""
        return f"{self.held.delivery.sequence}-{self.held.delivery.stored_us}"


class Isolation:
    """Runs the suspects of one model.

    Args:
        bus: a started bus.
        worker, model: names for records.
        max_deliver: deliveries after which a request is given up.
        batch_rows: rows of a full batch.
        turn: held while suspects run; shared by all models of a worker.
        alone: nothing else runs on the model's instances within, or nobody waits for the members any more.
        run: runs members as one batch, within `alone`, and returns when they are answered.
        give_up: answers a member with an error.
        answered: ends a member that an earlier delivery answered.
        wanted: whether a member is still to be run; answers or drops it where not.
        give_back: returns a frame to the queue after some seconds.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        worker: str,
        model: str,
        max_deliver: int,
        batch_rows: int,
        turn: asyncio.Lock,
        alone: Callable[[Collection[Member]], AbstractAsyncContextManager[None]],
        run: Callable[[ServedVersion, Sequence[Member]], Awaitable[None]],
        give_up: Callable[[ServedVersion, Member, QInferError], None],
        answered: Callable[[ServedVersion, Member], None],
        wanted: Callable[[ServedVersion, Member], bool],
        give_back: Callable[[HeldFrame, float, Iterable[Member]], None],
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._model = model
        self._max_deliver = max_deliver
        self._rows = max(1, batch_rows // _SHARE)
        self._turn = turn
        self._alone = alone
        self._run = run
        self._give_up = give_up
        self._answered = answered
        self._wanted = wanted
        self._give_back = give_back
        self._cases: list[Case] = []  # bounded by the worker's credit
        self._arrived = asyncio.Event()
        self._running: tuple[Case, Sequence[int]] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work."""
        self._task = asyncio.create_task(self._work(), name=f"isolation {self._model}")

    def add(self, case: Case) -> None:
        """Run a frame's members in their turn."""
        self._cases.append(case)
        self._arrived.set()

    def members(self) -> Iterator[Member]:
        """All that wait, or run now."""
        for case in self._cases:
            yield from case.members.values()

    async def close(self) -> None:
        """Stop. What waits or runs has to be given back by its holder; its run does not count."""
        if self._task is not None:
            await cancelled(self._task)
        running, self._running = self._running, None
        if running is not None and self._bus.connected:
            case, group = running
            for place in group:
                case.runs[place] = case.runs[place][:-1]
            try:
                await self._record(case)
            except QInferError as error:
                logger.warning("model %s: a run that was cut short may count: %s", self._model, error)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            async with self._turn:
                case = self._cases[0]
                try:
                    await self._examine(case)
                except QInferError as error:
                    logger.warning("model %s: redelivered requests have to wait: %s", self._model, error)
                    self._give_back(case.held, _PAUSE, case.members.values())
                except Exception:
                    logger.exception("model %s: cannot run redelivered requests", self._model)
                    self._give_back(case.held, _PAUSE, case.members.values())
                self._cases.pop(0)
                if not self._cases:
                    self._arrived.clear()

    async def _examine(self, case: Case) -> None:
        await self._load(case)
        for place, member in list(case.members.items()):
            if not case.runs[place]:
                del case.members[place]
                self._answered(case.served, member)
            elif self._hopeless(case.runs[place]):
                await self._bury(case, place, member)
        while case.members:
            # What kills the worker before its instances are idle has run, and this has not: no record yet.
            async with self._alone(case.members.values()):
                group = self._next_group(case)
                if group:
                    await self._run_group(case, group)
        if case.recorded:
            await self._bus.delete(self._bus.names.suspects_bucket, self._record_key(case))

    async def _run_group(self, case: Case, group: Sequence[int]) -> None:
        await self._note(case, group)
        self._running = case, group
        await self._run(case.served, [case.members[place] for place in group])
        self._running = None
        for place in group:
            del case.members[place]
            if not case.held.unsent:
                case.runs[place] = []  # recorded with the next run

    def _hopeless(self, runs: Sequence[Attempt]) -> bool:
        last = runs[-1]
        return len(runs) >= self._max_deliver and bool(last.worker) and not last.mates

    def _next_group(self, case: Case) -> list[int]:
        """Places of the members that run next: several while nothing is known of them, else one."""
        group: list[int] = []
        rows = 0
        for place, member in list(case.members.items()):
            if not self._wanted(case.served, member):
                del case.members[place]
                continue
            fresh = len(case.runs[place]) <= 1
            if not group:
                group, rows = [place], member.rows
                if not fresh:
                    break
            elif fresh and rows + member.rows <= self._rows and member.plan == case.members[group[0]].plan:
                group.append(place)
                rows += member.rows
        return group

    # Records

    async def _load(self, case: Case) -> None:
        found = await self._bus.get(self._bus.names.suspects_bucket, self._record_key(case))
        if found is not None:
            case.recorded = True
            try:
                case.runs = _decoder.decode(found[0])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                logger.warning("record of redelivered requests is unreadable: %s", error)
        # The run that nobody recorded, because nobody suspected anything then.
        mates = [member.request_id for member in case.members.values()]
        unrecorded = Attempt("", 0, mates if len(mates) > 1 else [])
        times = 2 if case.served.streams else 1  # see `begins_among_others`
        for place in case.members:
            case.runs.setdefault(place, [unrecorded] * times)

    async def _note(self, case: Case, group: Sequence[int]) -> None:
        """Record a run that is about to begin."""
        names = [case.members[place].request_id for place in group]
        attempt = Attempt(self._worker, time_ns() // 1000, names if len(group) > 1 else [])
        for place in group:
            case.runs[place] = [*case.runs[place], attempt]
        await self._record(case)

    async def _record(self, case: Case) -> None:
        bucket = self._bus.names.suspects_bucket
        await self._bus.put(bucket, self._record_key(case), msgspec.msgpack.encode(case.runs))
        case.recorded = True

    def _record_key(self, case: Case) -> str:
        return f"{escape(self._model)}.{case.key}"

    # The end of a request that kills

    async def _bury(self, case: Case, place: int, member: Member) -> None:
        runs = case.runs[place]
        error = Poisoned(
            f"model {self._model!r}: {len(runs)} workers that ran this request died of it; "
            "it lies in the dead letters"
        )
        letter = DeadLetter(
            model=self._model,
            version=case.version,
            reason=error.reason,
            error=error.message,
            request_id=member.request_id,
            tenant=member.request.tenant,
            trace_id=trace_id(member.request.traceparent),
            buried_us=time_ns() // 1000,
            worker=self._worker,
            attempts=runs,
            request=member.request,
        )
        # The frame may be here twice, when a sign of life came too late for its ack wait.
        name = f"{self._record_key(case)}.{place}"
        try:
            await self._bus.bury(self._model, encode_letter(letter), letter_id=name)
        except PayloadTooLarge:
            bare = msgspec.structs.replace(letter, request=_without_data(member.request), complete=False)
            await self._bus.bury(self._model, encode_letter(bare), letter_id=name)
        logger.error(
            "model %s: request %r killed %d workers and is given up (qinfer dlq)",
            self._model,
            member.request_id,
            len(runs),
        )
        del case.members[place]
        self._give_up(case.served, member, error)


def begins_among_others(held: HeldFrame) -> bool:
    """Whether a frame's requests run as if they came for the first time.

    The streams of a worker that was stopped are many and long: one after the other they would be late. So
    they are run apart from the second time on.
    """
    attempt = held.delivery.attempt
    return attempt == 1 or (attempt == 2 and held.served is not None and held.served.streams)


def _without_data(request: Request) -> Request:
    inputs = [msgspec.structs.replace(tensor, data=b"") for tensor in request.inputs]
    return msgspec.structs.replace(request, inputs=inputs)
