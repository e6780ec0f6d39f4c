"""The fleet's repositories as gateways see them, with workers that are told what to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from qinfer.bus import Bus, connect
from qinfer.control import (
    CHANGE,
    CONTROL_VERSION,
    INDEX,
    ChangeAnswer,
    ChangeQuestion,
    FleetRepository,
    IndexAnswer,
    ModelState,
    decode_question,
    merge,
)
from qinfer.errors import (
    ConfigError,
    DeadlineExceeded,
    MalformedMessage,
    ModelNotFound,
    NoWorker,
    QInferError,
    Unsupported,
    UnsupportedVersion,
)
from qinfer.message import WireError
from qinfer.registry import Directory, ModelRecord, Registration, WorkerRecord
from tests.helpers.waiting import eventually

RECORD = ModelRecord("m", "1", "stub", "stub", 4, (), (), b"")


class Worker:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, bus: Bus, name: str, *, control: str = "explicit") -> None:
        self.name = name
        self.asked: list[ChangeQuestion] = []
        self.answers: list[
            ChangeAnswer | None
        ] = []  # one a question, the last for all further ones; None: none
        self.states: list[ModelState] = []
        record = WorkerRecord(name, "host", 1, {"m": ["1"]}, control=control)
        self.registration = Registration(bus, record, [RECORD])
        self._bus = bus

    async def start(self) -> None:
        await self._bus.answer(CHANGE, self._change)
        await self._bus.answer(INDEX, self._index)
        await self.registration.start()

    def will(self, *, done: bool = True, error: QInferError | None = None) -> None:
        told = WireError.of(error) if error is not None else None
        self.answers.append(ChangeAnswer(CONTROL_VERSION, self.name, done, told))

    async def _change(self, data: bytes) -> bytes:
        self.asked.append(decode_question(data))
        if not self.answers:
            self.will()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return msgspec.msgpack.encode(answer) if answer is not None else b"nonsense"

    async def _index(self, _: bytes) -> bytes:
        return msgspec.msgpack.encode(IndexAnswer(CONTROL_VERSION, self.name, self.states))


class Stage:
    """A bus with workers and a repository that asks them."""

    def __init__(self, bus: Bus, directory: Directory) -> None:
        self.bus = bus
        self.directory = directory
        self.fleet = FleetRepository(bus, directory)

    async def add(self, name: str, **options: str) -> Worker:
        worker = Worker(self.bus, name, **options)
        await worker.start()
        await eventually(lambda: name in {known.id for known in self.directory.workers})
        return worker


@pytest_asyncio.fixture
async def stage(namespace: str) -> AsyncIterator[Stage]:
    bus = connect("memory://control", namespace=namespace)
    await bus.start()
    directory = Directory(bus)
    await directory.start()
    yield Stage(bus, directory)
    await directory.close()
    await bus.close()


async def test_nobody_there(stage: Stage) -> None:
    with pytest.raises(NoWorker):
        await stage.fleet.load("m")
    with pytest.raises(NoWorker):
        await stage.fleet.unload("m")
    assert await stage.fleet.index() == []


async def test_a_change_is_asked_for_until_all_are_done(stage: Stage) -> None:
    quick, slow = await stage.add("quick"), await stage.add("slow")
    slow.will(done=False)
    slow.answers.append(None)  # an answer that cannot be read is no answer
    slow.will(done=True)
    await stage.fleet.load("m", config='{"a": 1}')
    assert len(slow.asked) == 3
    assert {question.operation for question in slow.asked} == {quick.asked[0].operation}, "one and the same"
    assert (slow.asked[0].action, slow.asked[0].model, slow.asked[0].config) == ("load", "m", '{"a": 1}')
    await stage.fleet.load("m")
    assert slow.asked[-1].operation != slow.asked[0].operation


async def test_a_worker_that_dies_is_not_waited_for(stage: Stage) -> None:
    await stage.add("quick")
    dying = await stage.add("dying")
    dying.will(done=False)
    loading = asyncio.create_task(stage.fleet.load("m"))
    await eventually(lambda: dying.asked)
    await dying.registration.close()
    await asyncio.wait_for(loading, 20)


async def test_what_takes_too_long_is_told_by_whom(stage: Stage) -> None:
    worker = await stage.add("slow")
    worker.will(done=False)
    with pytest.raises(
        DeadlineExceeded, match=r"load of model 'm': not done within 0\.1 s by worker\(s\) slow"
    ):
        await stage.fleet.load("m", timeout=0.1)


async def test_an_error_of_one_worker_is_told(stage: Stage) -> None:
    await stage.add("good")
    (await stage.add("bad")).will(error=ConfigError("half a file"))
    with pytest.raises(ConfigError, match="worker bad: half a file"):
        await stage.fleet.load("m")


async def test_a_model_that_only_some_have_is_loaded(stage: Stage) -> None:
    one, other = await stage.add("one"), await stage.add("other")
    one.will(error=ModelNotFound("not here"))
    await stage.fleet.load("m")
    other.will(error=ModelNotFound("nor here"))
    other.answers.pop(0)
    with pytest.raises(ModelNotFound):
        await stage.fleet.load("m")


@pytest.mark.parametrize("mode", ["none", "poll"])
async def test_workers_that_are_not_to_be_controlled_are_not_asked(stage: Stage, mode: str) -> None:
    worker = await stage.add("w", control=mode)
    for change in (stage.fleet.load, stage.fleet.unload):
        with pytest.raises(Unsupported, match=f"worker w .* is {mode}; expected explicit"):
            await change("m")
    assert not worker.asked
    assert stage.directory.record("m") is not None


async def test_an_unload_makes_the_fleet_forget_the_model_before_anybody_lets_go_of_it(stage: Stage) -> None:
    known: list[bool] = []
    worker = await stage.add("w")

    async def let_go() -> None:
        await eventually(lambda: worker.asked)
        known.append("m" in stage.directory.models)
        await worker.registration.update(models={}, problems={}, records=[])

    watching = asyncio.create_task(let_go())
    await stage.fleet.unload("m")
    await watching
    assert known == [False]
    worker.answers.clear()
    worker.will(error=ModelNotFound("not loaded"))
    with pytest.raises(ModelNotFound):
        await stage.fleet.unload("m")


async def test_the_index_tells_what_no_worker_tells(stage: Stage) -> None:
    worker = await stage.add("w")
    worker.states = [ModelState("m", "1", "READY"), ModelState("n", "", "UNAVAILABLE", "not loaded")]
    assert await stage.fleet.index() == worker.states
    assert await stage.fleet.index(ready=True) == worker.states[:1]
    await worker.registration.close()
    await eventually(lambda: not stage.directory.workers)
    assert await stage.fleet.index() == [ModelState("m", "1", "UNAVAILABLE", "no live worker serves it")]


def test_states_of_several_workers_become_one() -> None:
    ready, loading = ModelState("m", "1", "READY"), ModelState("m", "1", "LOADING")
    broken = ModelState("m", "1", "UNAVAILABLE", "half a file")
    absent = ModelState("m", "", "UNAVAILABLE", "not loaded")

    def merged(*states: ModelState) -> list[ModelState]:
        answers = (IndexAnswer(1, f"w{number}", [state]) for number, state in enumerate(states))
        return list(merge(answers).values())

    assert merged(ready, ready) == [ready]
    assert merged(loading, ready) == [ready]
    assert merged(broken) == [broken]
    assert merged(broken, broken) == [broken]
    assert merged(ready, broken) == [ModelState("m", "1", "READY", "worker w1: half a file")]
    assert merged(absent, ready) == [ready]
    assert merged(absent, absent) == [absent]


def test_questions_that_cannot_be_understood() -> None:
    with pytest.raises(MalformedMessage):
        decode_question(b"\xc1")
    with pytest.raises(UnsupportedVersion, match="control version 2; expected 1"):
        decode_question(msgspec.msgpack.encode(ChangeQuestion(2, "x", "load", "m")))
