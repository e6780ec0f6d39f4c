"""Registry and directory on the memory bus; beats are shortened where a test has to see several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from qinfer import registry as module
from qinfer.bus import Bus, connect
from qinfer.errors import BusUnavailable
from qinfer.registry import Directory, ModelRecord, Registration, TensorRecord, WorkerRecord, model_key
from tests.helpers.waiting import Mailbox, eventually

TENSOR = TensorRecord("x", "FP32", (2,))


def model(name: str, version: str) -> ModelRecord:
    return ModelRecord(name, version, "stub", "stub", 4, (TENSOR,), (TENSOR,), b"config")


def worker(worker_id: str, **models: list[str]) -> WorkerRecord:
    return WorkerRecord(worker_id, "host", 1, models)


@pytest_asyncio.fixture
async def bus(namespace: str) -> AsyncIterator[Bus]:
    bus = connect("memory://registry", namespace=namespace)
    await bus.start()
    yield bus
    await bus.close()


@pytest_asyncio.fixture
async def directory(bus: Bus) -> AsyncIterator[Directory]:
    directory = Directory(bus)
    await directory.start()
    yield directory
    await directory.close()
    await directory.close()


async def test_a_directory_knows_what_was_there_before(bus: Bus) -> None:
    registration = Registration(bus, worker("w", m=["1"]), [model("m", "1")])
    await registration.start()
    directory = Directory(bus)
    await directory.start()
    assert directory.models == {"m": {"1": model("m", "1")}}
    assert directory.serving("m") == {"1"}
    await directory.close()
    await registration.close()


async def test_workers_come_drain_and_go(bus: Bus, directory: Directory) -> None:
    changes = Mailbox()
    directory.on_change(lambda: changes(directory.serving("m")))
    registration = Registration(bus, worker("w", m=["1", "2"]), [model("m", "1"), model("m", "2")])
    await registration.start()
    await eventually(lambda: directory.serving("m") == {"1", "2"})
    await registration.drain()
    await eventually(lambda: directory.serving("m") == set())
    assert [found.draining for found in directory.workers] == [True]
    await registration.close()
    await registration.close()
    await eventually(lambda: directory.workers == [])
    assert directory.record("m", "2") is not None  # known still
    assert changes.items[-1] == set()


async def test_names_may_hold_anything(bus: Bus, directory: Directory) -> None:
    name = "a.b/ü *"
    registration = Registration(bus, worker("w", **{name: ["1"]}), [model(name, "1")])
    await registration.start()
    await eventually(lambda: directory.serving(name) == {"1"})
    assert directory.record(name) == model(name, "1")
    await bus.delete(bus.names.models_bucket, model_key(name, "1"))
    await eventually(lambda: directory.models == {})
    await registration.close()


async def test_the_newest_served_version_wins(bus: Bus, directory: Directory) -> None:
    models = [model("m", version) for version in ("2", "10", "9")]
    old = Registration(bus, worker("old", m=["2"]), models)
    await old.start()
    await eventually(lambda: directory.serving("m"))
    found = directory.record("m")
    assert found is not None
    assert found.version == "2"  # newer ones are known, but nobody serves them
    new = Registration(bus, worker("new", m=["9", "10"]), [])
    await new.start()
    await eventually(lambda: directory.record("m") == model("m", "10"))
    await new.drain()
    await eventually(lambda: directory.record("m") == model("m", "2"))
    await old.close()
    await eventually(lambda: directory.serving("m") == set())
    assert directory.record("m") == model("m", "10")  # served by none: the newest known
    assert directory.record("m", "9") == model("m", "9")
    assert directory.record("m", "7") is None
    assert directory.record("n") is None
    await new.close()


async def test_a_worker_that_is_silent_is_dead(
    bus: Bus, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(module, "WORKER_LIFETIME", 0.5)
    directory = Directory(bus)
    await directory.start()
    live = Registration(bus, worker("live", m=["1"]), [model("m", "1")])
    await live.start()
    await bus.put(bus.names.workers_bucket, "dead", msgspec.msgpack.encode(worker("dead", m=["2"])))
    await eventually(lambda: directory.serving("m") == {"1", "2"})
    await eventually(lambda: [found.id for found in directory.workers] == ["live"])
    assert directory.serving("m") == {"1"}
    await live.close()
    await directory.close()


async def test_a_cut_line_kills_nobody(bus: Bus, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.02)
    monkeypatch.setattr(module, "WORKER_LIFETIME", 0.2)
    watching = connect("memory://registry", namespace=namespace)
    await watching.start()
    directory = Directory(watching)
    await directory.start()
    await bus.put(bus.names.workers_bucket, "w", msgspec.msgpack.encode(worker("w", m=["1"])))
    await eventually(lambda: directory.serving("m"))
    looks: list[bool] = []
    line = {"up": False}

    def connected(self: Bus) -> bool:
        looks.append(line["up"])
        return line["up"]

    monkeypatch.setattr(type(watching), "connected", property(connected))
    await eventually(lambda: len(looks) >= 40)  # two lifetimes
    line["up"] = True
    seen = len(looks)
    await eventually(lambda: len(looks) >= seen + 2)
    assert directory.serving("m") == {"1"}  # it gets a lifetime to be heard of again
    await eventually(lambda: not directory.serving("m"))
    await directory.close()
    await watching.close()


async def test_a_registration_is_renewed_whatever_fails(
    bus: Bus, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.02)
    registration = Registration(bus, worker("w", m=["1"]), [model("m", "1")])
    await registration.start()
    put, calls = bus.put, Mailbox()

    async def unreliable(bucket: str, key: str, value: bytes) -> None:
        calls(key)
        if len(calls.items) % 2:
            raise BusUnavailable("not now")
        await put(bucket, key, value)

    monkeypatch.setattr(bus, "put", unreliable)
    await eventually(lambda: len(calls.items) >= 6)
    assert directory.serving("m") == {"1"}
    await registration.close()


async def test_after_a_reconnect_everything_is_written_anew(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = Mailbox()
    monkeypatch.setattr(bus, "on_reconnect", back)
    registration = Registration(bus, worker("w", m=["1"]), [model("m", "1")])
    await registration.start()
    (reconnected,) = back.items
    names = bus.names
    await bus.delete(names.models_bucket, model_key("m", "1"))
    await bus.delete(names.workers_bucket, "w")
    seen = Mailbox()
    models = await bus.watch(names.models_bucket, seen)
    workers = await bus.watch(names.workers_bucket, seen)
    reconnected()
    await eventually(lambda: {key for key, _ in seen.items} == {"m.1", "w"})
    await models.close()
    await workers.close()
    await registration.close()


async def test_a_worker_whose_models_cannot_be_written_is_known_to_live(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reconnect: the records of models may lie with a part of the broker that is away for longer."""
    back, renewals = Mailbox(), Mailbox()
    monkeypatch.setattr(bus, "on_reconnect", back)
    monkeypatch.setattr(module, "HEARTBEAT", 0.02)
    registration = Registration(bus, worker("w", m=["1"]), [model("m", "1")])
    await registration.start()
    (reconnected,) = back.items
    put = bus.put

    async def half(bucket: str, key: str, value: bytes) -> None:
        if bucket == bus.names.models_bucket:
            raise BusUnavailable("not now")
        await put(bucket, key, value)

    monkeypatch.setattr(bus, "put", half)
    reconnected()
    watcher = await bus.watch(bus.names.workers_bucket, renewals)
    await renewals.take(3)
    await watcher.close()
    await registration.close()


