"""What a process may hold of large tensors, and what it puts into the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from qinfer.bus.memory import MemoryBus
from qinfer.claims import Claims
from qinfer.errors import BusUnavailable, MalformedMessage, NotFound, PayloadTooLarge, QueueFull
from qinfer.message import Tensor
from qinfer.naming import Names
from tests.helpers.waiting import eventually


@pytest_asyncio.fixture
async def bus(namespace: str) -> AsyncIterator[MemoryBus]:
    bus = MemoryBus("claims", names=Names(namespace))
    await bus.start()
    yield bus
    await bus.close()


@pytest.fixture
def claims(bus: MemoryBus) -> Claims:
    return Claims(bus, max_bytes=100)


def test_room_is_given_now_or_never(claims: Claims) -> None:
    claims.admit(60)
    with pytest.raises(QueueFull, match=r"60 bytes .* 41 more .* 100 \(--max-claim-bytes\)") as caught:
        claims.admit(41)
    assert caught.value.retry_after
    claims.admit(40)
    claims.release(60)
    claims.admit(60)
    with pytest.raises(PayloadTooLarge, match=r"101 bytes .* 100 bytes \(--max-claim-bytes\)"):
        claims.admit(101)
    assert claims.held_bytes == 100


async def test_who_waits_for_room_gets_it_in_turn(claims: Claims) -> None:
    claims.admit(90)
    order: list[int] = []

    async def take(size: int) -> None:
        await claims.room(size)
        order.append(size)

    tasks = []
    for size in (80, 5, 20):
        tasks.append(asyncio.create_task(take(size)))
        await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        claims.admit(1)
    assert order == [], "the small ones do not overtake"
    claims.release(90)
    await eventually(lambda: order == [80, 5])
    claims.release(80)
    await asyncio.gather(*tasks)
    assert (order, claims.held_bytes) == ([80, 5, 20], 25)


async def test_who_gives_up_waiting_leaves_the_room_to_others(claims: Claims) -> None:
    claims.admit(100)
    first, second = (asyncio.create_task(claims.room(60)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    claims.release(100)
    await second
    assert claims.held_bytes == 60
    late = asyncio.create_task(claims.room(60))
    await asyncio.sleep(0)
    claims.release(60)
    late.cancel()  # it has the room already
    await asyncio.gather(late, return_exceptions=True)
    assert claims.held_bytes == 0
    with pytest.raises(PayloadTooLarge):
        await claims.room(101)


async def test_tensors_there_and_back(claims: Claims, bus: MemoryBus) -> None:
    sent = [Tensor.from_numpy(name, np.arange(6, dtype=np.int32)) for name in "ab"]
    name, size = await claims.deposit("out", sent)
    assert name.startswith("out-")
    assert [bytes(tensor.data) for tensor in sent] == [b"", b""]
    await claims.redeem(name, size, sent)
    assert [tensor.numpy().tolist() for tensor in sent] == [[0, 1, 2, 3, 4, 5]] * 2
    with pytest.raises(MalformedMessage):
        await claims.redeem(name, size, sent[:1])
    with pytest.raises(PayloadTooLarge):
        await claims.redeem(name, size - 1, sent)
    claims.remove(name)
    await claims.close(20)
    with pytest.raises(NotFound):
        await claims.redeem(name, size, sent)


async def test_what_could_not_be_stored_is_as_it_was(
    claims: Claims, bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise QueueFull("no room")

    monkeypatch.setattr(bus, "put_blob", refuse)
    tensor = Tensor.from_numpy("x", np.ones(3, np.uint8))
    with pytest.raises(QueueFull):
        await claims.deposit("in", [tensor])
    assert bytes(tensor.data) == b"\1\1\1"


async def test_a_broker_that_is_away_for_a_moment(
    claims: Claims, bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.claims._PAUSE", 0.001)
    name, size = await claims.deposit("in", [Tensor.from_numpy("x", np.ones(3, np.uint8))])
    get, delete, refusals = bus.get_blob, bus.delete_blob, [BusUnavailable("away")] * 2

    async def get_blob(name: str, *, limit: int) -> object:
        if refusals:
            raise refusals.pop()
        return await get(name, limit=limit)

    async def delete_blob(name: str) -> None:
        if refusals:
            raise refusals.pop()
        await delete(name)

    monkeypatch.setattr(bus, "get_blob", get_blob)
    monkeypatch.setattr(bus, "delete_blob", delete_blob)
    tensor = Tensor("x", "UINT8", [3], b"")
    await claims.redeem(name, size, [tensor])
    assert bytes(tensor.data) == b"\1\1\1"
    refusals = [BusUnavailable("away")] * 2
    claims.remove(name)
    await eventually(lambda: not bus._connection.blobs)
    refusals = [BusUnavailable("away")] * 100
    with pytest.raises(BusUnavailable):
        await claims.redeem(name, size, [tensor])
    assert len(refusals) == 95
