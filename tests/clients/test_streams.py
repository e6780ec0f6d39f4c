"""Streams of decoupled models, in each language."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.clients.driven import DONE, Client, Failed, Got, Stream
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import eventually
from tests.streams.models import COUNTS, GENERATES, build, lines

WINDOW = 4


@pytest.fixture(scope="session")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("counting"))


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, counting: Path) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, counting) as made:
        await made.add_worker(COUNTS, GENERATES)
        yield made


async def count(client: Client, n: int, model: str = COUNTS, **options: Any) -> Stream:
    return await client.stream(model, ["n", "INT32", [1], [str(n)]], **options)


def indexes(responses: list[Got]) -> list[int]:
    return [int(response.outputs["i"][2][0]) for response in responses]


async def test_responses_come_in_order(client: Client, running: Fleet) -> None:
    for model in (COUNTS, GENERATES):
        for n in (1, 2, 200):
            for window in (0, 1, 3, 8):
                stream = await count(client, n, model, window=window)
                assert indexes(await stream.rest()) == list(range(n)), (model, n, window)


async def test_none_one_and_the_first(client: Client, running: Fleet) -> None:
    assert await (await count(client, 0)).rest() == []
    told = ["n", "INT32", [1], ["0"]]
    assert await client.infer(COUNTS, told) is None
    first = await client.infer(COUNTS, ["n", "INT32", [1], ["5"]])
    assert first is not None
    assert indexes([first]) == [0]


async def test_an_error_in_mid_stream(client: Client, running: Fleet) -> None:
    stream = await count(client, 5, parameters={"error": "enough"})
    for index in range(5):
        response = await stream.next()
        assert isinstance(response, Got)
        assert indexes([response]) == [index]
    with pytest.raises(Failed, match="enough") as failed:
        await stream.next()
    assert failed.value.reason == "invalid_request"
    assert await stream.next() == DONE


async def test_a_slow_reader_is_waited_for(client: Client, running: Fleet, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    stream = await count(client, 100, window=WINDOW, parameters={"journal": str(journal), "size": 1000})
    for index in range(20):
        response = await stream.next()
        assert isinstance(response, Got)
        assert indexes([response]) == [index]
        # What was sent, what waits to be sent, and what the model is about to send.
        assert len(lines(journal)) <= index + WINDOW + 1
    await eventually(lambda: len(lines(journal)) >= 20 + WINDOW // 2, "the window is used")
    rest = indexes(await stream.rest())
    assert rest == list(range(20, 100))


async def test_who_leaves_cancels(client: Client, running: Fleet, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    stream = await count(client, 1000, window=WINDOW, parameters={"journal": str(journal)})
    assert isinstance(await stream.next(), Got)
    await stream.leave()
    await eventually(
        lambda: any("cancelled" in line or "stopped" in line for line in lines(journal)), "the model stops"
    )
    assert len(lines(journal)) < 100
    assert indexes(await (await count(client, 2)).rest()) == [0, 1]


async def test_a_stream_can_be_ended_from_elsewhere(client: Client, running: Fleet, tmp_path: Path) -> None:
    stream = await count(client, 5, parameters={"stop_at": 2, "gate": str(tmp_path / "gate")})
    assert isinstance(await stream.next(), Got)
    assert isinstance(await stream.next(), Got)
    waits = asyncio.ensure_future(stream.next())
    await stream.abort()
    with pytest.raises(Failed) as failed:
        await waits
    assert failed.value.reason == "cancelled"
    (tmp_path / "gate").touch()


async def test_the_deadline_is_that_of_the_whole_stream(
    client: Client, running: Fleet, tmp_path: Path
) -> None:
    stream = await count(client, 5, timeout=0.4, parameters={"stop_at": 2, "gate": str(tmp_path / "gate")})
    with pytest.raises(Failed) as failed:
        await stream.rest()
    assert failed.value.reason == "deadline_exceeded"
    (tmp_path / "gate").touch()