@pytest.mark.parametrize(
    "value", [b"", b"\xc1", b"\x80", b"\xa1\xff", b"\x91" * 100_000, b"\x82\xa2id\xa1w\xa4host\xa1\xff"]
)
async def test_entries_that_cannot_be_read_are_ignored(bus: Bus, directory: Directory, value: bytes) -> None:
    await bus.put(bus.names.models_bucket, "m.1", value)
    await bus.put(bus.names.workers_bucket, "w", value)
    registration = Registration(bus, worker("v", n=["1"]), [model("n", "1")])
    await registration.start()
    await eventually(lambda: directory.serving("n"))
    assert set(directory.models) == {"n"}
    assert [found.id for found in directory.workers] == ["v"]
    await registration.close()


async def test_versions_that_are_no_numbers_are_ignored(bus: Bus, directory: Directory) -> None:
    """Versions are sorted and go into subjects: one strange worker must not spoil a model for all."""
    strange = Registration(bus, worker("w", m=["1", "new", "*"]), [model("m", "new"), model("m", "1")])
    await strange.start()
    await eventually(lambda: directory.serving("m"))
    assert directory.serving("m") == {"1"}
    assert directory.models == {"m": {"1": model("m", "1")}}
    assert directory.record("m") == model("m", "1")
    await strange.close()


