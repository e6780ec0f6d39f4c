"""Streams whose worker, or whose link to the broker, goes in their middle: no gap, nothing twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from grpc.aio import EOF

from qinfer.bus import Delivery
from qinfer.deadletter import Attempt
from qinfer.message import FINAL
from qinfer_workers.isolation import begins_among_others
from tests.helpers.proxy import Proxy
from tests.helpers.system import fleet
from tests.helpers.waiting import eventually
from tests.streams.conftest import MakeFleet
from tests.streams.models import COUNTS, GENERATES, THREADED
from tests.streams.stage import Stage, nothing_held, request_of, values
from tests.streams.test_generate import asked, events_of
from tests.streams.test_grpc import count, stream_to
from tests.streams.test_grpc import values as grpc_values

BOTH = pytest.mark.parametrize("model", [COUNTS, GENERATES])
TOTAL = 60


async def first_of(stream: Any, number: int) -> list[int]:
    """The first values of a gRPC stream."""
    return [value for _ in range(number) for value in grpc_values(await stream.read())]


def key_of(model: str, delivery: Delivery) -> str:
    """Where workers leave a record of what they run alone."""
    return f"{model}.{delivery.sequence}-{delivery.stored_us}"


async def rest_of(stream: Any) -> list[int]:
    rest: list[int] = []
    while (message := await stream.read()) is not EOF:
        rest += grpc_values(message)
    return rest


async def test_a_worker_that_is_killed(make_fleet: MakeFleet, tmp_path: Path) -> None:
    model = GENERATES
    gate = tmp_path / "gate"
    async with make_fleet(request_timeout=60.0) as running:
        killed = await running.add_worker_process(model, **{"ack-wait": "1"})
        asking = count(TOTAL, "1", model, stop_at=20, gate=str(gate))
        async with stream_to(running, asking) as stream:
            seen = await first_of(stream, 20)
            killed.kill()
            await killed.wait()
            gate.touch()
            await running.add_worker(model, ack_wait=1.0)
            assert seen + await rest_of(stream) == list(range(TOTAL))
        assert running.dispatcher._observer.stats.requests[model, "grpc", "ok"].count == 1


@BOTH
async def test_a_worker_that_is_stopped(make_fleet: MakeFleet, tmp_path: Path, model: str) -> None:
    """It is given time to finish, and gives back what does not."""
    gate = tmp_path / "gate"
    async with make_fleet(request_timeout=60.0) as running:
        stopped = await running.add_worker(model, drain_timeout=0.1)
        async with stream_to(running, count(TOTAL, "1", model, stop_at=20, gate=str(gate))) as stream:
            seen = await first_of(stream, 20)
            draining = asyncio.create_task(stopped.drain())
            await running.unknown(stopped.id)
            gate.touch()
            await running.add_worker(model)
            assert seen + await rest_of(stream) == list(range(TOTAL))
            await draining


@pytest.mark.parametrize("model", [GENERATES])
async def test_a_worker_that_is_cut_off_for_a_moment(
    nats_url: str, namespace: str, streaming_repository: Path, tmp_path: Path, model: str
) -> None:
    """What it sent just then may be lost, and nobody knows: it begins anew."""
    gate = tmp_path / "gate"
    port = urlsplit(nats_url).port
    assert port
    async with (
        Proxy(port) as link,
        fleet(nats_url, namespace, streaming_repository, grpc_port=0, request_timeout=60.0) as running,
    ):
        through = nats_url.replace(f":{port}", f":{link.port}")
        worker = await running.add_worker(model, nats=through, ack_wait=1.0)
        async with stream_to(running, count(TOTAL, "1", model, stop_at=20, gate=str(gate))) as stream:
            seen = await first_of(stream, 20)
            link.stall(down=False)  # what the worker sends gets nowhere from now on
            gate.touch()
            (open_,) = list(worker.services[model]._streams._open)
            await eventually(lambda: open_.waits, "the window is used up, and lost on its way")
            link.cut()
            await eventually(lambda: not worker._bus.connected, "the worker knows")
            link.restore()
            assert seen + await rest_of(stream) == list(range(TOTAL))
        await nothing_held(worker.services[model])


async def test_a_gateway_that_is_cut_off_for_a_moment(
    nats_url: str, namespace: str, streaming_repository: Path, tmp_path: Path
) -> None:
    """What came meanwhile is lost: the request is sent again, and what was had is not told twice."""
    gate = tmp_path / "gate"
    port = urlsplit(nats_url).port
    assert port
    async with Proxy(port) as link:
        through = nats_url.replace(f":{port}", f":{link.port}")
        async with fleet(through, namespace, streaming_repository, request_timeout=60.0) as running:
            running.nats = nats_url
            worker = await running.add_worker(THREADED)
            body = {"n": TOTAL, "stop_at": 8, "gate": str(gate)}
            async with asked(running, THREADED, body) as answer:
                for _ in range(8):
                    assert await answer.content.readuntil(b"\n\n")
                link.cut()
                await eventually(lambda: not running.gateway._bus.connected, "the gateway knows")
                gate.touch()
                (open_,) = list(worker.services[THREADED]._streams._open)
                await eventually(lambda: open_.waits, "the window is used up, and lost on its way")
                link.restore()
                assert [event["i"] for event in await events_of(answer)] == list(range(8, TOTAL))
            assert running.dispatcher._observer.stats.resent == 1
            await nothing_held(worker.services[THREADED])


@BOTH
async def test_a_second_delivery_begins_among_others_and_a_third_alone(stage: Stage, model: str) -> None:
    """The streams of a worker that went are many: only what may have killed two waits for its turn."""
    for attempt in (1, 2, 3):
        worker = await stage.serve(model, drain_timeout=0.1)
        if attempt == 1:
            stage.send(request_of(1, 9, window=2), model=model)
        begun = 2 * attempt
        await eventually(lambda: len(stage.of(1)) == begun, "the stream has begun")  # noqa: B023
        (held,) = worker.services[model]._held._frames
        assert begins_among_others(held) == (attempt < 3)
        if attempt < 3:
            await worker.drain()
    found = await stage.client.get(stage.client.names.suspects_bucket, key_of(model, held.delivery))
    assert found is not None
    assert [len(runs) for runs in msgspec.msgpack.decode(found[0]).values()] == [3], "each run counts"
    stage.taken(1, 9, model)
    responses = await stage.ended(1)
    assert [response.attempt for response in responses] == [1, 1, 2, 2] + 10 * [3]
    assert values(responses) == [0, 1, 0, 1, *range(9)]
    assert responses[-1].flags & FINAL
    await eventually(lambda: worker.stats()[0].closed == {"isolated": 1})


async def test_a_stream_that_killed_three_workers_is_given_up(stage: Stage) -> None:
    """The first two ran it beside others, the third alone: that is what it has left a record of."""
    for attempt in (1, 2):
        worker = await stage.serve(GENERATES, drain_timeout=0.1)
        if attempt == 1:
            stage.send(request_of(1, 9, window=2), request_of(2, 9, window=2), model=GENERATES)
        await eventually(lambda: len(stage.of(2)) == 2 * attempt)  # noqa: B023
        (held,) = worker.services[GENERATES]._held._frames
        await worker.drain()
    key = key_of(GENERATES, held.delivery)
    earlier = [Attempt("", 0, ["r1", "r2"])] * 2
    runs = {0: [*earlier, Attempt("worker-3", 1)], 1: earlier}
    await stage.client.put(stage.client.names.suspects_bucket, key, msgspec.msgpack.encode(runs))
    last = await stage.serve(GENERATES)
    (poisoned,) = (await stage.ended(1))[-1:]
    assert poisoned.error is not None
    assert poisoned.error.reason == "poisoned"
    stage.taken(2, 9, GENERATES)
    assert values((await stage.ended(2))[4:]) == list(range(9))
    await nothing_held(last.services[GENERATES])
    (letter,) = await stage.client.letters(GENERATES)
    assert letter
