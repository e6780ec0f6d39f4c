"""What every bus does. Each implementation runs this suite (see the neighbours)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from qinfer.bus import Bus, Delivery, QueueSpec
from qinfer.bus.services import Service, ServiceCounters
from qinfer.errors import BusUnavailable, InvalidRequest, NotFound, NoWorker, PayloadTooLarge, QueueFull
from tests.bus.table_contract import TableContract
from tests.helpers.waiting import Mailbox, eventually

SPEC = QueueSpec(storage="memory", ack_wait=30, max_bytes=4 << 20)
IMPATIENT = QueueSpec(storage="memory", ack_wait=0.2, max_bytes=4 << 20)


def make_service(name: str, **changes: Any) -> Service:
    told: dict[str, Any] = {
        "name": name,
        "id": f"host-1-{name}",
        "version": "3.0.0",
        "description": "what it is",
        "subject": "qinfer.x.infer.m.3",
        "queue": "v3",
        "metadata": {"model": "m"},
        "started": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "counters": ServiceCounters,
    }
    return Service(**{**told, **changes})


def in_order(bus: Bus, payloads: list[bytes]) -> list[bytes]:
    """What a sender published in the order of its numbers, by a bus that may have mixed it up."""
    return payloads if bus.guarantees.order else sorted(payloads)


class BusContract(TableContract):
    """Subclasses provide the fixture `make_bus`: a function that makes buses of one namespace."""

    @pytest_asyncio.fixture
    async def bus(self, make_bus: Callable[[], Bus]) -> AsyncIterator[Bus]:
        bus = make_bus()
        await bus.start()
        yield bus
        await bus.close()

    @pytest_asyncio.fixture
    async def other(self, make_bus: Callable[[], Bus]) -> AsyncIterator[Bus]:
        bus = make_bus()
        await bus.start()
        yield bus
        await bus.close()

    async def test_a_frame_is_delivered_with_its_history(self, bus: Bus) -> None:
        await bus.declare("m", SPEC)
        inbox, refused = Mailbox(), Mailbox()
        consumer = await bus.consume("m", "", inbox)
        consumer.grant(1)
        bus.publish("m", "", b"frame", refused)
        (delivery,) = await inbox.take()
        assert (delivery.payload, delivery.attempt, delivery.pending) == (b"frame", 1, 0)
        assert delivery.stored_us > 1_600_000_000_000_000
        delivery.ack()
        assert not refused.items

    async def test_the_clock_is_the_one_that_store_times_are_of(self, bus: Bus) -> None:
        await bus.declare("m", SPEC)
        inbox = Mailbox()
        (await bus.consume("m", "", inbox)).grant(1)
        before = await bus.clock_us("m")
        bus.publish("m", "", b"frame", Mailbox())
        (delivery,) = await inbox.take()
        assert before <= delivery.stored_us <= await bus.clock_us("m")
        delivery.ack()

    async def test_what_is_queued_for_a_version_is_counted_until_it_is_ended(self, bus: Bus) -> None:
        await bus.declare("m", SPEC)
        inbox = Mailbox()
        consumer = await bus.consume("m", "2", inbox)
        await bus.consume("m", "", Mailbox())
        assert await bus.queued("m", "2") == 0
        for frame in (b"one", b"two"):
            await bus.enqueue("m", "2", frame)
        assert await bus.queued("m", "2") == 2
        assert await bus.queued("m", "") == 0
        consumer.grant(1)
        (delivery,) = await inbox.take()
        assert await bus.queued("m", "2") == 2
        delivery.ack()
        left = 2
        while left == 2:  # an ack has no answer
            left = await bus.queued("m", "2")
        assert left == 1

    async def test_nothing_comes_without_credit(self, bus: Bus) -> None:
        await bus.declare("m", SPEC)
        inbox = Mailbox()
        consumer = await bus.consume("m", "", inbox)
        for number in range(5):
            bus.publish("m", "", b"%d" % number, Mailbox())
        consumer.grant(2)
        first = await inbox.take(2)
        if bus.guarantees.backlog:
            assert first[0].pending == 4
        await asyncio.gather(*(bus.ask("nobody", b"", answers=1, timeout=0.05) for _ in range(2)))
        assert not inbox.items
        assert consumer.credit == 0
        consumer.grant(10)
        frames = [delivery.payload for delivery in first + await inbox.take(3)]
        assert in_order(bus, frames) == [b"0", b"1", b"2", b"3", b"4"]
        await eventually(lambda: consumer.credit == 7)

    async def test_credit_granted_before_an_ack_is_used(self, bus: Bus) -> None:
        await bus.declare("m", SPEC)
        inbox = Mailbox()
        consumer = await bus.consume("m", "", inbox)
        consumer.grant(1)
        for number in range(3):
            bus.publish("m", "", b"%d" % number, Mailbox())
        frames = []
        for _ in range(3):
            (delivery,) = await inbox.take()
            frames.append(delivery.payload)
            consumer.grant(1)
            delivery.ack()
        assert in_order(bus, frames) == [b"0", b"1", b"2"]

    async def test_acked_frames_do_not_come_back(self, bus: Bus) -> None:
        await bus.declare("m", IMPATIENT)
        inbox = Mailbox()
        consumer = await bus.consume("m", "", inbox)
        consumer.grant(100)
        bus.publish("m", "", b"done", Mailbox())
        (delivery,) = await inbox.take()
        delivery.ack()
        bus.publish("m", "", b"held", Mailbox())
        (held,) = await inbox.take()
        (again,) = await inbox.take()  # the held one is overdue by now, the acked one is not
        assert (held.payload, held.attempt) == (b"held", 1)
        assert (again.payload, again.attempt) == (b"held", 2)
        again.ack()

    async def test_sign_of_life_postpones_redelivery(self, bus: Bus) -> None:
        await bus.declare("m", IMPATIENT)
        inbox = Mailbox()
        consumer = await bus.consume("m", "", inbox)
        consumer.grant(100)
        bus.publish("m", "", b"slow", Mailbox())
        bus.publish("m", "", b"lost", Mailbox())
        slow, _ = sorted(await inbox.take(2), key=lambda delivery: delivery.payload, reverse=True)
        redelivered = 0
        while redelivered < 3:  # three ack waits of the other frame
            slow.in_progress()
            await asyncio.sleep(0)
            for delivery in inbox.items:
                assert delivery.payload == b"lost"
                redelivered += 1
            inbox.items.clear()
        slow.ack()

    async def test_nak_gives_a_frame_back_at_once(self, bus: Bus, other: Bus) -> None:
        await bus.declare("m", SPEC)
        await other.declare("m", SPEC)
        mine, theirs = Mailbox(), Mailbox()
        consumer = await bus.consume("m", "", mine)
        consumer.grant(1)
        bus.publish("m", "", b"frame", Mailbox())
        (delivery,) = await mine.take()
        await consumer.close()
        second = await other.consume("m", "", theirs)
        second.grant(1)
        delivery.nak()
        (again,) = await theirs.take()
        assert (again.payload, again.attempt) == (b"frame", 2)
        again.ack()

    async def test_term_forgets_a_frame(self, bus: Bus) -> None:
        await bus.declare("m", IMPATIENT)
        inbox = Mailbox()
        consumer = await bus.consume("m", "", inbox)
        consumer.grant(100)
        bus.publish("m", "", b"garbage", Mailbox())
        (delivery,) = await inbox.take()
        delivery.term()
        bus.publish("m", "", b"held", Mailbox())
        await inbox.take()
        (again,) = await inbox.take()
        assert again.payload == b"held"
        again.ack()

    async def test_consumers_share_frame_by_frame(self, bus: Bus, other: Bus) -> None:
        if not bus.guarantees.fair:
            pytest.skip("this broker shares a queue in parts: see the next test")
        await bus.declare("m", SPEC)
        await other.declare("m", SPEC)
        mine, theirs = Mailbox(), Mailbox()
        (await bus.consume("m", "", mine)).grant(2)
        (await other.consume("m", "", theirs)).grant(2)
        for number in range(4):
            bus.publish("m", "", b"%d" % number, Mailbox())
        frames = [delivery.payload for delivery in await mine.take(2) + await theirs.take(2)]
        assert sorted(frames) == [b"0", b"1", b"2", b"3"]

    async def test_consumers_share_and_versions_do_not(self, bus: Bus, other: Bus) -> None:
        await bus.declare("m", SPEC)
        await other.declare("m", SPEC)
        mine, theirs, second = [], [], Mailbox()

        def working(done: list[Delivery]) -> Callable[[Delivery], None]:
            return lambda delivery: (done.append(delivery), delivery.ack())[1]

        (await bus.consume("m", "", working(mine))).grant(10_000)
        (await other.consume("m", "", working(theirs))).grant(10_000)
        (await bus.consume("m", "2", second)).grant(1)
        bus.publish("m", "2", b"for version 2", Mailbox())
        published = 0
        async with asyncio.timeout(20):
            while not (mine and theirs):
                bus.publish("m", "", b"%d" % published, Mailbox())
                published += 1
                await asyncio.sleep(0.002)
        await eventually(lambda: len(mine) + len(theirs) >= published, "all frames")
        frames = [int(delivery.payload) for delivery in mine + theirs]
        assert sorted(frames) == list(range(published))
        assert [delivery.payload for delivery in await second.take()] == [b"for version 2"]

    async def test_frames_wait_for_a_consumer(self, bus: Bus, other: Bus) -> None:
        await bus.declare("m", SPEC)
        await other.declare("m", SPEC)
        consumer = await bus.consume("m", "", Mailbox())
        await consumer.close()
        await consumer.close()
        bus.publish("m", "", b"early", Mailbox())
        inbox = Mailbox()
        (await other.consume("m", "", inbox)).grant(1)
        (delivery,) = await inbox.take()
        assert delivery.payload == b"early"

    async def test_a_full_queue_refuses(self, bus: Bus) -> None:
        await bus.declare("m", QueueSpec(storage="memory", max_messages=2, max_bytes=4 << 20))
        refused = Mailbox()
        for _ in range(3):
            bus.publish("m", "", b"frame", refused)
        (error,) = await refused.take()
        assert isinstance(error, QueueFull)
        assert error.retry_after
        # What was taken is delivered, and makes room once it is acked.
        inbox = Mailbox()
        (await bus.consume("m", "", inbox)).grant(3)
        for delivery in await inbox.take(2):
            delivery.ack()
        while not inbox.items:  # the broker may see the publish before it has done the acks
            bus.publish("m", "", b"fits", refused)
            await eventually(lambda: refused.items or inbox.items, "the broker's verdict")
            refused.items.clear()
        assert inbox.items[0].payload == b"fits"

    async def test_a_queue_is_bounded_in_bytes(self, bus: Bus) -> None:
        await bus.declare("m", QueueSpec(storage="memory", max_bytes=10_000))
        refused = Mailbox()
        for _ in range(3):
            bus.publish("m", "", b"x" * 4500, refused)
        (error,) = await refused.take()
        assert isinstance(error, QueueFull)

    async def test_a_model_without_queue_refuses(self, bus: Bus) -> None:
        refused = Mailbox()
        bus.publish("unheard of", "", b"frame", refused)
        (error,) = await refused.take()
        assert isinstance(error, NoWorker)

    async def test_too_large_a_frame_is_refused_at_once(self, bus: Bus) -> None:
        await bus.declare("m", SPEC)
        with pytest.raises(PayloadTooLarge, match=str(bus.max_payload)):
            bus.publish("m", "", bytes(bus.max_payload + 1), Mailbox())
        with pytest.raises(PayloadTooLarge, match=str(bus.max_payload)):
            bus.reply(bus.reply_to, bytes(bus.max_payload + 1))

    async def test_replies_reach_their_sender_only(self, bus: Bus, other: Bus) -> None:
        mine, theirs = Mailbox(), Mailbox()
        bus.on_reply(mine)
        other.on_reply(theirs)
        other.reply(bus.reply_to, b"to you")
        other.reply(other.reply_to, b"to me")
        assert await mine.take() == [b"to you"]
        assert await theirs.take() == [b"to me"]

    @pytest.mark.parametrize(
        "subject", ["", "$JS.API.STREAM.DELETE.X", "qinfer.x.infer.m.latest", "_INBOX.a b", "_INBOX.>"]
    )
    async def test_replies_go_to_inboxes_only(self, bus: Bus, subject: str) -> None:
        with pytest.raises(InvalidRequest, match="not an inbox"):
            bus.reply(subject, b"x")

    async def test_any_name_can_be_a_model(self, bus: Bus) -> None:
        for name in ("../etc/passwd", "a.b.*.>", "space and ünïcode", "x" * 100):
            await bus.declare(name, SPEC)
            inbox = Mailbox()
            (await bus.consume(name, "", inbox)).grant(1)
            bus.publish(name, "", name.encode(), Mailbox())
            (delivery,) = await inbox.take()
            assert delivery.payload == name.encode()
            delivery.ack()

    async def test_all_who_listen_answer_a_question(self, bus: Bus, other: Bus) -> None:
        async def first(question: bytes) -> bytes:
            return b"first " + question

        async def second(question: bytes) -> bytes:
            return b"second " + question

        await bus.answer("topic", first)
        await other.answer("topic", second)
        answers = await bus.ask("topic", b"?", answers=2, timeout=10)
        assert sorted(answers) == [b"first ?", b"second ?"]

    async def test_a_question_to_nobody_ends(self, bus: Bus) -> None:
        patience = 10 if bus.guarantees.silence else 0.2
        assert await bus.ask("silence", b"?", answers=3, timeout=patience) == []
        assert await bus.ask("silence", b"?", answers=0, timeout=10) == []

    async def test_services_may_be_told_of_or_not(self, bus: Bus, make_bus: Callable[[], Bus]) -> None:
        """Whether anybody can list them is the broker's affair (`test_nats_services`)."""
        services = [make_service("qinfer-x-m"), make_service("qinfer-x-n")]
        for told in (services, services[1:], services, []):
            await bus.advertise(told)
        await bus.advertise(services)
        # What is published on a service's subject still goes to the queue, and to nobody else.
        await bus.declare("m", SPEC)
        inbox = Mailbox()
        (await bus.consume("m", "", inbox)).grant(1)
        bus.publish("m", "", b"frame", Mailbox())
        (delivery,) = await inbox.take()
        delivery.ack()
        await bus.close()
        fresh = make_bus()
        await fresh.start()
        await fresh.advertise(services)
        await fresh.close()

    async def test_a_watch_sees_what_is_there_and_what_comes(self, bus: Bus, other: Bus) -> None:
        bucket = bus.names.models_bucket
        await bus.put(bucket, "m=2E.1", b"one")
        seen = Mailbox()
        watcher = await other.watch(bucket, seen)
        assert ("m=2E.1", b"one") in seen.items
        seen.items.clear()
        await bus.put(bucket, "m=2E.1", b"two")
        assert await seen.take() == [("m=2E.1", b"two")]
        await bus.delete(bucket, "m=2E.1")
        assert await seen.take() == [("m=2E.1", None)]
        await bus.delete(bucket, "never.there")
        await watcher.close()
        await watcher.close()

    async def test_one_entry_can_be_watched_and_read(self, bus: Bus, other: Bus) -> None:
        bucket = bus.names.answers_bucket
        assert await bus.get(bucket, "a") is None
        seen = Mailbox()
        watcher = await bus.watch(bucket, lambda key, value: seen((key, value)), "a")
        await other.put(bucket, "b", b"other")
        await other.put(bucket, "a", b"1")
        assert await seen.take() == [("a", b"1")]
        first = await bus.get(bucket, "a")
        await other.put(bucket, "a", b"2")
        second = await bus.get(bucket, "a")
        assert first is not None
        assert second is not None
        assert (first[0], second[0]) == (b"1", b"2")
        assert first[1] < second[1]
        await watcher.close()
        await other.delete(bucket, "a")
        assert await bus.get(bucket, "a") is None
        late = Mailbox()
        await other.put(bucket, "a", b"3")
        again = await bus.watch(bucket, lambda key, value: late((key, value)), "a")
        assert await late.take() == [("a", b"3")]
        await again.close()
        assert seen.items in ([], [("a", b"2")])

    async def test_an_entry_is_replaced_by_who_read_it_last(self, bus: Bus, other: Bus) -> None:
        bucket = bus.names.answers_bucket
        assert await bus.replace(bucket, "k", b"1", 0)
        assert not await other.replace(bucket, "k", b"2", 0), "there is one already"
        entry = await other.get(bucket, "k")
        assert entry is not None
        assert await other.replace(bucket, "k", b"3", entry[1])
        assert not await bus.replace(bucket, "k", b"4", entry[1]), "it was replaced meanwhile"
        now = await bus.get(bucket, "k")
        assert now is not None
        assert now[0] == b"3"

    async def test_a_frame_of_a_known_id_is_queued_once(self, bus: Bus, other: Bus) -> None:
        await bus.declare("m", SPEC)
        assert await bus.enqueue("m", "", b"1", message_id="x")
        assert not await other.enqueue("m", "", b"2", message_id="x")
        assert await other.enqueue("m", "", b"3", message_id="y")
        assert await bus.enqueue("m", "", b"4")
        inbox = Mailbox()
        (await bus.consume("m", "", inbox)).grant(5)
        deliveries = await inbox.take(3)
        assert [delivery.payload for delivery in deliveries] == [b"1", b"3", b"4"]
        assert len({delivery.sequence for delivery in deliveries}) == 3
        deliveries[0].nak()
        (again,) = await inbox.take()
        assert (again.sequence, again.attempt) == (deliveries[0].sequence, 2)
        assert not await bus.enqueue("m", "", b"5", message_id="x")

    async def test_queueing_says_why_not(self, bus: Bus) -> None:
        with pytest.raises(NoWorker):
            await bus.enqueue("nowhere", "", b"frame")
        await bus.declare("m", QueueSpec(storage="memory", max_messages=1, max_bytes=1 << 20))
        await bus.enqueue("m", "", b"frame")
        with pytest.raises(QueueFull):
            await bus.enqueue("m", "", b"frame", message_id="z")
        with pytest.raises(PayloadTooLarge):
            await bus.enqueue("m", "", b"x" * (bus.max_payload + 1))

    async def test_cancellations_reach_all_workers_of_the_model(self, bus: Bus, other: Bus) -> None:
        here, there, elsewhere = Mailbox(), Mailbox(), Mailbox()
        first = await bus.on_cancel("m", here)
        await other.on_cancel("m", there)
        await other.on_cancel("n", elsewhere)
        await eventually(lambda: (bus.cancel("m", b"probe"), here.items and there.items)[1])
        await first.close()
        await first.close()
        here.items.clear()
        there.items.clear()
        bus.cancel("m", b"last")
        await eventually(lambda: b"last" in there.items)
        assert b"last" not in here.items
        assert not elsewhere.items

    async def test_blobs_are_kept_until_they_are_removed(self, bus: Bus, other: Bus) -> None:
        data = bytes(range(256)) * 8192  # more than a message or a chunk
        await bus.put_blob("in-1", b"", data[:5], memoryview(data)[5:700_000], bytearray(data[700_000:]))
        await bus.put_blob("in-2", b"")
        assert await other.get_blob("in-1", limit=len(data)) == data
        assert await other.get_blob("in-2", limit=0) == b""
        with pytest.raises(PayloadTooLarge, match=f"{len(data)} bytes"):
            await other.get_blob("in-1", limit=len(data) - 1)
        await other.delete_blob("in-1")
        await other.delete_blob("in-1")
        for name in ("in-1", "never"):
            with pytest.raises(NotFound):
                await bus.get_blob(name, limit=len(data))

    async def test_dead_letters_can_be_read_and_removed(self, bus: Bus, other: Bus) -> None:
        assert await bus.letters() == []
        assert not await bus.forget_letter(1)
        for model, letter in (("m", b"1"), ("sentence encoder.v2", b"2"), ("m", b"3"), ("m", b"3")):
            await bus.bury(model, letter, letter_id=letter.decode())
        assert [letter.data for letter in await other.letters()] == [b"1", b"2", b"3"]
        of_m = await other.letters("m")
        assert [letter.data for letter in of_m] == [b"1", b"3"]
        assert [letter.data for letter in await other.letters("m", after=of_m[0].sequence)] == [b"3"]
        assert len(await other.letters(limit=2)) == 2
        assert await other.forget_letter(of_m[0].sequence)
        assert not await other.forget_letter(of_m[0].sequence)
        assert [letter.data for letter in await bus.letters()] == [b"2", b"3"]

    async def test_namespaces_are_apart(self, bus: Bus, make_bus: Callable[..., Bus]) -> None:
        stranger = make_bus("another")
        await stranger.start()
        try:
            await bus.declare("m", SPEC)
            await stranger.declare("m", SPEC)
            inbox = Mailbox()
            (await stranger.consume("m", "", inbox)).grant(1)
            bus.publish("m", "", b"ours", Mailbox())
            stranger.publish("m", "", b"theirs", Mailbox())
            (delivery,) = await inbox.take()
            assert delivery.payload == b"theirs"
        finally:
            await stranger.close()

    async def test_closing_is_idempotent_and_final(self, make_bus: Callable[[], Bus]) -> None:
        bus = make_bus()
        await bus.start()
        assert bus.connected
        await bus.close()
        await bus.close()
        assert not bus.connected
        with pytest.raises(BusUnavailable):
            bus.publish("m", "", b"x", Mailbox())
