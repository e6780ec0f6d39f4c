"""What the Kafka bus makes of a log that only grows: names, revisions, and what dead workers had."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from qinfer.bus import QueueSpec, connect
from qinfer.bus.kafka import KafkaBus
from qinfer.bus.kafka.bucket import Bucket
from qinfer.bus.kafka.queues import MESSAGE_ID
from qinfer.errors import BusUnavailable
from tests.helpers.waiting import Mailbox, eventually

SPEC = QueueSpec(ack_wait=1)
HOLDER = """
import asyncio, sys
from qinfer.bus import connect

async def main(url, namespace):
    bus = connect(url, namespace=namespace)
    await bus.start()
    consumer = await bus.consume("m", "", lambda delivery: print(delivery.payload.decode(), flush=True))
    consumer.grant(3)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def url(kafka: str) -> str:
    return f"kafka://{kafka}?partitions=1&reply_partitions=1&replicas=1&session_ms=1000"


@pytest_asyncio.fixture
async def buses(url: str, namespace: str) -> AsyncIterator[Callable[[], Any]]:
    """A function that connects once more."""
    made: list[KafkaBus] = []

    async def more() -> KafkaBus:
        bus = connect(url, namespace=namespace)
        assert isinstance(bus, KafkaBus)
        made.append(bus)
        await bus.start()
        return bus

    yield more
    for bus in made:
        await bus.close()


async def test_what_a_killed_worker_had_is_known_to_have_been_delivered(
    url: str, namespace: str, buses: Callable[[], Any]
) -> None:
    bus = await buses()
    await bus.declare("m", SPEC)
    for number in range(20):
        await bus.enqueue("m", "", b"%d" % number)
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, url, namespace), stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    had = [await asyncio.wait_for(holder.stdout.readline(), 20) for _ in range(3)]
    assert had == [b"0\n", b"1\n", b"2\n"]
    holder.send_signal(signal.SIGKILL)
    await holder.wait()
    inbox = Mailbox()
    (await bus.consume("m", "", inbox)).grant(20)
    deliveries = await inbox.take(20)
    assert [delivery.payload for delivery in deliveries] == [b"%d" % number for number in range(20)]
    assert [delivery.attempt for delivery in deliveries[:3]] == [2, 2, 2]
    assert deliveries[-1].attempt == 1, "what it cannot have had is fresh"


async def test_who_leaves_says_what_is_done(buses: Callable[[], Any]) -> None:
    first, second = await buses(), await buses()
    await first.declare("m", SPEC)
    inbox = Mailbox()
    consumer = await first.consume("m", "", inbox)
    consumer.grant(3)
    for number in range(5):
        await first.enqueue("m", "", b"%d" % number)
    deliveries = await inbox.take(3)
    deliveries[2].ack()  # not the first: what is before it is not done
    deliveries[0].nak()
    deliveries[1].nak()
    await consumer.close()
    (await second.consume("m", "", inbox)).grant(5)
    again = await inbox.take(4)
    assert {delivery.payload: delivery.attempt for delivery in again} == {b"0": 2, b"1": 2, b"3": 1, b"4": 1}


async def test_what_is_done_last_is_said_before_the_end(buses: Callable[[], Any]) -> None:
    first, second = await buses(), await buses()
    await first.declare("m", SPEC)
    inbox = Mailbox()
    (await first.consume("m", "", inbox)).grant(10)
    for number in range(4):
        await first.enqueue("m", "", b"%d" % number)
    for delivery in (await inbox.take(4))[:3]:
        delivery.ack()
    await first.close()
    (await second.consume("m", "", inbox)).grant(10)
    await second.enqueue("m", "", b"after")
    again = await inbox.take(2)
    assert {delivery.payload: delivery.attempt for delivery in again} == {b"3": 2, b"after": 1}


async def test_who_closes_keeps_what_is_out_to_itself(buses: Callable[[], Any]) -> None:
    first, second = await buses(), await buses()
    await first.declare("m", SPEC)
    mine, theirs = Mailbox(), Mailbox()
    consumer = await first.consume("m", "", mine)
    consumer.grant(1)
    await first.enqueue("m", "", b"held")
    (held,) = await mine.take()
    await consumer.close()
    (await second.consume("m", "", theirs)).grant(10)
    await eventually(lambda: consumer._halted, "the group is shared out anew")
    for _ in range(100):
        await second.get(second.names.models_bucket, "m.1")
    held.ack()
    await first.enqueue("m", "", b"after")
    assert [delivery.payload for delivery in await theirs.take(1)] == [b"after"]


