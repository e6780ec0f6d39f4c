"""A request that kills every worker that runs it: it is found out, and nobody else suffers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from qinfer.bus import connect
from qinfer.deadletter import DeadLetter, decode_letter
from tests.helpers import http, served_models
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.system import Fleet, System, fleet, serving

MODEL = "mortal"
POISON = -1
_SOURCE = """
import os, signal
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        numbers = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy().item() for r in requests]
        with open({journal!r}, "a") as journal:
            journal.write(" ".join(map(str, numbers)) + "\\n")
        if {poison} in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([[n + 1]], np.int64))]) for n in numbers
        ]
"""
_PARAMETERS = """
parameters { key: "queue.ack_wait_ms" value { string_value: "300" } }
parameters { key: "queue.max_deliver" value { string_value: "3" } }
dynamic_batching { max_queue_delay_microseconds: 50000 }
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where the model writes which requests it ran together."""
    return tmp_path / "journal"


@pytest.fixture
def repository(tmp_path: Path, journal: Path) -> Path:
    root = tmp_path / "models"
    folder = root / MODEL / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(_SOURCE.format(journal=str(journal), poison=POISON))
    signature = served_models.signature("INT64", 1)
    (root / MODEL / "config.pbtxt").write_text(
        f'backend: "python"\nmax_batch_size: 16\n{signature}\n{_PARAMETERS}'
    )
    return root


@pytest.fixture
def system(repository: Path) -> Iterator[System]:
    """A supervisor that starts a worker again whenever it has died."""
    with serving(repository) as system:
        yield system


async def ask(port: int, value: int) -> Answer:
    async with http.connect(port) as connection:
        head = {"id": f"request {value}", "inputs": [tensor([value], "INT64", [1, 1])]}
        return await connection.ask(infer(MODEL, head))


def runs(journal: Path) -> list[list[int]]:
    return [[int(number) for number in line.split()] for line in journal.read_text().splitlines()]


async def letters(nats_url: str, namespace: str) -> list[DeadLetter]:
    bus = connect(nats_url, namespace=namespace)
    await bus.start()
    try:
        return [decode_letter(letter.data) for letter in await bus.letters(MODEL)]
    finally:
        await bus.close()


async def test_the_culprit_is_given_up_and_its_mates_are_answered(system: System, journal: Path) -> None:
    answers = await asyncio.gather(*(ask(system.http_port, value) for value in [*range(15), POISON]))
    *innocent, culprit = answers
    assert [answer.status for answer in innocent] == [200] * 15
    assert [answer.outputs()["y"] for answer in innocent] == [[value + 1] for value in range(15)]
    assert (culprit.status, culprit.reason) == (500, "poisoned")
    assert MODEL in culprit.error
    killed = [run for run in runs(journal) if POISON in run]
    assert len(killed) == 3
    assert len(killed[0]) > 1, "the test wants it to have had mates"
    assert killed[-1] == [POISON]
    assert len(killed[1]) <= 4, "the second time in a small batch"


async def test_the_letter_tells_the_story(
    nats_url: str, namespace: str, repository: Path, journal: Path
) -> None:
    async with fleet(nats_url, namespace, repository, request_timeout=60.0) as running:
        first = await worker(running)
        asked = [asyncio.ensure_future(ask(running.port, value)) for value in (1, 2, POISON)]
        await first.wait()
        for _ in range(2):
            await (await worker(running)).wait()
        last = await worker(running)
        answers = await asyncio.gather(*asked)
        assert [answer.status for answer in answers] == [200, 200, 500]
        assert last.returncode is None
        (letter,) = await letters(nats_url, namespace)
        assert (letter.model, letter.reason, letter.request_id) == (MODEL, "poisoned", f"request {POISON}")
        assert letter.request.inputs[0].numpy().tolist() == [[POISON]]
        unrecorded, together, alone = letter.attempts
        assert unrecorded.worker == "", "nothing was suspected when it ran for the first time"
        assert {f"request {POISON}"} < set(together.mates)
        assert alone.mates == []
        assert len({together.worker, alone.worker, letter.worker}) == 3
        await emptied(running)


async def emptied(running: Fleet) -> None:
    for _ in range(500):  # each look is a connection of its own
        if not await running.queued(MODEL):
            return
    pytest.fail("the queue is not empty")


async def worker(running: Fleet) -> asyncio.subprocess.Process:
    return await running.add_worker_process(MODEL)


async def test_what_was_only_held_by_a_dying_worker_is_not_suspected_for_long(
    system: System, journal: Path
) -> None:
    """Several culprits at once, one after the other: the innocent are never given up."""
    values = [1, 2, POISON, 4, 5, 6, POISON, 8]
    answers = await asyncio.gather(*(ask(system.http_port, value) for value in values))
    for value, answer in zip(values, answers, strict=True):
        if value == POISON:
            assert answer.reason == "poisoned"
        else:
            assert answer.outputs()["y"] == [value + 1], answer.error
