"""One model on this worker: from its queue to its instances and back.

Frames come in by credit, their requests are checked and handed to the batcher of the version they want.
When a batch is done its responses are published, one frame a sender, and only then are the request frames
whose requests are all answered acked: a worker that dies before has not lost them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns

import msgspec

from qinfer.bus import Bus, Consumer, Delivery, QueueSpec
from qinfer.errors import (
    BusUnavailable,
    DeadlineExceeded,
    ModelFailed,
    ModelNotFound,
    PayloadTooLarge,
    QInferError,
)
from qinfer.message import (
    PROTOCOL_VERSION,
    BatchInfo,
    Request,
    RequestFrame,
    Response,
    ResponseFrame,
    WireError,
    decode_request_frame,
    encode,
    reply_address,
)
from qinfer.naming import check_reply
from qinfer.repository import ModelConfig
from qinfer.signature import Signature
from qinfer_workers.batch import HeldFrame, Member
from qinfer_workers.batcher import Batcher
from qinfer_workers.clock import CALIBRATION, BrokerClock
from qinfer_workers.credit import Credit
from qinfer_workers.execution import failure
from qinfer_workers.instance import Completion, InstanceThread
from qinfer_workers.record import BatchRecorder
from qinfer_workers.senders import Senders

logger = logging.getLogger(__name__)

_NO_BATCH = BatchInfo()


@dataclass(slots=True, kw_only=True)
class ServedVersion:
    """A loaded version: its configuration, instances, and where its batches form."""

    version: str
    config: ModelConfig
    instances: Sequence[InstanceThread]
    recorder: BatchRecorder
    signature: Signature
    batcher: Batcher | None = None


class ModelService:
    """Serves the loaded versions of one model."""

    def __init__(self, bus: Bus, worker: str, model: str, versions: Sequence[ServedVersion]) -> None:
        self.model = model
        self.versions = {served.version: served for served in versions}
        self._latest = max(versions, key=lambda served: int(served.version))
        self._bus = bus
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._clock = BrokerClock()
        self._senders = Senders()
        self._credit = Credit(
            max_batch_size=max(served.config.max_batch_size for served in versions),
            instances=sum(len(served.instances) for served in versions),
        )
        self._consumers: list[Consumer] = []
        self._held: set[HeldFrame] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._ack_wait = 0.0
        for served in versions:
            served.batcher = Batcher(
                served.config,
                served.instances,
                company=self._senders.company,
                expired=partial(self._expire, served),
            )
            served.recorder.stats.pending = partial(getattr, served.batcher, "waiting")

    async def start(self, spec: QueueSpec) -> None:
        """Make sure of the queue and begin to pull."""
        self._ack_wait = spec.ack_wait
        await self._bus.declare(self.model, spec)
        for version in ("", *self.versions):
            consumer = await self._bus.consume(self.model, version, self._deliver)
            self._consumers.append(consumer)
            self._credit.attach(consumer)
        await self._calibrate()  # before the first frame: there may be a backlog
        self._tasks = [
            asyncio.create_task(self._keep_alive(), name=f"keep-alive {self.model}"),
            asyncio.create_task(self._follow_clock(), name=f"clock {self.model}"),
        ]
        self._credit.top_up()

    async def drain(self, timeout: float) -> None:
        """Stop pulling, finish what is held, give back what does not finish within `timeout` seconds."""
        self._credit.stop()
        for consumer in self._consumers:
            await consumer.close()
        for served in self.versions.values():
            _batcher(served).drain()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            logger.warning("model %s: %d frames given back to the queue", self.model, len(self._held))
        for served in self.versions.values():
            _batcher(served).close()
        for frame in self._held:
            frame.delivery.nak()
        self._held.clear()
        self._idle.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # From the queue

    def _deliver(self, delivery: Delivery) -> None:
        received = perf_counter_ns()
        try:
            frame = decode_request_frame(delivery.payload)
            check_reply(frame.reply_to)  # else the work would be done for nobody
        except QInferError as error:
            self._refuse_frame(delivery, error)
            return
        now = self._loop.time()
        held = HeldFrame(delivery, frame, received, now)
        if not frame.requests:
            self._credit.top_up()
            delivery.ack()
            return
        self._held.add(held)
        self._idle.clear()
        self._senders.arrived(frame.reply_to, len(frame.requests), frame.in_flight, now)
        self._admit(frame, held, now)
        self._credit.top_up()

    def _admit(self, frame: RequestFrame, held: HeldFrame, now: float) -> None:
        """Hand each request of a frame to its batcher, or answer it with what is wrong with it."""
        served = self.versions.get(frame.model_version) if frame.model_version else self._latest
        age = self._clock.age_us(held.delivery.stored_us, held.received_ns // 1000)
        held.age_ns = age * 1000
        rows = 0
        refused: list[tuple[Request, QInferError]] = []
        for request in frame.requests:
            try:
                if served is None:
                    raise ModelNotFound(f"model {self.model!r} has no version {frame.model_version!r} here")
                plan, request_rows = served.signature.check(request)
            except QInferError as error:
                refused.append((request, error))
                continue
            deadline = float("inf")
            if request.deadline_us:
                deadline = now + (request.deadline_us - frame.sent_us - age) / 1e6
            rows += request_rows
            _batcher(served).add(Member(request, held, plan, request_rows, deadline))
        self._credit.took(rows)
        if refused:
            self._refuse(held, refused, served)

    def _refuse_frame(self, delivery: Delivery, error: QInferError) -> None:
        """Drop bytes that cannot be read or answered; say so where they name an inbox."""
        logger.warning(
            "model %s: dropped a message of %d bytes: %s", self.model, len(delivery.payload), error
        )
        address = reply_address(delivery.payload)
        if address:
            frame = ResponseFrame(PROTOCOL_VERSION, self._worker, "", _NO_BATCH, [], WireError.of(error))
            self._publish(address, frame)
        delivery.term()
        self._credit.top_up()

    def _refuse(
        self, held: HeldFrame, refused: Iterable[tuple[Request, QInferError]], served: ServedVersion | None
    ) -> None:
        attempt = held.delivery.attempt
        responses = []
        for request, error in refused:
            responses.append(Response(request.id, request.attempt + attempt, WireError.of(error)))
            if served is not None:
                served.recorder.refused(error, request, held)
        version = served.version if served is not None else ""
        held.unsent = not self._answer(held.reply_to, version, _NO_BATCH, responses)
        for _ in responses:
            self._close_requests(held)

    def _expire(self, served: ServedVersion, members: Sequence[Member]) -> None:
        """Answer requests whose deadline passed before they reached the model."""
        error = DeadlineExceeded(f"deadline passed in the queue of model {self.model!r}")
        for member in members:
            served.recorder.refused(error, member.request, member.frame)
            self._credit.freed(member.rows)
            self._answer(member.frame.reply_to, served.version, _NO_BATCH, [failure(member, error)])
            self._close_requests(member.frame)
        self._credit.top_up()

    # Back to the senders

    def completed(self, served: ServedVersion, completion: Completion) -> None:
        """An instance finished a batch: answer its members."""
        batch, timing = completion.batch, completion.timing
        _batcher(served).completed(completion)
        self._credit.freed(batch.rows)
        info = BatchInfo(batch.rows, len(batch.members), timing.input_ns, timing.infer_ns, timing.output_ns)
        by_sender: dict[str, list[Response]] = {}
        for member in batch.members:
            response = member.response
            if response is None:  # an executor sets every response
                raise AssertionError(f"request {member.request.id} was not answered")
            response.queue_us = (completion.started_ns - member.frame.received_ns) // 1000
            by_sender.setdefault(member.frame.reply_to, []).append(response)
        unsent = {
            reply_to
            for reply_to, responses in by_sender.items()
            if not self._answer(reply_to, served.version, info, responses)
        }
        self._credit.top_up()  # before the acks, which carry the pull
        for member in batch.members:
            frame = member.frame
            frame.unsent = frame.unsent or frame.reply_to in unsent
            self._close_requests(frame)
        served.recorder.executed(completion)

    def _answer(self, reply_to: str, version: str, info: BatchInfo, responses: list[Response]) -> bool:
        self._senders.answered(reply_to, len(responses))
        return self._publish(
            reply_to, ResponseFrame(PROTOCOL_VERSION, self._worker, version, info, responses)
        )

    def _publish(self, reply_to: str, frame: ResponseFrame) -> bool:
        """Publish a frame of responses, in parts where it is above the broker's limit.

        Returns False when the broker could not be reached: the requests must be run again.
        """
        try:
            data = encode(frame)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            unsendable = ModelFailed(f"model {self.model!r}: its answer has no wire form: {error}")
            return self._publish_parts(reply_to, frame, unsendable)
        try:
            self._bus.reply(reply_to, data)
        except PayloadTooLarge as error:
            return self._publish_parts(reply_to, frame, error)
        except BusUnavailable as error:
            logger.warning("model %s: %d answers not sent: %s", self.model, len(frame.responses), error)
            return False
        except QInferError as error:
            logger.warning("model %s: cannot answer %r: %s", self.model, reply_to[:80], error)
        return True

    def _publish_parts(self, reply_to: str, frame: ResponseFrame, error: QInferError) -> bool:
        """Publish halves of a frame that cannot be sent, down to the response that is the reason."""
        responses = frame.responses
        if len(responses) > 1:
            middle = len(responses) // 2
            parts = [responses[:middle], responses[middle:]]
        elif responses and responses[0].error is None:
            parts = [[Response(responses[0].id, responses[0].attempt, WireError.of(error))]]
        else:
            logger.warning("model %s: an error cannot be sent: %s", self.model, error)
            return True
        sent = [self._publish(reply_to, msgspec.structs.replace(frame, responses=part)) for part in parts]
        return all(sent)

    def _close_requests(self, frame: HeldFrame) -> None:
        """One more of a frame's requests is answered; the last one acks the frame."""
        frame.open -= 1
        if frame.open or frame not in self._held:
            return
        self._held.remove(frame)
        if frame.unsent:
            frame.delivery.nak()
        else:
            frame.delivery.ack()
        if not self._held:
            self._idle.set()

    async def _keep_alive(self) -> None:
        """Tell the broker, well within the ack wait, that what is held is being worked on."""
        period = self._ack_wait / 3
        while True:
            await asyncio.sleep(period / 2)
            now = self._loop.time()
            for frame in self._held:
                if now - frame.sign_of_life >= period:
                    frame.sign_of_life = now
                    frame.delivery.in_progress()

    async def _follow_clock(self) -> None:
        while True:
            await asyncio.sleep(CALIBRATION)
            await self._calibrate()

    async def _calibrate(self) -> None:
        """Learn how far this host's clock is from the broker's."""
        try:
            broker_us = await self._bus.clock_us(self.model)
        except BusUnavailable as error:
            logger.warning("model %s: ages are estimated from frames alone: %s", self.model, error)
        else:
            self._clock.calibrate(broker_us, perf_counter_ns() // 1000)


def _batcher(served: ServedVersion) -> Batcher:
    if served.batcher is None:  # set by ModelService's constructor
        raise AssertionError("version is not served yet")
    return served.batcher