async def test_an_answer_is_stored_before_its_frame_is_done(
    buses: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = await buses(), await buses()
    await worker.declare("m", SPEC)
    inbox = Mailbox()
    (await worker.consume("m", "", inbox)).grant(1)
    await other.enqueue("m", "", b"frame")
    (delivery,) = await inbox.take()
    stored = asyncio.Event()
    monkeypatch.setattr(worker._sender, "flush", stored.wait)
    worker.reply(other.reply_to, b"answer")
    delivery.ack()
    for _ in range(50):
        assert await other.queued("m", "") == 1
    stored.set()
    async with asyncio.timeout(20):
        while await other.queued("m", ""):
            pass  # an ack has no answer


async def test_what_is_done_is_deleted(buses: Callable[[], Any]) -> None:
    bus = await buses()
    await bus.declare("m", SPEC)
    inbox = Mailbox()
    consumer = await bus.consume("m", "", inbox)
    consumer.grant(3)
    for number in range(5):
        await bus.enqueue("m", "", b"%d" % number)
    for delivery in await inbox.take(3):
        delivery.ack()
    await consumer.close()
    queue = (bus._topics.queue("m"), 0)
    assert await bus._connection.beginnings([queue]) == {queue: 3}
    assert await bus._connection.ends([queue]) == {queue: 5}
    assert await bus.queued("m", "") == 2


async def test_a_frame_whose_sender_died_before_it_claimed_the_name(buses: Callable[[], Any]) -> None:
    bus = await buses()
    await bus.declare("m", SPEC)
    await bus.enqueue("m", "", b"before")
    queue = (bus._topics.queue("m"), 0)
    for payload in (b"first", b"second"):
        await bus._sender.store(queue, payload, headers=[(MESSAGE_ID, b"x")])
    for name in (None, b"\xff"):
        await bus._sender.store(queue, b"odd name", headers=[(MESSAGE_ID, name)])
    inbox = Mailbox()
    (await bus.consume("m", "", inbox)).grant(10)
    await bus.enqueue("m", "", b"after")
    expected = [b"before", b"first", b"odd name", b"odd name", b"after"]
    assert [delivery.payload for delivery in await inbox.take(5)] == expected
    assert not await bus.enqueue("m", "", b"third", message_id="x")
    await eventually(lambda: not inbox.items)


async def test_frames_that_wait_to_be_placed_are_bounded(
    buses: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.bus.kafka.queues._WAITING_BYTES", 100)
    bus = await buses()
    await bus.declare("m", SPEC)
    inbox, refused = Mailbox(), Mailbox()
    for number in range(12):
        bus.publish("m", "", b"%-10d" % number, refused)
    for error in await refused.take(2):
        assert isinstance(error, BusUnavailable)
    (await bus.consume("m", "", inbox)).grant(12)
    assert [int(delivery.payload) for delivery in await inbox.take(10)] == list(range(10))
    assert not refused.items


async def test_what_is_no_frame_is_passed_over(buses: Callable[[], Any]) -> None:
    bus = await buses()
    await bus.declare("m", SPEC)
    await bus.enqueue("m", "", b"before")
    await bus._sender.store((bus._topics.queue("m"), 0), None, key=b"a tombstone of somebody's")
    await bus.enqueue("m", "", b"after")
    inbox = Mailbox()
    (await bus.consume("m", "", inbox)).grant(10)
    deliveries = await inbox.take(2)
    assert [delivery.payload for delivery in deliveries] == [b"before", b"after"]
    for delivery in deliveries:
        delivery.ack()
    async with asyncio.timeout(20):
        while await bus.queued("m", ""):
            pass  # an ack has no answer


async def test_no_change_is_lost_between_writers(buses: Callable[[], Any]) -> None:
    writers = [await buses() for _ in range(3)]
    bucket = writers[0].names.models_bucket

    async def count_up(bus: KafkaBus, times: int) -> None:
        while times:
            entry = await bus.get(bucket, "n")
            value, revision = (0, 0) if entry is None else (int(entry[0]), entry[1])
            times -= await bus.replace(bucket, "n", b"%d" % (value + 1), revision)

    await asyncio.gather(*(count_up(bus, 5) for bus in writers))
    assert [(await bus.get(bucket, "n") or b"")[0] for bus in writers] == [b"15"] * 3
    late = await buses()
    assert (await late.get(bucket, "n") or b"")[0] == b"15"


async def test_what_compaction_leaves_is_what_stands(buses: Callable[[], Any]) -> None:
    """Of each key it keeps the last record, be it that of a writer who was too slow."""
    bus, other = await buses(), await buses()
    bucket = bus.names.models_bucket
    assert await bus.replace(bucket, "kept", b"stands", 0)
    assert not await other.replace(bucket, "kept", b"too late", 0)
    await bus.put(bucket, "gone", b"x")
    await bus.delete(bucket, "gone")
    assert not await other.replace(bucket, "gone", b"too late", 1)
    entry = await bus.get(bucket, "kept")
    log = (bus._topics.bucket(bucket).name, 0)
    last: dict[bytes, Any] = {}
    end = (await bus._connection.ends([log]))[log]
    await bus._reader.read(log, 0, end - 1, lambda record: last.update({record.key: record}), size=0)
    compacted = Bucket(None, None, 1000)
    for record in last.values():
        compacted.apply(record)
    left = compacted.living(0)
    assert {key: (found.value, found.revision) for key, found in left.items()} == {"kept": entry}
