from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from qinfer.bus import Bus, connect
from qinfer.errors import ModelNotFound, NoWorker
from qinfer.registry import Directory, ModelRecord, Registration, TensorRecord, WorkerRecord
from qinfer_gateway.catalog import Catalog
from tests.helpers.waiting import eventually


def record(name: str, version: str, *, max_batch_size: int = 4) -> ModelRecord:
    tensor = TensorRecord("x", "FP32", (2,))
    return ModelRecord(name, version, "stub", "stub", max_batch_size, (tensor,), (tensor,), b"")


class Fleet:
    """A catalog, and workers that come and go."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.directory = Directory(bus)
        self.catalog = Catalog(self.directory, bus.names)

    async def worker(self, worker: str, *models: ModelRecord) -> Registration:
        versions: dict[str, list[str]] = {}
        for model in models:
            versions.setdefault(model.name, []).append(model.version)
        registration = Registration(self.bus, WorkerRecord(worker, "host", 1, versions), models)
        await registration.start()
        await eventually(lambda: any(found.id == worker for found in self.directory.workers))
        return registration


@pytest_asyncio.fixture
async def fleet(namespace: str) -> AsyncIterator[Fleet]:
    bus = connect("memory://catalog", namespace=namespace)
    await bus.start()
    fleet = Fleet(bus)
    await fleet.directory.start()
    yield fleet
    await fleet.directory.close()
    await bus.close()


async def test_a_served_model_is_found(fleet: Fleet) -> None:
    worker = await fleet.worker("w", record("m", "1"), record("m", "2"))
    newest = fleet.catalog.find("m")
    assert (newest.model, newest.wanted_version, newest.record.version, newest.served) == ("m", "", "2", True)
    assert newest.subject == fleet.bus.names.requests("m")
    pinned = fleet.catalog.find("m", "1")
    assert (pinned.wanted_version, pinned.record.version) == ("1", "1")
    assert pinned.subject == fleet.bus.names.requests("m", "1")
    assert fleet.catalog.find("m") is newest  # the hot path makes nothing
    await worker.close()


@pytest.mark.parametrize(
    ("model", "version"), [("m", "9"), ("m", "01"), ("m", "latest"), ("m", ">"), ("n", ""), ("", "")]
)
async def test_what_does_not_exist_is_not_found_and_takes_no_memory(
    fleet: Fleet, model: str, version: str
) -> None:
    worker = await fleet.worker("w", record("m", "1"))
    with pytest.raises(ModelNotFound):
        fleet.catalog.find(model, version)
    with pytest.raises(ModelNotFound):
        fleet.catalog.known(model, version)
    assert not fleet.catalog.is_ready(model, version)
    assert fleet.catalog._targets == {}
    await worker.close()


async def test_a_model_without_live_worker_is_known_but_not_found(fleet: Fleet) -> None:
    worker = await fleet.worker("w", record("m", "1"))
    assert fleet.catalog.all_ready()
    fleet.catalog.find("m")
    await worker.close()
    await eventually(lambda: not fleet.catalog.is_ready("m"))
    with pytest.raises(NoWorker) as caught:
        fleet.catalog.find("m")
    assert caught.value.retry_after
    assert fleet.catalog.known("m").record.version == "1"
    assert not fleet.catalog.all_ready()


async def test_a_new_version_takes_over_when_a_worker_serves_it(fleet: Fleet) -> None:
    old = await fleet.worker("old", record("m", "9"))
    assert fleet.catalog.find("m").record.version == "9"
    new = await fleet.worker("new", record("m", "10", max_batch_size=16))
    await eventually(lambda: fleet.catalog.find("m").record.version == "10")
    assert fleet.catalog.find("m").signature.max_batch_size == 16
    await new.drain()
    await eventually(lambda: fleet.catalog.find("m").record.version == "9")
    await old.close()
    await new.close()


async def test_a_reloaded_model_changes_its_signature(fleet: Fleet) -> None:
    first = await fleet.worker("w", record("m", "1", max_batch_size=4))
    assert fleet.catalog.find("m").signature.max_batch_size == 4
    await first.close()
    second = await fleet.worker("v", record("m", "1", max_batch_size=8))
    await eventually(lambda: fleet.catalog.find("m").signature.max_batch_size == 8)
    await second.close()


async def test_an_empty_fleet_is_not_ready(fleet: Fleet) -> None:
    assert not fleet.catalog.all_ready()
