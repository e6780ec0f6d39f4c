"""What the NATS bus does about a broker that is silent, forgetful or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg
from nats.js.errors import APIError, BadRequestError, ServiceUnavailableError

from qinfer.bus import QueueSpec, connect
from qinfer.bus.nats.confirmations import _PATIENCE, Confirmations
from qinfer.bus.nats.connection import LOOK, Connection
from qinfer.bus.nats.consumer import PULL_EXPIRES
from qinfer.bus.nats.registry import Registry
from qinfer.bus.nats.transport import Link, Pulse
from qinfer.bus.nats.trouble import patiently
from qinfer.embedded import EmbeddedServer
from qinfer.errors import BusUnavailable
from tests.helpers.proxy import Proxy
from tests.helpers.waiting import Mailbox, eventually


class FakeLink(Link):
    """A link whose state is told."""

    unsent = 0


class TestPulse:
    def test_silence_is_a_loss_after_so_many_looks(self) -> None:
        link, pulse = FakeLink(), Pulse(3)
        assert [pulse.lost(link) for _ in range(4)] == [False, False, False, True]

    def test_whatever_comes_in_is_a_sign_of_life(self) -> None:
        link, pulse = FakeLink(), Pulse(1)
        for _ in range(10):
            link.received += 1
            assert not pulse.lost(link)

    def test_what_leaves_after_it_had_to_wait_is_one_too(self) -> None:
        link, pulse = FakeLink(), Pulse(1)
        link.unsent = 100
        assert not pulse.lost(link)
        for _ in range(10):
            link.unsent -= 1
            assert not pulse.lost(link)

    def test_what_piles_up_is_none(self) -> None:
        link, pulse = FakeLink(), Pulse(1)
        looks = []
        for _ in range(3):
            link.unsent += 100
            looks.append(pulse.lost(link))
        assert looks == [False, True, True]


class TestConfirmations:
    def test_a_frame_that_is_not_confirmed_is_given_up(self) -> None:
        confirmations, early, late = Confirmations(), Mailbox(), Mailbox()
        confirmations.add(early)
        confirmations.look()
        confirmations.add(late)
        for _ in range(_PATIENCE - 1):
            confirmations.look()
        assert not early.items
        confirmations.look()
        (error,) = early.items
        assert isinstance(error, BusUnavailable)
        assert error.retry_after
        assert not late.items
        confirmations.look()
        assert (len(early.items), len(late.items), len(confirmations)) == (1, 1, 0)

    def test_one_that_is_confirmed_is_not(self) -> None:
        confirmations, refused = Confirmations(), Mailbox()
        number = confirmations.add(refused)
        confirmations.look()
        confirmations.receive(number, message(b'{"stream":"S","seq":1}'))
        for _ in range(2 * _PATIENCE):
            confirmations.look()
        assert not refused.items

    def test_after_a_reconnect_only_what_was_sent_before_is_in_doubt(self) -> None:
        confirmations, before, after = Confirmations(), Mailbox(), Mailbox()
        confirmations.add(before)
        confirmations.reconnected()
        confirmations.add(after)
        confirmations.give_up_doubtful()
        assert (len(before.items), len(after.items)) == (1, 0)


def message(data: bytes) -> Msg:
    client: Any = None
    return Msg(_client=client, subject="", reply="", data=data)


class TestPatience:
    async def test_a_cluster_without_leader_is_waited_for(self) -> None:
        answers: list[APIError | None] = [ServiceUnavailableError(code=503, err_code=10008), None]

        async def step() -> str:
            if (error := answers.pop(0)) is not None:
                raise error
            return "done"

        assert await patiently(step) == "done"

    async def test_what_will_not_pass_is_told_at_once(self) -> None:
        tries = []

        async def step() -> None:
            tries.append("tried")
            raise BadRequestError(code=400, err_code=10052, description="no")

        with pytest.raises(BusUnavailable):
            await patiently(step)
        assert len(tries) == 1

    async def test_nor_is_anything_waited_for_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qinfer.bus.nats.trouble.PATIENCE", 0.0)

        async def step() -> None:
            raise TimeoutError

        with pytest.raises(BusUnavailable, match="does not answer"):
            await patiently(step)


@pytest_asyncio.fixture
async def bus(nats_url: str, namespace: str) -> AsyncIterator[Any]:
    bus: Any = connect(nats_url, namespace=namespace[:20])
    await bus.start()
    yield bus
    await bus._jetstream.delete_stream(bus.names.stream("m"))
    await bus.close()


SPEC = QueueSpec(storage="memory", ack_wait=30.0, max_bytes=1 << 20)


async def test_a_pull_that_is_lost_is_missed(bus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a member of a cluster that dies: the connection is another's, and nobody says a word."""
    await bus.declare("m", SPEC)
    inbox = Mailbox()
    consumer = await bus.consume("m", "", inbox)
    consumer._patience = 2
    lost: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "publish", lambda _, subject, *rest: lost.append(subject))
        consumer.grant(5)
        await eventually(lambda: lost, "a pull")
    assert lost == [f"$JS.API.CONSUMER.MSG.NEXT.{bus.names.stream('m')}.latest"]
    assert consumer.credit == 5
    bus.publish("m", "", b"frame", Mailbox())
    (delivery,) = await inbox.take()
    assert delivery.payload == b"frame"
    assert consumer.credit == 4
    delivery.ack()


async def test_pulls_that_are_there_are_not_missed(bus: Any) -> None:
    """The server speaks of a pull before it could be taken for lost."""
    await bus.declare("m", SPEC)
    consumer = await bus.consume("m", "", Mailbox())
    assert consumer._patience * LOOK > PULL_EXPIRES
    consumer._expires_ns = int(0.5e9)
    consumer._patience = 2
    consumer.grant(5)
    await eventually(lambda: consumer._asked == 5, "they are asked for")
    expired = Mailbox()
    end_pull = consumer._end_pull

    def ended(headers: dict[str, str]) -> None:
        expired(headers)
        end_pull(headers)

    consumer._end_pull = ended
    await expired.take(3)
    assert consumer._generation == 0
    assert consumer.credit == 5


