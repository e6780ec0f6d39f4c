"""One model on this worker: from its queue to its instances and back.

Frames come in by credit, their requests are checked and handed to the batcher of the version they want.
When a batch is done its responses are published, one frame a sender, and only then are the request frames
whose requests are all answered acked: a worker that dies before has not lost them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from time import perf_counter_ns

from qinfer.bus import Bus, Consumer, Delivery, QueueSpec, Watcher
from qinfer.claims import Claims
from qinfer.errors import ModelNotFound, QInferError
from qinfer.lifecycle import cancelled
from qinfer.message import Request, RequestFrame, decode_cancel_frame, decode_request_frame
from qinfer_workers.alone import Alone
from qinfer_workers.answers import Answers
from qinfer_workers.backlog import Backlog
from qinfer_workers.batch import HeldFrame, Member
from qinfer_workers.batcher import Batcher
from qinfer_workers.cancellation import Cancellations, cancel_held
from qinfer_workers.clock import BrokerClock, calibrate, follow
from qinfer_workers.credit import Credit
from qinfer_workers.held import HeldFrames
from qinfer_workers.instance import Completion
from qinfer_workers.intake import Intake, Settled, check_names, is_incomplete
from qinfer_workers.isolation import Case, Isolation, begins_among_others
from qinfer_workers.replies import Replies
from qinfer_workers.senders import Senders
from qinfer_workers.served import ServedVersion
from qinfer_workers.settlement import Settlement
from qinfer_workers.streams import Streams

logger = logging.getLogger(__name__)

_CLAIM_BYTES = 512 << 20  # held of large tensors, where nothing else is said
_NOTHING_SETTLED: Settled = {}


class ModelService:
    """Serves the loaded versions of one model.

    Args:
        bus: a started bus.
        worker: this worker's id.
        model: its name.
        versions: what is loaded.
        max_deliver: deliveries after which a request that kills its workers is given up.
        turn: held while redelivered requests run; shared by all models of a worker.
        claims: what is too large for a message; shared likewise.
    """

    def __init__(
        self,
        bus: Bus,
        worker: str,
        model: str,
        versions: Sequence[ServedVersion],
        *,
        max_deliver: int = 3,
        turn: asyncio.Lock | None = None,
        claims: Claims | None = None,
    ) -> None:
        self.model = model
        self.versions = {served.version: served for served in versions}
        self._loaded = list(versions)  # those that leave, too, for as long as they hold anything
        self._gone: set[str] = set()  # versions that are served only to who has not heard yet
        self._latest = self._newest()
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._clock = BrokerClock()
        self._senders = Senders()
        self._replies = Replies(bus, worker, model, senders=self._senders, backlog=self._backlog)
        self._cancellations = Cancellations()
        self._cancel_watch: Watcher | None = None
        self._queued = Backlog(self._asks_for)
        self._credit = Credit(
            max_batch_size=max(served.config.max_batch_size for served in versions),
            instances=sum(len(served.instances) for served in versions),
        )
        self._consumers: dict[str, Consumer] = {}
        self._claims = claims or Claims(bus, max_bytes=_CLAIM_BYTES)
        self._held = HeldFrames(ended=lambda frame: self._claims.release(frame.claimed))
        self._answers = Answers(bus, self._replies, self._claims)
        self._settlement = Settlement(
            bus,
            model,
            held=self._held,
            credit=self._credit,
            senders=self._senders,
            replies=self._replies,
            answers=self._answers,
        )
        self._intake = Intake(
            bus,
            self._replies,
            self._claims,
            admit=self._admit_complete,
            give_back=self._give_back_incomplete,
            held=self._held.__contains__,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._alone = Alone(model, self._loaded, self._held)
        self._streams = Streams(
            bus,
            model,
            settlement=self._settlement,
            replies=self._replies,
            answers=self._answers,
            credit=self._credit,
            finished=self._alone.finished,
        )
        for served in versions:
            self._open(served)
        self._isolation = Isolation(
            bus,
            worker=worker,
            model=model,
            max_deliver=max_deliver,
            batch_rows=max(served.config.max_batch_size for served in versions),
            turn=turn or asyncio.Lock(),
            alone=self._alone.hold,
            run=self._alone.run,
            give_up=self._settlement.give_up,
            answered=self._settlement.pass_over,
            wanted=self._settlement.is_wanted,
            give_back=self._settlement.give_back,
        )

    async def start(self, spec: QueueSpec) -> None:
        """Make sure of the queue and begin to pull."""
        await self._bus.declare(self.model, spec)
        self._cancel_watch = await self._bus.on_cancel(self.model, self._cancel)
        for version in ("", *self.versions):
            await self._consume(version)
        await calibrate(self._clock, self._bus, self.model)  # before the first frame: there may be a backlog
        keep_alive = self._held.keep_alive(spec.ack_wait, self._loop.time)
        self._tasks = [
            asyncio.create_task(keep_alive, name=f"keep-alive {self.model}"),
            asyncio.create_task(follow(self._clock, self._bus, self.model), name=f"clock {self.model}"),
        ]
        self._isolation.start()
        self._credit.top_up()

    async def drain(self, timeout: float) -> None:
        """Stop pulling, finish what is held, give back what does not finish within `timeout` seconds."""
        self._credit.stop()
        for consumer in list(self._consumers.values()):
            await consumer.close()
        for served in self._loaded:
            served.batches.drain()
        if not await self._held.idle(timeout):
            logger.warning("model %s: %d frames given back to the queue", self.model, len(self._held))
        await self._isolation.close()
        self._streams.interrupt()
        await self._intake.close()
        await self._answers.close()
        for served in self._loaded:
            served.batches.close()
        self._held.give_back()
        await cancelled(*self._tasks)
        if self._cancel_watch is not None:
            await self._cancel_watch.close()

    # Versions that come and go

    async def replace(self, fresh: Sequence[ServedVersion], gone: Iterable[str]) -> list[ServedVersion]:
        """Serve other versions from now on.

        Frames that name no version go to the newest at once. What is held by others is finished by them, and
        frames for versions that are gone are taken until these are retired: gateways have yet to hear of it.

        Args:
            fresh: loaded versions, which may take the place of others of the same number.
            gone: versions not to be served any longer.

        Returns:
            The versions that others took the place of. They are to be retired, as are those that are gone.

        Raises:
            BusUnavailable: the broker cannot be reached; nothing has changed.
        """
        for served in fresh:
            if served.version not in self._consumers:
                await self._consume(served.version)  # gets no frame before it is granted credit
        replaced = [self.versions[served.version] for served in fresh if served.version in self.versions]
        for served in fresh:
            self._open(served)
            self._loaded.append(served)
            self.versions[served.version] = served
        self._gone = (self._gone | set(gone)) - {served.version for served in fresh}
        self._latest = self._newest()
        self._resize()
        self._credit.top_up()
        return replaced

    async def retire(self, served: ServedVersion, timeout: float) -> None:
        """Let a version that was replaced or is gone finish what it holds; its instances are free then.

        What does not finish within `timeout` seconds is given back to the queue.
        """
        if self.versions.get(served.version) is served and served.version in self._consumers:
            consumer = self._consumers.pop(served.version)
            self._credit.detach(consumer)
            await consumer.close()
        if self.versions.get(served.version) is served:  # no other took its place meanwhile
            del self.versions[served.version]
            self._gone.discard(served.version)
        served.batches.drain()
        if not await self._held.without(served, timeout):
            held = self._held.of(served)
            what = f"model {self.model} version {served.version}"
            logger.warning("%s: %d frames given back to the queue", what, len(held))
            self._streams.interrupt(served)
            for member in served.batches.close():
                self._credit.freed(member.rows)
            for frame in held:
                self._settlement.give_back(frame, 0.0, ())
        self._loaded.remove(served)
        self._resize()

    def _open(self, served: ServedVersion) -> None:
        """Make the place where a version's batches form."""
        served.batcher = Batcher(
            served.config,
            served.instances,
            company=self._senders.company,
            expired=partial(self._settlement.expire, served),
        )
        if served.streams:
            self._streams.adopt(served)
        served.recorder.stats.pending = partial(getattr, served.batcher, "waiting")

    def _newest(self) -> ServedVersion:
        staying = [version for version in self.versions if version not in self._gone]
        return self.versions[max(staying or self.versions, key=int)]

    def _resize(self) -> None:
        self._credit.resize(
            max_batch_size=max(served.config.max_batch_size for served in self._loaded),
            instances=sum(len(served.instances) for served in self._loaded),
        )

    async def _consume(self, version: str) -> None:
        consumer = await self._bus.consume(self.model, version, self._deliver)
        self._consumers[version] = consumer
        self._credit.attach(consumer)

    # From the queue

    def _deliver(self, delivery: Delivery) -> None:
        received = perf_counter_ns()
        try:
            frame = decode_request_frame(delivery.payload)
            check_names(frame)  # else the work would be done for nobody
        except QInferError as error:
            self._replies.refuse_frame(delivery, error)
            self._credit.top_up()
            return
        now = self._loop.time()
        held = HeldFrame(delivery, frame, received, now)
        if not frame.requests:
            self._credit.top_up()
            delivery.ack()
            return
        self._held.add(held)
        count = len(frame.requests)
        self._senders.arrived(frame.reply_to, count, frame.in_flight, now)
        self._queued.arrived(frame.model_version, count, delivery.pending, now)
        held.served = self.versions.get(frame.model_version) if frame.model_version else self._latest
        if is_incomplete(frame, delivery):
            self._credit.hold(count)
            self._intake.add(frame, held)
        else:
            self._admit(frame, held)
        self._credit.top_up()

    def _admit_complete(self, frame: RequestFrame, held: HeldFrame, settled: Settled) -> None:
        """Go on with a frame that had to be completed."""
        self._credit.freed(held.open)
        self._admit(frame, held, settled)
        self._credit.top_up()

    def _give_back_incomplete(self, held: HeldFrame, pause: float, members: Iterable[Member]) -> None:
        self._credit.freed(held.open)
        self._senders.answered(held.reply_to, held.open)
        self._settlement.give_back(held, pause, members)

    def _backlog(self) -> int:
        """Requests known to wait, here and at the broker."""
        waiting = sum([served.batches.waiting for served in self._loaded])
        return waiting + self._queued.requests(self._loop.time())

    def _asks_for(self, version: str) -> bool:
        consumer = self._consumers.get(version)
        return consumer is None or consumer.credit > 0

    def _admit(self, frame: RequestFrame, held: HeldFrame, settled: Settled = _NOTHING_SETTLED) -> None:
        """Hand each request of a frame to its batcher, or answer it with what is wrong with it."""
        served = held.served
        age = self._clock.age_us(held.delivery.stored_us, held.received_ns // 1000)
        held.age_ns = age * 1000
        rows = 0
        refused: list[tuple[Request, QInferError]] = []
        members: dict[int, Member] = {}
        member = Member if served is None else served.member
        for place, request in enumerate(frame.requests):
            if settled and place in settled:
                error = settled[place]
                if error is not None:
                    refused.append((request, error))
                else:
                    self._settlement.skip(held)
                continue
            try:
                if served is None:
                    raise ModelNotFound(f"model {self.model!r} has no version {frame.model_version!r} here")
                plan, request_rows = served.signature.check(request)
            except QInferError as error:
                refused.append((request, error))
                continue
            deadline = float("inf")
            if request.deadline_us:
                deadline = held.arrived + (request.deadline_us - frame.sent_us - age) / 1e6
            rows += request_rows
            members[place] = member(request, held, plan, request_rows, deadline)
        self._credit.took(rows)
        if self._cancellations:
            self._drop_cancelled(frame, served, members)
        if served is not None and members:
            self._await_batch(served, held, frame.model_version, members)
        if refused:
            self._settlement.refuse(held, refused, served)

    def _await_batch(
        self, served: ServedVersion, held: HeldFrame, version: str, members: dict[int, Member]
    ) -> None:
        """Let requests wait for their batch, or alone where they came before."""
        if self._streams:
            self._streams.sent_again(held, [member.request.id for member in members.values()])
        if not begins_among_others(held):
            self._isolation.add(Case(held, served, version, members))
            return
        add = served.batches.add
        for member in members.values():
            add(member)

    # Cancelled requests (see `cancellation`)

    def _cancel(self, notice: bytes) -> None:
        """Nobody waits for these requests: those held here are dropped, the others remembered.

        Of others it says how much of their streams was taken.
        """
        try:
            frame = decode_cancel_frame(notice)
        except QInferError as error:
            logger.warning("model %s: a cancellation cannot be read: %s", self.model, error)
            return
        streaming = self._streams.heard(frame) if self._streams else set()
        if not frame.ids:
            return
        unseen = cancel_held(frame, self._loaded, self._isolation.members(), drop=self._settlement.drop)
        unseen -= streaming
        self._cancellations.remember(frame.reply_to, unseen, self._loop.time())
        self._credit.top_up()

    def _drop_cancelled(
        self, frame: RequestFrame, served: ServedVersion | None, members: dict[int, Member]
    ) -> None:
        """Leave out what was cancelled before it came."""
        for place, member in list(members.items()):
            if served is not None and self._cancellations.take(frame.reply_to, member.request.id):
                del members[place]
                self._settlement.drop(served, member)

    def completed(self, served: ServedVersion, completion: Completion) -> None:
        """An instance finished a batch, or has begun one of a decoupled model: answer its members."""
        served.batches.completed(completion)
        if served.streams:
            self._streams.executed(completion)
        else:
            self._settlement.answer(served, completion)
            self._alone.finished(completion.batch)

    def cut_off(self) -> None:
        """The connection to the broker was lost: nobody knows how much of the open streams arrived."""
        self._streams.interrupt()
