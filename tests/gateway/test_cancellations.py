"""Workers are told of callers that have gone: on the memory bus, the tests being the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from qinfer.bus import Bus
from qinfer.message import decode_cancel_frame
from tests.gateway.test_dispatcher import Stage, buses, settled, target
from tests.helpers.waiting import Mailbox, eventually

__all__ = ["buses"]


class Listening(Stage):
    """A stage whose worker listens for cancellations."""

    def __init__(self, client: Bus, worker: Bus) -> None:
        super().__init__(client, worker)
        self.notices = Mailbox()

    async def cancelled(self) -> list[int]:
        (notice,) = await self.notices.take()
        frame = decode_cancel_frame(notice)
        assert (frame.version, frame.reply_to) == (1, self.client.reply_to)
        return frame.ids


@pytest_asyncio.fixture
async def stage(buses: tuple[Bus, Bus]) -> AsyncIterator[Listening]:
    stage = Listening(*buses)
    await stage.serve()
    await stage.worker.on_cancel("m", stage.notices)
    yield stage
    await stage.dispatcher.drain(0)


async def test_callers_that_leave_together_are_told_together(stage: Listening) -> None:
    calls = [stage.call(target()) for _ in range(4)]
    await stage.frames()
    for call in calls[:3]:
        stage.dispatcher.abandon(call)
        stage.dispatcher.abandon(call)
    assert await stage.cancelled() == [call.number for call in calls[:3]]
    await settled()
    assert not stage.notices.items
    assert stage.dispatcher.in_flight == {"m": 1}


async def test_each_model_has_its_own_notice(stage: Listening) -> None:
    await stage.serve("n")
    others = Mailbox()
    await stage.worker.on_cancel("n", others)
    here, there = stage.call(target("m")), stage.call(target("n"))
    await stage.frames(2)
    stage.dispatcher.abandon(here)
    stage.dispatcher.abandon(there)
    assert await stage.cancelled() == [here.number]
    assert decode_cancel_frame((await others.take())[0]).ids == [there.number]


async def test_what_was_never_sent_needs_no_notice(stage: Listening) -> None:
    stage.dispatcher.abandon(stage.call(target()))
    await settled()
    assert not stage.notices.items


async def test_a_deadline_needs_no_notice(stage: Listening) -> None:
    """Workers watch it themselves."""
    call = stage.call(target(), timeout=0.02)
    await stage.frames()
    await eventually(lambda: call.reason, "it is over")
    await settled()
    assert not stage.notices.items


async def test_an_answered_call_needs_no_notice(stage: Listening) -> None:
    call = stage.call(target())
    await stage.frames()
    stage.answer(call.number)
    await eventually(lambda: call.reason, "it is answered")
    stage.dispatcher.abandon(call)
    await settled()
    assert not stage.notices.items


async def test_without_a_connection_nothing_is_told_and_nothing_raises(stage: Listening) -> None:
    call = stage.call(target())
    await stage.frames()
    await stage.client.close()
    stage.dispatcher.abandon(call)
    await settled()
    assert stage.outcomes == {"cancelled": 1}