async def test_those_who_watch_hear_of_an_entry_that_nobody_can_store(
    bus: Any, namespace: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bus.declare("m", SPEC)
    seen = Mailbox()
    await bus.watch(bus.names.workers_bucket, seen)
    bus._registry.forget()

    async def leaderless(_: object, name: str) -> None:
        raise TimeoutError(name)

    monkeypatch.setattr(Registry, "_bucket", leaderless)
    with pytest.raises(BusUnavailable, match="does not answer"):
        await bus.put(bus.names.workers_bucket, "w", b"alive")
    assert await seen.take() == [("w", b"alive")]


async def test_when_the_pulls_have_a_new_leader_they_are_all_made_again_once(bus: Any) -> None:
    await bus.declare("m", SPEC)
    inbox = Mailbox()
    consumer = await bus.consume("m", "", inbox)
    consumer.grant(3)
    await eventually(lambda: consumer._asked == 3, "they are asked for")
    changed = {"Status": "409", "Description": "Leadership Change"}
    before = consumer._reply
    await consumer._receive(told(before, changed))
    assert consumer.credit == 3
    await consumer._receive(told(before, changed))  # another pull of before
    await eventually(lambda: consumer._asked == 3, "they are asked for again")
    await consumer._receive(told(before, changed))
    assert (consumer._asked, consumer.credit) == (3, 3)


def told(subject: str, headers: dict[str, str]) -> Msg:
    client: Any = None
    return Msg(_client=client, subject=subject, reply="", headers=headers)


async def test_a_queue_that_is_deleted_is_made_anew(bus: Any) -> None:
    await bus.declare("m", SPEC)
    inbox = Mailbox()
    (await bus.consume("m", "", inbox)).grant(4)
    await bus._jetstream.delete_stream(bus.names.stream("m"))
    while not inbox.items:
        refused = Mailbox()
        bus.publish("m", "", b"frame", refused)
        await eventually(partial(any_of, refused, inbox), "an answer of the broker")
    inbox.items[0].ack()


def any_of(*boxes: Mailbox) -> bool:
    return any(box.items for box in boxes)


async def test_a_link_that_takes_nothing_more_is_left_for_another(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits to be sent on it must not be waited for."""
    monkeypatch.setattr("qinfer.bus.nats.connection._SILENT_LOOKS", 3)
    async with EmbeddedServer() as broker, Proxy(broker.port) as dead, Proxy(broker.port) as alive:
        alive.cut()
        urls = [broker.url.replace(f":{broker.port}", f":{link.port}") for link in (dead, alive)]
        bus: Any = connect(",".join(urls), namespace=namespace)
        back = Mailbox()
        bus.on_reconnect(lambda: back("back"))
        await bus.start()
        await bus.declare("m", QueueSpec())
        dead.stall()
        for _ in range(64):
            bus.publish("m", "", bytes(512 * 1024), Mailbox())
            await asyncio.sleep(0)
        assert bus._connection._link.unsent
        alive.restore()
        await back.take()
        assert await bus.enqueue("m", "", b"frame")
        await bus.close()


async def test_those_who_lost_the_broker_do_not_all_come_back_in_one_instant(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for a time of its own: here the shorter, the later it knew of the loss."""
    async with EmbeddedServer() as broker, Proxy(broker.port) as link:
        lost, back = Mailbox(), Mailbox()
        buses = [
            connect(broker.url.replace(f":{broker.port}", f":{link.port}"), namespace=namespace)
            for _ in range(4)
        ]
        for number, bus in enumerate(buses):
            bus.on_disconnect(partial(lost, number))
            bus.on_reconnect(partial(back, number))
            await bus.start()
        waits = [1.7, 1.2, 0.7, 0.2]  # more than a second try would take
        monkeypatch.setattr("qinfer.bus.nats.connection.random.uniform", lambda low, _: low + waits.pop(0))
        link.cut()
        link.restore()
        assert await back.take(4) == list(reversed(await lost.take(4)))
        for bus in buses:
            await bus.close()


async def test_a_frame_that_is_never_confirmed_is_given_up_while_the_connection_lives(
    bus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a member of a cluster that dies with it: here somebody takes the frame and says nothing."""
    monkeypatch.setattr("qinfer.bus.nats.confirmations._PATIENCE", 1)
    await bus.declare("m", SPEC)
    swallowed, refused, lost = Mailbox(), Mailbox(), Mailbox()

    async def swallow(message: Msg) -> None:
        swallowed(message.data)

    bus.on_disconnect(lambda: lost("lost"))
    await bus._connection.client.subscribe(bus.names.requests("other"), cb=swallow)
    bus.publish("other", "", b"frame", refused)
    assert await swallowed.take() == [b"frame"]
    (error,) = await refused.take()
    assert isinstance(error, BusUnavailable)
    assert not lost.items


async def test_a_connection_that_the_broker_ends_with_a_complaint_is_made_again(bus: Any) -> None:
    await bus.declare("m", SPEC)
    losses, returns = Mailbox(), Mailbox()
    bus._connection.on_disconnect(lambda: losses("lost"))
    bus._connection.on_reconnect(lambda: returns("back"))
    # Too long for a line of the protocol: the broker says so, and closes.
    bus._connection.publish("a" * 100_000, b"")
    await eventually(lambda: returns.items and bus._connection.connected)
    assert losses.items
    assert await bus.get(bus.names.models_bucket, "none") is None
