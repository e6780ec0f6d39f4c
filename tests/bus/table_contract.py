"""What every bus's tables do; the suites of the buses are subclasses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from qinfer.bus import Backlog, Bus, QueueSpec
from qinfer.errors import PayloadTooLarge, QueueFull
from tests.helpers.waiting import PATIENCE, Mailbox, eventually

LONG = 1000.0
QUEUE = QueueSpec(storage="memory", ack_wait=30, max_bytes=1 << 20)


class TableContract:
    """Subclasses provide the fixtures `bus`, `other` of one namespace."""

    async def test_nobody_made_the_table(self, bus: Bus) -> None:
        table = bus.table(bus.names.jobs_table)
        seen = Mailbox()
        watcher = await table.watch("job.1", seen)
        assert await table.get("job.1") is None
        assert await table.get("job.1", settled=True) is None
        assert await table.keys("job") == []
        assert await table.size() == 0
        await table.remove("job.1")
        assert not seen.items
        await watcher.close()

    async def test_entries_are_there_for_everybody(self, bus: Bus, other: Bus) -> None:
        table, theirs = bus.table(bus.names.jobs_table), other.table(bus.names.jobs_table)
        revision = await table.write("job.1", b"one", lifetime=LONG)
        assert await theirs.get("job.1") == (b"one", revision)
        assert await theirs.get("job.1", settled=True) == (b"one", revision)
        assert await theirs.write("job.1", b"uno", lifetime=LONG) > revision
        found = await table.get("job.1")
        assert found is not None
        assert found[0] == b"uno"
        assert await table.size() > 0

    async def test_the_faster_writer_wins(self, bus: Bus, other: Bus) -> None:
        table, theirs = bus.table(bus.names.jobs_table), other.table(bus.names.jobs_table)
        first = await table.write("job.1", b"mine", lifetime=LONG, revision=0)
        assert first
        assert await theirs.write("job.1", b"theirs", lifetime=LONG, revision=0) == 0
        second = await theirs.write("job.1", b"theirs", lifetime=LONG, revision=first)
        assert second > first
        assert await table.write("job.1", b"mine again", lifetime=LONG, revision=first) == 0
        assert await table.get("job.1") == (b"theirs", second)

    async def test_a_removed_entry_is_gone_and_can_be_made_anew(self, bus: Bus) -> None:
        table = bus.table(bus.names.jobs_table)
        first = await table.write("job.1", b"one", lifetime=LONG, revision=0)
        await table.remove("job.1")
        assert await table.get("job.1") is None
        assert await table.write("job.1", b"late", lifetime=LONG, revision=first) == 0
        again = await table.write("job.1", b"two", lifetime=LONG, revision=0)
        assert await table.get("job.1") == (b"two", again)

    async def test_an_entry_is_gone_after_its_lifetime(self, bus: Bus) -> None:
        table = bus.table(bus.names.jobs_table)
        await table.write("job.short", b"one", lifetime=0.5)
        await table.write("job.renewed", b"two", lifetime=0.5)
        await table.write("job.renewed", b"two", lifetime=LONG)
        async with asyncio.timeout(20):
            while await table.get("job.short") is not None:  # noqa: ASYNC110 (nothing tells of an end)
                await asyncio.sleep(0.02)
        assert await table.get("job.renewed") is not None

    async def test_keys_by_their_first_part(self, bus: Bus) -> None:
        table = bus.table(bus.names.jobs_table)
        for key in ("job.1", "job.2", "lane.1", "job.deep.er"):
            await table.write(key, b"x", lifetime=LONG)
        assert sorted(await table.keys("job")) == ["job.1", "job.2", "job.deep.er"]
        assert await table.keys("jo") == []

    async def test_watchers_see_what_is_there_and_what_comes(self, bus: Bus, other: Bus) -> None:
        table = other.table(bus.names.jobs_table)
        await table.write("lane.1", b"before", lifetime=LONG)
        one, several = Mailbox(), Mailbox()
        await bus.table(bus.names.jobs_table).watch("lane.1", one)
        watcher = await bus.table(bus.names.jobs_table).watch("lane.*", several)
        assert ("lane.1", b"before") in one.items
        assert ("lane.1", b"before") in several.items
        await table.write("lane.2", b"new", lifetime=LONG)
        await table.remove("lane.1")
        await table.write("job.1", b"other", lifetime=LONG)
        await eventually(lambda: one.items[-1] == ("lane.1", None), "the removal")
        await eventually(lambda: several.items[-1] == ("lane.1", None), "the removal")
        assert ("lane.2", b"new") in several.items
        assert not any(key == "lane.2" for key, _ in one.items)
        await watcher.close()
        await watcher.close()

    async def test_a_table_that_is_full_says_so(self, bus: Bus) -> None:
        table = bus.table(bus.names.job_data_table, max_bytes=100_000)
        await table.write("a.1", bytes(60_000), lifetime=LONG)
        with pytest.raises(QueueFull, match="full"):
            await table.write("a.2", bytes(60_000), lifetime=LONG)
        await table.remove("a.1")
        await table.write("a.2", bytes(60_000), lifetime=LONG)
        with pytest.raises(PayloadTooLarge):
            await table.write("a.3", bytes(bus.max_payload + 1), lifetime=LONG)

    async def test_how_far_a_queue_is(self, bus: Bus, make_bus: Callable[[], Bus]) -> None:
        await bus.declare("m", QUEUE)
        inbox = Mailbox()
        consumer = await bus.consume("m", "7", inbox)
        for number in range(3):
            await bus.enqueue("m", "7", b"%d" % number)
        await far(bus, "m", "7", lambda told: (told.waiting, told.delivered) == (3, 0))
        consumer.grant(2)
        first, second = await inbox.take(2)
        await far(bus, "m", "7", lambda told: (told.waiting, told.delivered) == (1, 2))
        first.nak()
        second.ack()
        consumer.grant(1)
        await inbox.take(1)
        await far(bus, "m", "7", lambda told: told.delivered == 3)


async def far(bus: Bus, model: str, version: str, expected: Callable[[Backlog], bool]) -> None:
    """Check how far the consumers of a queue are, by a bus that may tell it somewhat later."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + (0.0 if bus.guarantees.backlog else PATIENCE)
    while not expected(backlog := await bus.backlog(model, version)):
        assert loop.time() < give_up, backlog