async def test_a_record_that_changes_is_a_change_and_one_that_does_not_is_none(
    bus: Bus, directory: Directory
) -> None:
    changes = Mailbox()
    directory.on_change(lambda: changes(1))
    for _ in range(3):
        await bus.put(bus.names.models_bucket, "m.1", msgspec.msgpack.encode(model("m", "1")))
        await bus.put(bus.names.workers_bucket, "w", msgspec.msgpack.encode(worker("w", m=["1"])))
        await asyncio.sleep(0)
    await eventually(lambda: directory.serving("m"))
    assert len(changes.items) == 2


async def test_an_update_has_no_moment_in_which_a_known_version_is_not_served(
    bus: Bus, directory: Directory
) -> None:
    """What is new is served before it is known; what is gone is forgotten before it is no longer served."""
    seen: list[tuple[set[str], set[str]]] = []
    directory.on_change(lambda: seen.append((set(directory.models.get("m", ())), directory.serving("m"))))
    registration = Registration(bus, worker("w", m=["1"]), [model("m", "1")])
    await registration.start()
    await eventually(lambda: directory.serving("m") == {"1"})
    seen.clear()
    await registration.update(
        models={"m": ["2"]}, problems={"n": "half a file"}, records=[model("m", "2")], forget={"m": ["1"]}
    )
    await eventually(lambda: seen[-1:] == [({"2"}, {"2"})])
    assert all(known <= served for known, served in seen), seen
    assert all(known for known, _ in seen), "the model itself is known all the time"
    assert [record.problems for record in directory.workers] == [{"n": "half a file"}]
    await registration.update(models={}, problems={}, records=[], forget={"m": ["2"]})
    await eventually(lambda: not directory.models)
    # It comes back although its record is the one that was written before.
    await registration.update(models={"m": ["2"]}, problems={}, records=[model("m", "2")])
    await eventually(lambda: directory.record("m") is not None)
    await registration.close()


async def test_a_record_that_somebody_removed_by_mistake_comes_back(
    bus: Bus, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.02)
    registration = Registration(bus, worker("w", m=["1"]), [model("m", "1")], directory)
    await registration.start()
    await eventually(lambda: directory.record("m") is not None)
    await bus.delete(bus.names.models_bucket, model_key("m", "1"))
    await eventually(lambda: directory.record("m") is None)
    await eventually(lambda: directory.record("m") is not None)
    await registration.close()


async def test_others_that_serve_a_version(bus: Bus, directory: Directory) -> None:
    one = Registration(bus, worker("one", m=["1"]), [])
    other = Registration(bus, worker("other", m=["1", "2"]), [])
    await one.start()
    await other.start()
    await eventually(lambda: len(directory.workers) == 2)
    assert directory.served_by_others("m", "1", "one")
    assert directory.served_by_others("m", "", "one")
    assert not directory.served_by_others("m", "2", "other")
    assert not directory.served_by_others("n", "", "one")
    await other.drain()
    await eventually(lambda: not directory.served_by_others("m", "1", "one"))
    await one.close()
    await other.close()
