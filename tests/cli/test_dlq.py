"""`qinfer dlq`: dead letters are listed, shown, replayed and removed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result
from tests.helpers import http, served_models
from tests.helpers.http import infer, tensor
from tests.helpers.system import Fleet, fleet

from qinfer.bus import Bus, connect
from qinfer.bus.nats import storage
from qinfer.cli.app import app
from qinfer.deadletter import Attempt, DeadLetter, encode_letter
from qinfer.embedded import EmbeddedServer
from qinfer.message import Request, Tensor

FP32 = served_models.IDENTITY["FP32"]
PICKY = served_models.PICKY


class Shell:
    """Runs `qinfer dlq` against a broker, off the loop: the command has a loop of its own."""

    def __init__(self, nats: str, namespace: str) -> None:
        self._environment = {"QINFER_NATS": nats, "QINFER_NAMESPACE": namespace, "COLUMNS": "200"}

    async def run(self, *arguments: str, typed: str = "") -> Result:
        return await asyncio.to_thread(
            CliRunner().invoke, app, ["dlq", *arguments], input=typed, env=self._environment
        )

    async def shown(self, *arguments: str, typed: str = "") -> str:
        done = await self.run(*arguments, typed=typed)
        assert done.exit_code == 0, done.output
        return done.output

    async def told(self, *arguments: str) -> Any:
        return json.loads(await self.shown(*arguments, "--json"))

    async def ids(self, *arguments: str) -> list[int]:
        return [row["id"] for row in await self.told("list", *arguments)]


@pytest.fixture
def shell(nats_url: str, namespace: str) -> Shell:
    return Shell(nats_url, namespace)


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, served_repository: Path) -> AsyncIterator[Fleet]:
    """A gateway without workers; what the namespace has at the broker is removed in the end."""
    async with fleet(nats_url, namespace, served_repository) as made:
        yield made


@pytest_asyncio.fixture
async def bus(running: Fleet) -> AsyncIterator[Bus]:
    bus = connect(running.nats, namespace=running.namespace)
    await bus.start()
    yield bus
    await bus.close()


def letter(model: str = FP32, rows: Any = ((1.0, 2.0),), **facts: Any) -> DeadLetter:
    told: dict[str, Any] = {
        "model": model,
        "version": "",
        "reason": "poisoned",
        "error": "three workers died",
        "request_id": "request 7",
        "tenant": "acme",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "buried_us": 1_790_000_000_000_000,
        "worker": "worker-c",
        "attempts": [Attempt("", 0), Attempt("worker-b", 1_789_999_990_000_000, ["request 7", "request 8"])],
        "request": Request(
            id=99,
            request_id="request 7",
            inputs=[Tensor.from_numpy("x", np.array(rows, np.float32))],
            deadline_us=1,
            attempt=2,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            claim="in-gone",
            claim_bytes=8,
            idempotency="0" * 64,
        ),
        **facts,
    }
    return DeadLetter(**told)


async def bury(bus: Bus, *letters: DeadLetter) -> None:
    for each in letters:
        await bus.bury(each.model, encode_letter(each))


@pytest.mark.usefixtures("running")
async def test_nothing(shell: Shell) -> None:
    assert await shell.shown("list") == "no dead letters\n"
    assert await shell.told("list") == []
    assert await shell.shown("purge", "--all", "--yes") == "no dead letters\n"
    for command in ("show", "replay", "purge"):
        done = await shell.run(command, "7", *(["--yes"] if command == "purge" else []))
        assert done.exit_code == 1
        assert "no dead letter 7" in done.output


async def test_the_broker_of_serve_is_found_by_its_folder(tmp_path: Path) -> None:
    async with EmbeddedServer(store_dir=tmp_path) as server:
        bus = connect(server.url, namespace="default")
        await bus.start()
        await bury(bus, letter())
        await bus.close()
        found = Shell("nats://127.0.0.1:1", "default")  # what is typed beats the environment
        assert [row["request_id"] for row in await found.told("list", "--store-dir", str(tmp_path))] == [
            "request 7"
        ]
        environment = {"QINFER_NATS": None, "QINFER_STORE_DIR": str(tmp_path)}
        done = await asyncio.to_thread(CliRunner().invoke, app, ["dlq", "list"], env=environment)
        assert "request 7" in done.output, done.output
    done = await found.run("list", "--store-dir", str(tmp_path))
    assert done.exit_code == 2
    assert "no broker runs in store directory" in done.output


def test_a_broker_has_to_be_named() -> None:
    environment = {"QINFER_NATS": None, "QINFER_STORE_DIR": None}
    done = CliRunner().invoke(app, ["dlq", "list"], env=environment)
    assert done.exit_code == 2
    assert "'--nats'" in done.output
    assert "'--store-dir'" in done.output


async def test_list(shell: Shell, bus: Bus) -> None:
    await bury(bus, letter(), letter("other", request_id="\x1b[31mred", version="3"))
    header, first, second = (await shell.shown("list")).splitlines()
    assert header.split() == ["id", "model", "given", "up", "reason", "attempts", "request", "id"]
    assert first.split() == ["1", FP32, "2026-09-21", "14:13:20Z", "poisoned", "2", "request", "7"]
    assert "other version 3" in second
    assert "\\x1b[31mred" in second, "what a client writes does not reach the terminal"
    assert await shell.ids("--model", "other") == [2]


async def test_a_long_list_comes_in_pages(shell: Shell, bus: Bus) -> None:
    await bury(bus, *(letter(request_id=str(number)) for number in range(5)))
    assert "there are more: --after 2" in await shell.shown("list", "--limit", "2")
    assert "there are more" not in await shell.shown("list", "--limit", "5")
    assert await shell.ids("--limit", "2", "--after", "2") == [3, 4]


async def test_what_cannot_be_read_is_listed_and_can_be_removed(shell: Shell, bus: Bus) -> None:
    await bus.bury(FP32, b"\x93no letter")
    await bury(bus, letter())
    assert "not a dead letter" in await shell.shown("list")
    broken, good = await shell.told("list")
    assert "not a dead letter" in broken["problem"]
    assert good["request_id"] == "request 7"
    assert (await shell.run("show", "1")).exit_code == 1
    await shell.shown("purge", "1", "--yes")
    assert await shell.ids() == [2]


async def test_show(shell: Shell, bus: Bus) -> None:
    await bury(bus, letter())
    shown = await shell.shown("show", "1")
    lines = {line.rstrip() for line in shown.splitlines()}
    for fact in (
        "dead letter  1",
        f"model        {FP32}",
        "given up     2026-09-21 14:13:20Z by worker worker-c",
        "error        three workers died",
        "tenant       acme",
        "trace id     0af7651916cd43dd8448eb211c80319c",
        "replay       possible",
        "      1  not recorded  -                     -",
        "      2  worker-b      2026-09-21 14:13:10Z  request 7, request 8",
        "x      FP32      [1, 2]",
    ):
        assert fact in lines, shown
    told = await shell.told("show", "1")
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 2]}]
    assert told["attempts"][1]["mates"] == ["request 7", "request 8"]


async def test_times_beyond_reason(shell: Shell, bus: Bus) -> None:
    await bury(bus, letter(buried_us=1 << 62, attempts=[Attempt("w", -5)]))
    assert "given up     - by worker worker-c" in await shell.shown("show", "1")


async def test_purge(shell: Shell, bus: Bus) -> None:
    await bury(bus, *(letter(model) for model in ("a", "b", "a", "b", "a", "b")))
    assert "Remove 1 dead letter for good?" in (await shell.run("purge", "2", typed="n\n")).output
    assert await shell.ids() == [1, 2, 3, 4, 5, 6]
    assert "removed 1 dead letter\n" in await shell.shown("purge", "2", typed="y\n")
    assert await shell.shown("purge", "--model", "a", "--yes") == "removed 3 dead letters\n"
    assert await shell.ids() == [4, 6]
    done = await shell.run("purge", "--yes", "4", "5", "4")
    assert (done.exit_code, "removed 1 dead letter" in done.output) == (1, True)
    assert "no dead letter 5" in done.output
    assert await shell.shown("purge", "--all", "--yes") == "removed 1 dead letter\n"
    assert await shell.ids() == []


async def test_purge_of_more_than_one_page(shell: Shell, bus: Bus) -> None:
    await bury(bus, *(letter() for _ in range(120)))
    assert await shell.shown("purge", "--all", "--yes") == "removed 120 dead letters\n"
    assert await shell.ids() == []


@pytest.mark.parametrize("arguments", [(), ("1", "--all"), ("--model", "m", "--all"), ("1", "--model", "m")])
async def test_purge_wants_to_know_what(shell: Shell, arguments: tuple[str, ...]) -> None:
    done = await shell.run("purge", *arguments, "--yes")
    assert done.exit_code == 2
    assert "either ids, or --model, or --all" in done.output


async def test_an_answered_replay_removes_its_letter(shell: Shell, bus: Bus, running: Fleet) -> None:
    await running.add_worker(FP32)
    await bury(bus, letter())
    shown = await shell.shown("replay", "1")
    assert "dead letter 1: answered, and removed" in shown
    assert "[[1. 2.]]" in shown
    assert await shell.ids() == []


async def test_a_letter_can_be_kept(shell: Shell, bus: Bus, running: Fleet) -> None:
    await running.add_worker(FP32)
    await bury(bus, letter())
    for _ in range(2):
        (told,) = await shell.told("replay", "1", "--keep")
        assert told["removed"] is False
        assert told["answer"]["outputs"][0]["data"] == [1.0, 2.0]
    assert await shell.ids() == [1]


async def test_several_replays(shell: Shell, bus: Bus, running: Fleet) -> None:
    """Each has its outcome, and those that fail keep their letters."""
    await running.add_worker(FP32, PICKY)
    refused = letter(PICKY, [[served_models.RAISES]])
    await bury(bus, refused, letter(), letter("gone"), letter(complete=False), letter(rows=[[3.0]]))
    done = await shell.run("replay", "1", "2", "3", "4", "5", "6", "--json")
    assert done.exit_code == 1
    outcomes = {told["id"]: told.get("reason", "answered") for told in json.loads(done.output)}
    assert outcomes == {
        1: "model_failed",
        2: "answered",
        3: "model_not_found",
        4: "invalid_request",
        5: "answered",
        6: "not_found",
    }
    assert await shell.ids() == [1, 3, 4]
    assert "dead letter 3: model_not_found" in (await shell.run("replay", "3")).output


async def test_a_replay_has_a_deadline(shell: Shell, bus: Bus, running: Fleet, tmp_path: Path) -> None:
    await running.add_worker(served_models.GATED)
    gate = tmp_path / "gate"
    words = np.array([[str(gate).encode()]], dtype=object)
    request = Request(id=1, request_id="", inputs=[Tensor.from_numpy("x", words)])
    await bury(bus, letter(served_models.GATED, request=request))
    (told,) = json.loads((await shell.run("replay", "1", "--timeout", "0.5", "--json")).output)
    gate.touch()
    assert told["reason"] == "deadline_exceeded"
    assert await shell.ids() == [1]


def test_the_page_says_how_long_letters_are_kept() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8").replace("\n", " ")
    assert f"after {storage._LETTERS_LIFETIME / 86400:.0f} days" in page
    assert f"more than {storage._LETTERS_MAX_BYTES >> 20} MiB of them" in page


_MORTAL = """
import os, signal
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        if os.path.exists({cause!r}):
            os.kill(os.getpid(), signal.SIGKILL)
        inputs = [pb_utils.get_input_tensor_by_name(request, "x") for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())]) for x in inputs]
