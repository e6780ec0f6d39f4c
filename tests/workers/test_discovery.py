"""A worker's models as services of the broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.micro.service import NAME_REGEX, SEMVER_REGEX

from qinfer.errors import BusUnavailable
from qinfer.naming import Names
from tests.helpers import http
from tests.helpers.http import floats, infer, post
from tests.helpers.served_models import IDENTITY, PICKY, RAISES, VERSIONS, copy
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE

MODEL = IDENTITY["FP32"]


@pytest_asyncio.fixture
async def running(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> AsyncIterator[Fleet]:
    repository = copy(served_repository, tmp_path / "repository", MODEL, VERSIONS, PICKY)
    spaced = repository / "sentence encoder.v2"
    spaced.mkdir()
    (spaced / "1").symlink_to(repository / MODEL / "1")
    (spaced / "config.pbtxt").write_bytes((repository / MODEL / "config.pbtxt").read_bytes())
    async with fleet(nats_url, namespace, repository) as made:
        yield made


@pytest_asyncio.fixture
async def tool(nats_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(nats_url)
    yield client
    await client.close()


async def ask(tool: Client, verb: str, name: str, *rest: str) -> dict[str, Any]:
    subject = ".".join(("$SRV", verb, name, *rest))
    answer: dict[str, Any] = json.loads((await tool.request(subject, b"", timeout=PATIENCE)).data)
    return answer


async def both_versions(tool: Client, name: str) -> dict[str, dict[str, Any]]:
    """What two services of one name say, by version."""
    told: dict[str, dict[str, Any]] = {}
    inbox = await tool.subscribe(tool.new_inbox())
    await tool.publish(f"$SRV.INFO.{name}", b"", reply=inbox.subject)
    for _ in range(2):
        info = json.loads((await inbox.next_msg(PATIENCE)).data)
        told[info["version"]] = info
    await inbox.unsubscribe()
    return told


async def is_offered(tool: Client, name: str) -> bool:
    try:
        await ask(tool, "PING", name)
    except nats.errors.NoRespondersError:
        return False
    return True


async def until(tool: Client, name: str, *, offered: bool) -> None:
    async with asyncio.timeout(PATIENCE):
        while await is_offered(tool, name) is not offered:
            """Each question takes its time."""


async def test_a_model_is_described(running: Fleet, tool: Client) -> None:
    worker = await running.add_worker(MODEL)
    names = Names(running.namespace)
    name = names.service(MODEL)
    info = await ask(tool, "INFO", name)
    (endpoint,) = info["endpoints"]
    assert endpoint["subject"] == names.requests(MODEL, "1")
    metadata = info["metadata"]
    assert {key: json.loads(metadata.pop(key)) for key in ("inputs", "outputs")} == {
        "inputs": [{"name": "x", "datatype": "FP32", "dims": [-1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "dims": [-1]}],
    }
    assert metadata == {
        "protocol": "qinfer/1",
        "namespace": running.namespace,
        "model": MODEL,
        "model_version": "1",
        "backend": "python",
        "platform": "python",
        "max_batch_size": "16",
        "decoupled": "false",
        "worker": worker.id,
    }


async def test_versions_are_services_of_one_name(running: Fleet, tool: Client) -> None:
    await running.add_worker(VERSIONS)
    told = await both_versions(tool, Names(running.namespace).service(VERSIONS))
    assert {version: info["metadata"]["model_version"] for version, info in told.items()} == {
        "1.0.0": "1",
        "2.0.0": "2",
    }
    assert len({info["id"] for info in told.values()}) == 2


async def test_any_name_and_namespace_is_valid(running: Fleet, tool: Client, nats_url: str) -> None:
    await running.add_worker("sentence encoder.v2")
    name = Names(running.namespace).service("sentence encoder.v2")
    assert name == f"qinfer-{running.namespace}-sentence_20encoder_2Ev2"
    info = await ask(tool, "INFO", name)
    assert NAME_REGEX.match(info["name"])
    assert SEMVER_REGEX.match(info["version"])
    assert info["metadata"]["model"] == "sentence encoder.v2"
    assert not await is_offered(tool, Names("another").service("sentence encoder.v2"))


async def endpoint_of(tool: Client, name: str) -> Mapping[str, Any]:
    (endpoint,) = (await ask(tool, "STATS", name))["endpoints"]
    assert isinstance(endpoint, dict)
    return endpoint


async def test_statistics_are_those_of_the_worker(running: Fleet, tool: Client) -> None:
    await running.add_worker(PICKY)
    name = Names(running.namespace).service(PICKY)
    before = await endpoint_of(tool, name)
    assert (before["num_requests"], before["num_errors"], before["last_error"]) == (0, 0, "")
    async with http.connect(running.port) as connection:
        for value in (1.0, RAISES, 2.0):
            await connection.ask(infer(PICKY, floats(value)))
    after = await endpoint_of(tool, name)
    assert (after["num_requests"], after["num_errors"], after["last_error"]) == (3, 1, "model_failed")
    assert after["processing_time"] > 0
    assert after["average_processing_time"] == after["processing_time"] // 3
    assert after["data"]["inference_count"] == 2
    assert "thirteen" not in json.dumps(after)  # the message is for who asked


async def test_requests_still_go_to_the_queue(running: Fleet) -> None:
    """To subscribe to an endpoint's subject would take them twice."""
    worker = await running.add_worker(MODEL)
    async with http.connect(running.port) as connection:
        assert (await connection.ask(infer(MODEL, floats(1.5)))).outputs() == {"y": [1.5]}
    client: Any = worker._bus
    subscribed = {each.subject for each in client._connection.client._subs.values()}
    assert {subject for subject in subscribed if ".infer." in subject} == set()


async def test_models_come_and_go(running: Fleet, tool: Client) -> None:
    worker = await running.add_worker(model_control_mode="explicit")
    name = Names(running.namespace).service(MODEL)
    assert not await is_offered(tool, name)
    async with http.connect(running.port) as connection:
        assert (await connection.ask(post(f"/v2/repository/models/{MODEL}/load", b"{}"))).status == 200
        await until(tool, name, offered=True)
        first = await ask(tool, "STATS", name)
        config = json.dumps({"parameters": {"config": json.dumps({"max_batch_size": 4, **SIGNATURE})}})
        answer = await connection.ask(post(f"/v2/repository/models/{MODEL}/load", config.encode()))
        assert answer.status == 200, answer
        again = await ask(tool, "STATS", name)
        assert again["metadata"]["max_batch_size"] == "4"
        assert (again["id"], again["started"]) == (first["id"], first["started"])
        assert (await connection.ask(post(f"/v2/repository/models/{MODEL}/unload", b"{}"))).status == 200
        await until(tool, name, offered=False)
    assert not worker.services


SIGNATURE = {
    "backend": "python",
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}],
}


async def test_a_worker_that_drains_offers_nothing(running: Fleet, tool: Client) -> None:
    worker = await running.add_worker(MODEL)
    name = Names(running.namespace).service(MODEL)
    assert await is_offered(tool, name)
    await worker.drain()
    await until(tool, name, offered=False)


async def test_a_worker_does_without(running: Fleet, tool: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: object, services: object) -> None:
        raise BusUnavailable("not now")

    monkeypatch.setattr("qinfer.bus.nats.NatsBus.advertise", refuse)
    await running.add_worker(MODEL)
    async with http.connect(running.port) as connection:
        assert (await connection.ask(infer(MODEL, floats(1.5)))).outputs() == {"y": [1.5]}
    assert not await is_offered(tool, Names(running.namespace).service(MODEL))
