"""Batch jobs: submitted over HTTP, run by gateways, on capacity that nobody else wants."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from msgspec.structs import replace

from qinfer.errors import BusUnavailable, Forbidden, InvalidRequest, SetupError, Unsupported
from qinfer.jobs import BatchWork, JobRecord, JobState, Progress
from qinfer.jobs.stored import StoredJob
from qinfer_gateway.admission import Flight
from qinfer_gateway.jobs.lane import Shares, new_shares
from qinfer_gateway.jobs.references import BatchRoots
from qinfer_gateway.jobs.spare import MOST, Spare
from tests.helpers import http
from tests.helpers.http import Answer
from tests.helpers.served_models import GATED, copy
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, eventually
from tests.scoring.conftest import write_models

# References


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "file").touch()
    (tmp_path / "secret").touch()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "data" / "away").symlink_to(tmp_path)
    (tmp_path / "data" / "inside").symlink_to(tmp_path / "data" / "sub")
    return tmp_path / "data"


def test_references_are_below_their_folder(data: Path) -> None:
    roots = BatchRoots([f"d={data}"])
    assert roots.find("f", "d/file") == (data / "file", data)
    assert roots.find("f", "d/sub/new.npy") == (data / "sub" / "new.npy", data)
    assert roots.find("f", "d/inside/x") == (data / "sub" / "x", data)
    assert roots.hidden(f"{data}/sub/x: no") == "d/sub/x: no"


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "d",
        "d/",
        "d/../secret",
        "d/sub/../file",
        "d/./file",
        "d//file",
        "/d/file",
        "d/a\0b",
        "d/" + "x" * 1000,
    ],
)
def test_references_that_are_none(data: Path, reference: str) -> None:
    with pytest.raises(InvalidRequest, match=r"batch\.input: found .*; expected NAME/path/of/file"):
        BatchRoots([f"d={data}"]).find("batch.input", reference)


def test_references_that_lead_elsewhere(data: Path) -> None:
    roots = BatchRoots([f"d={data}"])
    for reference in ("d/link", "d/away/secret", "d/away"):
        with pytest.raises(Forbidden, match="is a link out of the folder d"):
            roots.find("f", reference)
    with pytest.raises(InvalidRequest, match="found 'other' before the first /; expected one of d"):
        roots.find("f", "other/file")
    with pytest.raises(Unsupported, match="no folder is allowed"):
        BatchRoots().find("f", "d/file")


@pytest.mark.parametrize("root", ["d", "=x", "a/b=x", "d={data}/file", "d={data}/none"])
def test_folders_that_are_none(data: Path, root: str) -> None:
    with pytest.raises(SetupError, match="--batch-root"):
        BatchRoots([root.format(data=data)])
    with pytest.raises(SetupError, match="each name once"):
        BatchRoots([f"d={data}", f"d={data}"])


# Leftover capacity


class Surroundings:
    """What a turn depends on."""

    def __init__(self) -> None:
        self.flight = Flight()
        self.shares: Shares = new_shares()
        self.queued = 0
        self.away = False
        self.now = 0.0
        self.spare = Spare(lambda: {"m": self.flight}, self.shares, self._queued, lambda: self.now)

    async def _queued(self, model: str, version: str) -> int:
        if self.away:
            raise BusUnavailable("away")
        return self.queued

    async def asks(self) -> bool:
        """Whether a turn is given at once; it is over then."""
        try:
            async with asyncio.timeout(0.02), self.spare.turn("m", "1", 4):
                return True
        except TimeoutError:
            return False


async def test_a_turn_is_given_when_nobody_else_wants_anything() -> None:
    around = Surroundings()
    assert await around.asks()
    around.flight.count = 1
    assert not await around.asks(), "others' requests are in flight"
    around.flight.count = 0
    around.queued = 1
    assert not await around.asks(), "other gateways' requests are queued"
    around.queued = 0
    around.away = True
    assert not await around.asks(), "nobody knows"
    around.away = False
    assert await around.asks()


async def test_turns_are_few_and_counted() -> None:
    around = Surroundings()
    async with around.spare.turn("m", "1", 4):
        around.flight.count = 1
        around.queued = 1  # its own
        async with around.spare.turn("m", "1", 4):
            around.flight.count = 2
            assert around.shares["m"].jobs == MOST == 2
            assert around.shares["m"].rows == 8
            assert not await around.asks()
        around.flight.count = 1
        assert await around.asks()
        around.flight.count = 2
        assert not await around.asks(), "somebody else came"
    assert (around.shares["m"].jobs, around.shares["m"].rows) == (0, 0)


async def test_answers_that_tell_of_others_make_it_pause() -> None:
    around = Surroundings()
    async with around.spare.turn("m", "1", 4) as heard:
        heard(0)
    assert await around.asks()
    async with around.spare.turn("m", "1", 4) as heard:
        heard(5)
    assert not await around.asks()
    around.now = 1.5
    assert await around.asks()


# Jobs


@pytest_asyncio.fixture
async def running(
    nats_url: str, namespace: str, data: Path, tmp_path: Path, served_repository: Path
) -> AsyncIterator[Fleet]:
    models = copy(served_repository, write_models(tmp_path / "models"), GATED)
    async with fleet(nats_url, namespace, models, batch_roots=(f"data={data}",)) as made:
        await made.add_worker()
        await eventually(lambda: made.gateway.jobs is not None and made.gateway.jobs.ready, "jobs are run")
        yield made


async def ask(port: int, request: bytes) -> Answer:
    async with http.connect(port) as connection:
        return await connection.ask(request)


async def submit(port: int, model: str, batch: dict[str, Any], **more: Any) -> Answer:
    body = {"model": model, "batch": batch, **more}
    return await ask(port, http.post("/v2/jobs", json.dumps(body).encode()))


async def ended(port: int, job: dict[str, Any]) -> dict[str, Any]:
    answer = await ask(port, http.get(f"{job['status_url']}?wait={PATIENCE:g}"))
    told: dict[str, Any] = answer.json()
    assert told["state"] not in ("queued", "running"), told
    return told


async def test_a_file_becomes_a_file(running: Fleet, data: Path) -> None:
    rows = [{"id": row, "v": [row, 13 if row == 5 else 0]} for row in range(30)]
    (data / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = {"input": "data/in.jsonl", "output": "data/sub/out.jsonl", "map": {"x": "v"}, "keep": ["id"]}
    answer = await submit(running.port, "picky", {**spec, "on_error": "record"})
    assert answer.status == 202, answer
    job = await ended(running.port, answer.json())
    assert job["state"] == "succeeded", job
    assert job["progress"] == {"done": 30, "total": 30, "failed": 2}
    found = [json.loads(line) for line in (data / "sub" / "out.jsonl").read_text().splitlines()]
    assert found == [{"id": r, "y": [2 * r, 0]} for r in range(30) if r not in (5, 13)]
    errors = (data / "sub" / "out.jsonl.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in errors] == [5, 13]
    assert sorted(path.name for path in (data / "sub").iterdir()) == ["out.jsonl", "out.jsonl.errors.jsonl"]


async def test_what_cannot_be_done_is_refused_at_once(running: Fleet, data: Path) -> None:
    (data / "in.jsonl").write_text('{"x": [1, 2]}')
    good = {"input": "data/in.jsonl", "output": "data/out.jsonl"}
    for batch, status, message in (
        ({**good, "input": "data/../secret"}, 400, "expected NAME/path/of/file"),
        ({**good, "input": "data/link"}, 403, "is a link out of the folder data"),
        ({**good, "output": "data/away/x.jsonl"}, 403, "is a link out of the folder data"),
        ({**good, "input": "data/none.jsonl"}, 400, "data/none.jsonl: cannot be read"),
        ({**good, "map": {"x": "z"}}, 400, "data/in.jsonl: has no column 'z'"),
        ({**good, "output": "data/file"}, 400, "data/file is there already"),
        ({**good, "output": "data/in.jsonl"}, 400, "is the input, or in it"),
        ({**good, "on_error": "cry"}, 400, "batch: Invalid enum value 'cry'"),
        ({**good, "more": 1}, 400, "batch: Object contains unknown field `more`"),
        ({"input": "data/in.jsonl"}, 400, "batch: Object missing required field `output`"),
    ):
        answer = await submit(running.port, "picky", batch)
        assert (answer.status, message in answer.error) == (status, True), answer
        assert str(data) not in answer.error
    assert (await submit(running.port, "none", good)).status == 404


async def test_a_row_that_fails_fails_the_job(running: Fleet, data: Path) -> None:
    (data / "in.jsonl").write_text('{"x": [1, 2]}\n{"x": [1, 13]}\n')
    answer = await submit(running.port, "picky", {"input": "data/in.jsonl", "output": "data/out.jsonl"})
    job = await ended(running.port, answer.json())
    assert job["state"] == "failed"
    assert job["error"]["reason"] == "model_failed"
    assert job["error"]["message"].startswith("data/in.jsonl: row 1: ")
    assert not (data / "out.jsonl").exists()


async def test_links_among_the_files_of_a_folder_do_not_lead_out(running: Fleet, data: Path) -> None:
    (data / "texts").mkdir()
    (data / "texts" / "a").write_text("lovely")
    (data / "texts" / "b").symlink_to(data.parent / "secret")
    spec = {"input": "data/texts", "output": "data/out.jsonl", "keep": ["file"], "on_error": "record"}
    job = await ended(running.port, (await submit(running.port, "sentiment", spec)).json())
    assert job["progress"] == {"done": 2, "total": 2, "failed": 1}
    assert "link out" in (data / "out.jsonl.errors.jsonl").read_text()


async def test_an_output_that_an_attempt_left_whole_is_not_made_again(running: Fleet, data: Path) -> None:
    """The gateway died between the last step of the files and the record of the job."""
    np.save(data / "in.npy", np.zeros((3, 2), np.float32))
    spec = {"input": "data/in.npy", "output": "data/out.npy"}
    job = (await submit(running.port, "picky", spec)).json()
    assert (await ended(running.port, job))["progress"] == {"done": 3, "total": 3, "failed": 0}
    assert running.gateway.jobs is not None
    batches: Any = running.gateway.jobs._batches
    record = JobRecord(id="0" * 32, state=JobState.RUNNING, model="picky", progress=Progress(3, 3))
    await batches.run(StoredJob(record=record, request=None), BatchWork(spec, "1"))
    early = replace(record, progress=Progress(2, 3))
    with pytest.raises(InvalidRequest, match=r"data/out\.npy: is there already"):
        await batches.run(StoredJob(record=early, request=None), BatchWork(spec, "1"))


async def test_an_output_is_replaced_where_that_is_asked_for(running: Fleet, data: Path) -> None:
    np.save(data / "in.npy", np.zeros((3, 2), np.float32))
    (data / "out.npy").write_text("old")
    spec = {"input": "data/in.npy", "output": "data/out.npy", "replace": True}
    job = (await submit(running.port, "picky", spec)).json()
    assert (await ended(running.port, job))["state"] == "succeeded"
    assert np.load(data / "out.npy").shape == (3, 2)


async def test_the_same_key_is_the_same_job(running: Fleet, data: Path) -> None:
    np.save(data / "in.npy", np.zeros((3, 2), np.float32))
    spec = {"input": "data/in.npy", "output": "data/out.npy"}
    first = (await submit(running.port, "picky", spec, idempotency_key="once")).json()
    assert (await ended(running.port, first))["state"] == "succeeded"
    (data / "in.npy").unlink()
    again = await submit(running.port, "picky", spec, idempotency_key="once")
    assert (again.status, again.json()["id"]) == (202, first["id"])


def gates(data: Path, count: int) -> list[Path]:
    """Rows of the model that waits for a file each."""
    paths = [data.parent / f"gate-{number}" for number in range(count)]
    (data / "in.jsonl").write_text("\n".join(json.dumps({"x": str(path)}) for path in paths))
    return paths


async def test_others_go_first_and_cancelling_stops_it(running: Fleet, data: Path) -> None:
    rows = gates(data, 6)
    other = data.parent / "other"
    body = {"inputs": [http.tensor([str(other)], "BYTES", [1, 1])]}
    waiting = asyncio.create_task(ask(running.port, http.infer(GATED, body)))
    await eventually(lambda: running.in_flight == 1, "somebody else asks")
    spec = {"input": "data/in.jsonl", "output": "data/out.jsonl", "chunk": 1}
    job = (await submit(running.port, GATED, spec)).json()
    await asyncio.sleep(0.3)  # what is not done cannot be waited for
    assert not rows[0].with_name("gate-0.began").exists()
    other.touch()
    assert (await waiting).status == 200
    await eventually(lambda: running.in_flight == MOST, "its turn")
    cancelled = await ask(running.port, http.post(job["cancel_url"], b""))
    assert cancelled.json()["state"] == "cancelled"
    await eventually(lambda: not running.in_flight, "it has stopped")
    for row in rows:
        row.touch()
    assert not (data / "out.jsonl").exists()


@pytest.mark.parametrize("forgotten", [False, True])
async def test_one_whose_cancellation_was_not_heard_stops_all_the_same(
    running: Fleet, data: Path, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    monkeypatch.setattr("qinfer_gateway.jobs.batch._TELL_SECONDS", 0.05)
    monkeypatch.setattr("qinfer_gateway.jobs.attempt.Attempts.cancel", lambda *_: True)
    rows = gates(data, 6)
    spec = {"input": "data/in.jsonl", "output": "data/out.jsonl", "chunk": 1}
    job = (await submit(running.port, GATED, spec)).json()
    await eventually(lambda: running.in_flight == MOST, "it runs")
    assert running.gateway.jobs is not None
    store = running.gateway.jobs.store
    await (store.forget if forgotten else store.cancel)(job["id"])
    await eventually(lambda: not running.in_flight, "it has stopped")
    for row in rows:
        row.touch()
    assert not (data / "out.jsonl").exists()


def told(log: Path) -> str:
    return log.read_text()


async def gateway(fleet: Fleet, data: Path, log: Path) -> tuple[asyncio.subprocess.Process, int]:
    """A gateway in a process of its own, and its port."""
    from qinfer.cli.serve.ports import free_port

    port = free_port()
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "qinfer", "gateway", f"--http-port={port}", "--grpc-port=-1"),
            *(f"--namespace={fleet.namespace}", f"--batch-root=data={data}"),
            env={**os.environ, "QINFER_NATS": fleet.nats},
            stderr=out,
        )

    async def answers() -> bool:
        try:
            return (await ask(port, http.get("/v2/health/ready"))).status == 200
        except OSError:
            return False

    async with asyncio.timeout(PATIENCE):
        while not await answers():
            assert process.returncode is None, told(log)
            await asyncio.sleep(0.02)
    return process, port


async def test_another_gateway_goes_on_after_a_kill(
    nats_url: str, namespace: str, data: Path, tmp_path: Path, served_repository: Path
) -> None:
    models = copy(served_repository, tmp_path / "models", GATED)
    rows = gates(data, 8)
    spec = {"input": "data/in.jsonl", "output": "data/out.jsonl", "chunk": 1}
    for row in rows[:5]:
        row.touch()
    async with fleet(nats_url, namespace, models, jobs=False) as made:
        await made.add_worker()
        first, port = await gateway(made, data, tmp_path / "first.log")
        try:
            answer = await submit(port, GATED, spec)
            while answer.status == 503:  # its jobs begin a moment after it
                answer = await submit(port, GATED, spec)
            assert answer.status == 202, answer
            journal = data / "out.jsonl.progress" / "journal.jsonl"
            await eventually(
                lambda: rows[6].with_name("gate-6.began").exists() or journal.exists(), "it runs"
            )
            await eventually(lambda: rows[5].with_name("gate-5.began").exists(), "it came to a gate")
        finally:
            first.send_signal(signal.SIGKILL)
            await first.wait()
        assert not (data / "out.jsonl").exists()
        for row in rows:
            row.touch()
        second, port = await gateway(made, data, tmp_path / "second.log")
        try:
            job = await ended(port, answer.json())
            assert (job["state"], job["progress"]["done"]) == ("succeeded", 8), job
            found = (data / "out.jsonl").read_text().splitlines()
            assert [json.loads(line) for line in found] == [{"y": str(os.getpid())}] * 8
            assert not journal.parent.exists()
        finally:
            second.kill()
            await second.wait()
