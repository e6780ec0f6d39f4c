"""What becomes of calls when the connection is lost, on a memory bus that can lose it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from qinfer.bus.memory.bus import MemoryBus
from qinfer.errors import BusUnavailable, NoWorker, QInferError, QueueFull
from qinfer.message import decode_request_frame
from qinfer.naming import Names
from qinfer_gateway.dispatcher import Dispatcher
from qinfer_gateway.observer import Observer
from tests.gateway.test_dispatcher import Stage, StubCall, settled, target
from tests.gateway.test_streams import Script
from tests.helpers.waiting import Mailbox, eventually


class LossyBus(MemoryBus):
    """A connection that can be lost, with what is on its way, and can refuse what it is given."""

    def __init__(self, name: str, *, names: Names) -> None:
        super().__init__(name, names=names)
        self.up = True
        self.refusals: list[QInferError] = []
        self.swallows = False
        self.unconfirmed: list[Callable[[QInferError], None]] = []
        self._on_disconnect: list[Callable[[], None]] = []
        self._on_reconnect: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        return self.up and super().connected

    def publish(self, model: str, version: str, frame: bytes, refused: Callable[[QInferError], None]) -> None:
        if not self.up:
            raise BusUnavailable("down", retry_after=1.0)
        if self.refusals:
            self._loop.call_soon(refused, self.refusals.pop(0))
        elif self.swallows:
            self.unconfirmed.append(refused)
        else:
            super().publish(model, version, frame, refused)

    def _receive(self, frame: bytes) -> None:
        if self.up:
            super()._receive(frame)

    def on_disconnect(self, handler: Callable[[], None]) -> None:
        self._on_disconnect.append(handler)

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        self._on_reconnect.append(handler)

    def cut(self) -> None:
        self.up = False
        for handler in self._on_disconnect:
            handler()

    def restore(self) -> None:
        """As `NatsBus` does it: what was not confirmed is given up once the connection has settled."""
        self.up, self.swallows = True, False
        for handler in self._on_reconnect:
            handler()
        unconfirmed, self.unconfirmed = self.unconfirmed, []
        for refused in unconfirmed:
            refused(BusUnavailable("not confirmed", retry_after=1.0))


class LossyStage(Stage):
    """A dispatcher on a lossy bus."""

    client: LossyBus

    def __init__(
        self, client: LossyBus, worker: MemoryBus, *, patience: float = 60.0, grace: float = 0.05
    ) -> None:
        super().__init__(client, worker)
        self.dispatcher = Dispatcher(
            client, Observer(self.stats), max_in_flight=100, timeout=30.0, patience=patience
        )
        self.dispatcher._recovery._grace = grace

    async def attempts(self, count: int = 1) -> list[int]:
        """The attempts of the next requests at the worker."""
        frames = await self.frames(count)
        return [request.attempt for frame in frames for request in frame.requests]


@pytest_asyncio.fixture
async def buses(namespace: str) -> AsyncIterator[tuple[LossyBus, MemoryBus]]:
    names = Names(namespace)
    client, worker = LossyBus("recovery", names=names), MemoryBus("recovery", names=names)
    await client.start()
    await worker.start()
    yield client, worker
    client.up = True
    await client.close()
    await worker.close()


@pytest_asyncio.fixture
async def stage(buses: tuple[LossyBus, MemoryBus]) -> AsyncIterator[LossyStage]:
    stage = LossyStage(*buses)
    await stage.serve()
    yield stage
    await stage.dispatcher.drain(0)


async def answered(stage: Stage, call: StubCall) -> None:
    stage.answer(call.number)
    await eventually(lambda: call.reason, "the call has ended")
    assert call.reason == "ok"


async def test_confirmed_calls_are_sent_again_when_no_answer_comes(stage: LossyStage) -> None:
    call = stage.call(target())
    (frame,) = await stage.frames()
    stage.client.cut()
    stage.answer(call.number)  # reaches nobody
    await settled()
    stage.client.restore()
    (delivery,) = await stage.deliveries.take()
    again = decode_request_frame(delivery.payload)
    assert again.requests[0].id == call.number
    assert (frame.requests[0].attempt, again.requests[0].attempt) == (0, 1)
    assert again.sent_us > frame.sent_us
    first, second = (each.requests[0].deadline_us - each.sent_us for each in (frame, again))
    assert second < first, "the remaining time, not the whole"
    await answered(stage, call)
    stage.answer(call.number)
    await eventually(lambda: stage.dispatcher.dropped == 1, "the second answer is counted")
    assert (stage.stats.resent, stage.outcomes) == (1, {"ok": 1})


async def test_an_answer_that_comes_late_is_taken_and_nothing_is_sent_again(
    buses: tuple[LossyBus, MemoryBus],
) -> None:
    stage = LossyStage(*buses, grace=0.3)
    await stage.serve()
    call, later = stage.call(target()), None
    await stage.frames()
    stage.client.cut()
    stage.client.restore()
    await answered(stage, call)
    stage.dispatcher._recovery._resend_doubtful()  # as when the grace is over
    later = stage.call(target())
    assert await stage.attempts() == [0], "the next frame is the next call's"
    await answered(stage, later)
    assert stage.stats.resent == 0
    await stage.dispatcher.drain(0)


@pytest.mark.parametrize(("lost", "comes", "again"), [((), (1,), 0), ((1,), (2,), 1), ((), (), 1)])
async def test_a_stream_that_goes_on_without_a_gap_is_not_begun_again(
    buses: tuple[LossyBus, MemoryBus], lost: tuple[int, ...], comes: tuple[int, ...], again: int
) -> None:
    stage = LossyStage(*buses, grace=30.0)
    await stage.serve()
    script = Script(stage, Mailbox())
    await script.begin()
    script.say(0)
    assert await script.read(1) == [0]
    stage.client.cut()
    script.say(*lost)
    await settled()
    stage.client.restore()
    script.say(*comes)
    await settled()
    recovery = stage.dispatcher._recovery
    recovery._grace = 0.0  # it is over
    recovery._resend_doubtful()
    assert stage.stats.resent == again
    await stage.dispatcher.drain(0)


async def test_a_call_whose_answer_is_not_due_yet_waits_in_its_queue(stage: LossyStage) -> None:
    """Under a backlog of ten seconds everything in flight is still there, and would be there twice."""
    call = stage.call(target())
    await stage.frames()
    flight = stage.dispatcher.flights["m"]
    flight.latency = 10.0
    stage.client.cut()
    stage.client.restore()
    recovery = stage.dispatcher._recovery
    assert 14.0 < recovery._due(call) - recovery._back_at < 15.1
    flight.latency = 1000.0
    assert 14.0 < recovery._due(call) - recovery._back_at < 15.1, "but half of its time is left for a new try"
    recovery._resend_doubtful()
    assert stage.stats.resent == 0
    flight.latency = 0.0
    assert await stage.attempts() == [1]
    await answered(stage, call)


async def test_unconfirmed_calls_are_sent_again_and_once(stage: LossyStage) -> None:
    stage.client.swallows = True
    calls = [stage.call(target()) for _ in range(3)]
    await eventually(lambda: stage.client.unconfirmed, "they are sent")
    stage.client.cut()
    stage.client.restore()
    assert await stage.attempts() == [1, 1, 1], "in one frame again"
    for call in calls:
        await answered(stage, call)
    assert stage.stats.resent == 3


async def test_a_frame_given_up_late_does_not_double_what_was_sent_again(stage: LossyStage) -> None:
    stage.client.swallows = True
    call = stage.call(target())
    await eventually(lambda: stage.client.unconfirmed, "it is sent")
    (given_up,) = stage.client.unconfirmed
    stage.client.unconfirmed.clear()
    stage.client.cut()
    stage.client.restore()
    assert await stage.attempts() == [1]
    given_up(BusUnavailable("not confirmed", retry_after=1.0))
    assert not stage.dispatcher._recovery._timers, "nothing is to be sent"
    await answered(stage, call)
    assert stage.stats.resent == 1


async def test_what_was_known_of_queues_ends_with_the_connection(stage: LossyStage) -> None:
    call = stage.call(target())
    await stage.frames()
    (flight,) = stage.dispatcher.flights.values()
    flight.backlog = 7
    stage.client.cut()
    assert flight.backlog == 0
    stage.client.restore()
    await stage.frames()
    await answered(stage, call)


async def test_calls_wait_no_longer_than_the_patience(buses: tuple[LossyBus, MemoryBus]) -> None:
    stage = LossyStage(*buses, patience=0.05)
    await stage.serve()
    waiting = stage.call(target())
    await stage.frames()
    stage.client.cut()
    new = stage.call(target())
    await eventually(lambda: new.reason, "new calls end")
    await eventually(lambda: waiting.reason, "calls in flight end")
    for call in (new, waiting):
        assert call.reason == "bus_unavailable"
        assert call.errors[0].retry_after
    assert stage.dispatcher.in_flight == {"m": 0}
    stage.client.restore()
    await stage.dispatcher.drain(0)


async def test_a_call_with_less_time_ends_as_unavailable_before_its_deadline(stage: LossyStage) -> None:
    call = stage.call(target(), timeout=0.2)
    await stage.frames()
    due = call.deadline
    stage.client.cut()
    assert call.deadline < due
    await eventually(lambda: call.reason, "it ends")
    assert call.reason == "bus_unavailable"


async def test_a_link_that_flaps_does_not_send_for_ever(stage: LossyStage) -> None:
    call = stage.call(target())
    await stage.frames()
    for attempt in range(1, 9):
        stage.client.cut()
        stage.client.restore()
        assert await stage.attempts() == [attempt]
    stage.client.cut()
    stage.client.restore()
    stage.dispatcher._recovery._resend_doubtful()
    next_call = stage.call(target())
    assert await stage.attempts() == [0], "the ninth is not sent; this is another call's"
    await answered(stage, next_call)
    await answered(stage, call)


@pytest.mark.parametrize(
    "refusal", [BusUnavailable("no leader", retry_after=1.0), NoWorker("no queue", retry_after=1.0)]
)
async def test_a_refusal_that_may_pass_is_tried_again(stage: LossyStage, refusal: QInferError) -> None:
    stage.client.refusals = [refusal, refusal]
    call = stage.call(target())
    assert await stage.attempts() == [2]
    await answered(stage, call)


async def test_a_refusal_for_good_reaches_the_caller(stage: LossyStage) -> None:
    stage.client.refusals = [NoWorker("no queue", retry_after=1.0)] * 10
    call = stage.call(target(), timeout=20.0)
    await eventually(lambda: call.reason, "it ends")
    assert call.reason == "no_worker"
    short = stage.call(target(), timeout=0.05)
    await eventually(lambda: short.reason, "no time for another try")
    assert short.reason == "no_worker"


async def test_a_full_queue_is_no_end_for_who_may_be_in_it(stage: LossyStage) -> None:
    call = stage.call(target())
    await stage.frames()
    stage.client.refusals = [QueueFull("full", retry_after=1.0)] * 2
    stage.client.cut()
    stage.client.restore()
    await eventually(lambda: not stage.client.refusals, "it was sent again, and refused")
    await settled()
    assert not call.reason
    await answered(stage, call)


async def test_a_full_queue_says_nothing_of_earlier_tries(stage: LossyStage) -> None:
    call = stage.call(target(), timeout=0.5)
    await stage.frames()
    stage.client.refusals = [QueueFull("full", retry_after=1.0)] * 10
    stage.client.cut()
    stage.client.restore()
    await eventually(lambda: call.reason, "no time for another try")
    assert call.reason == "bus_unavailable"
    stage.client.refusals = [QueueFull("full", retry_after=1.0)]
    fresh = stage.call(target())
    await eventually(lambda: fresh.reason, "it is refused")
    assert fresh.reason == "queue_full"


async def test_who_left_meanwhile_is_not_sent_again(stage: LossyStage) -> None:
    gone, stays = stage.call(target()), stage.call(target())
    await stage.frames()
    stage.client.cut()
    stage.dispatcher.abandon(gone)
    stage.client.restore()
    (frame,) = await stage.frames()
    assert [request.id for request in frame.requests] == [stays.number]
    await answered(stage, stays)