"""


async def test_from_the_grave_to_an_answer(
    shell: Shell, nats_url: str, namespace: str, tmp_path: Path
) -> None:
    """A request kills its workers; once what made it deadly is gone, a replay is answered."""
    cause = tmp_path / "cause"
    cause.touch()
    folder = tmp_path / "models" / "mortal" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(_MORTAL.format(cause=str(cause)))
    (folder.parent / "config.pbtxt").write_text(
        'backend: "python"\nmax_batch_size: 4\n'
        + served_models.signature("FP32")
        + '\nparameters { key: "queue.ack_wait_ms" value { string_value: "300" } }'
        + '\nparameters { key: "queue.max_deliver" value { string_value: "2" } }'
    )
    async with (
        fleet(nats_url, namespace, tmp_path / "models", request_timeout=60.0) as running,
        http.connect(running.port) as connection,
    ):
        body = {"id": "deadly", "inputs": [tensor([1.5, 2.5], "FP32", [1, 2])]}
        first = await running.add_worker_process("mortal")
        connection.send(infer("mortal", body))
        await first.wait()
        await (await running.add_worker_process("mortal")).wait()
        await running.add_worker_process("mortal")
        assert (await connection.answer()).reason == "poisoned"
        (told,) = await shell.told("list")
        assert (told["request_id"], told["reason"], len(told["attempts"])) == ("deadly", "poisoned", 2)
        cause.unlink()
        (outcome,) = await shell.told("replay", str(told["id"]))
        assert outcome["answer"]["outputs"][0]["data"] == [1.5, 2.5]
        assert await shell.ids() == []
