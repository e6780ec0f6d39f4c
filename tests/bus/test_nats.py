from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Literal

import pytest
import uvloop

from qinfer.bus import Bus, QueueSpec, connect
from qinfer.bus.nats.bus import NatsBus
from qinfer.bus.nats.consumer import NatsConsumer
from qinfer.embedded import EmbeddedServer
from qinfer.errors import BusUnavailable, QueueFull
from tests.bus.contract import SPEC, BusContract
from tests.helpers.waiting import Mailbox, eventually


class TestNatsBus(BusContract):
    @pytest.fixture
    def make_bus(self, namespace: str, nats_url: str) -> Callable[..., Bus]:
        return lambda suffix="": connect(nats_url, namespace=namespace[:20] + suffix)

    @pytest.mark.parametrize("storage", ["memory", "file"])
    async def test_the_queue_is_kept_as_it_is_told(
        self, bus: NatsBus, storage: Literal["memory", "file"]
    ) -> None:
        spec = QueueSpec(storage=storage, max_messages=77, max_bytes=1 << 20, ack_wait=12)
        await bus.declare("m", spec)
        await bus.consume("m", "", Mailbox())
        told = (await bus._jetstream.stream_info(bus.names.stream("m"))).config
        assert (told.storage, told.max_msgs, told.max_bytes) == (storage, 77, 1 << 20)
        assert (told.retention, told.discard, told.num_replicas) == ("workqueue", "new", 1)
        consumer = await bus._jetstream.consumer_info(bus.names.stream("m"), "latest")
        assert consumer.config.ack_wait == 12

    async def test_expired_pulls_are_asked_for_again(self, bus: NatsBus) -> None:
        await bus.declare("m", SPEC)
        inbox = Mailbox()
        await bus.consume("m", "", Mailbox())
        consumer = NatsConsumer(
            bus._connection,
            stream=bus.names.stream("m"),
            consumer="latest",
            inbox=bus._connection.client.new_inbox(),
            handler=inbox,
            missing=Mailbox(),
            expires=0.2,
        )
        await consumer.start()
        statuses: list[str] = []
        flush = consumer._flush
        consumer._flush = lambda: (statuses.append("pulled"), flush())  # type: ignore[method-assign,func-returns-value]
        consumer.grant(5)
        await eventually(lambda: len(statuses) >= 3, "two pulls expired")
        assert consumer.credit == 5
        bus.publish("m", "", b"frame", Mailbox())
        await inbox.take()
        assert consumer.credit == 4
        await consumer.close()


async def test_the_oldest_answers_make_place_for_new_ones(
    nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.naming._ANSWERS_CAPACITY", 40_000)
    bus = connect(nats_url, namespace=namespace)
    await bus.start()
    try:
        bucket = bus.names.answers_bucket
        for number in range(5):
            await bus.put(bucket, f"k{number}", bytes(12_000))
        found = [number for number in range(5) if await bus.get(bucket, f"k{number}")]
        assert found == [2, 3, 4]
    finally:
        await bus.close()


async def test_a_store_that_is_full_says_so(
    nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.bus.nats.storage._BLOBS_MAX_BYTES", 1_000_000)
    bus = connect(nats_url, namespace=namespace)
    await bus.start()
    try:
        with pytest.raises(QueueFull, match="the store of large tensors is full"):
            await bus.put_blob("in-1", bytes(1_500_000))
        await bus.put_blob("in-2", bytes(900_000))
    finally:
        await bus.close()


async def test_no_broker_is_said_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("qinfer.bus.nats.connection.CONNECT_TIMEOUT", 0.1)
    bus = connect("nats://me:secret@127.0.0.1:1")
    with pytest.raises(BusUnavailable, match=r"^no NATS server answers at nats://.*127\.0\.0\.1:1: ") as told:
        await bus.start()
    assert "refused" in str(told.value) or "Connect call failed" in str(told.value)
    assert "secret" not in str(told.value)
    assert not caplog.records
    await bus.close()


async def test_frames_the_broker_took_along_are_refused(namespace: str) -> None:
    async with EmbeddedServer() as server:
        gateway = connect(server.url, namespace=namespace)
        await gateway.start()
        await gateway.declare("m", QueueSpec())
        refused = Mailbox()
        assert server.pid
        os.kill(server.pid, signal.SIGSTOP)
        gateway.publish("m", "", b"frame", refused)
        os.kill(server.pid, signal.SIGKILL)
        (error,) = await refused.take()
        assert isinstance(error, BusUnavailable)
        assert error.retry_after
        await gateway.close()


def test_a_lost_connection_can_be_closed(namespace: str) -> None:
    """uvloop refuses to write what is left to a connection that is gone."""

    async def scene() -> None:
        async with EmbeddedServer() as server:
            bus = connect(server.url, namespace=namespace)
            await bus.start()
            await bus.declare("m", QueueSpec())
            consumer = await bus.consume("m", "", Mailbox())
            server.kill()
            await eventually(lambda: not bus.connected, "a lost connection")
            await consumer.close()  # leaves an unsubscription to be sent
            await bus.close()

    uvloop.run(scene())


async def test_answers_wait_for_senders_that_come_back_later(namespace: str) -> None:
    async with EmbeddedServer() as server:
        worker = connect(server.url, namespace=namespace)
        gateway = connect(server.url, namespace=namespace)
        await worker.start()
        await gateway.start()
        # The last of a fleet to come back.
        gateway._connection.client.options["reconnect_time_wait"] = 0.6  # type: ignore[attr-defined]
        inbox, replies, back = Mailbox(), Mailbox(), Mailbox()
        gateway.on_reply(replies)
        worker.on_reconnect(lambda: back("worker"))
        await worker.declare("m", QueueSpec(ack_wait=0.5))
        (await worker.consume("m", "", inbox)).grant(2)
        gateway.publish("m", "", b"frame", Mailbox())
        (held,) = await inbox.take()  # in work when the broker goes
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        await back.take()
        with pytest.raises(BusUnavailable, match="right after a reconnect"):
            worker.reply(gateway.reply_to, b"lost, perhaps")
        held.nak()
        (again,) = await inbox.take()
        worker.reply(gateway.reply_to, b"answer")
        again.ack()
        await eventually(lambda: b"answer" in replies.items, "the answer")
        await worker.close()
        await gateway.close()


async def test_work_goes_on_after_the_broker_was_killed(namespace: str) -> None:
    async with EmbeddedServer() as server:
        worker = connect(server.url, namespace=namespace)
        gateway = connect(server.url, namespace=namespace)
        await worker.start()
        await gateway.start()
        inbox, replies, seen = Mailbox(), Mailbox(), Mailbox()
        gateway.on_reply(replies)
        # Memory storage: the queue is gone with the broker and has to be made anew.
        await worker.declare("m", QueueSpec(storage="memory"))
        (await worker.consume("m", "", inbox)).grant(4)
        await gateway.watch(gateway.names.models_bucket, seen)
        back = Mailbox()
        worker.on_reconnect(lambda: back("worker"))
        gateway.on_reconnect(lambda: back("gateway"))
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        await back.take(2)
        while not inbox.items:
            refused = Mailbox()
            gateway.publish("m", "", b"after", refused)
            await eventually(lambda refused=refused: refused.items or inbox.items, "an answer of the broker")
        (delivery,) = await inbox.take()
        worker.reply(gateway.reply_to, b"answer to " + delivery.payload)
        assert await replies.take() == [b"answer to after"]
        await worker.put(worker.names.models_bucket, "m.1", b"record")
        await eventually(lambda: ("m.1", b"record") in seen.items)
        await worker.close()
        await gateway.close()
