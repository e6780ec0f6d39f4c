"""`qinfer jobs`, over a real broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from qinfer.bus import connect
from qinfer.cli.app import app
from qinfer.errors import ModelFailed
from qinfer.jobs import InferWork, JobOptions, JobRecord, JobStore, Submission, transitions
from qinfer.message import BatchInfo, Request, Response, ResponseFrame, Tensor, encode
from tests.helpers.system import _forget as forget

Run = Callable[..., Any]


@pytest_asyncio.fixture
async def store(nats_url: str, namespace: str) -> AsyncIterator[JobStore]:
    bus = connect(nats_url, namespace=namespace)
    await bus.start()
    store = JobStore(bus)
    await store.declare()
    yield store
    await bus.close()
    await forget(nats_url, namespace)


@pytest.fixture
def run(nats_url: str, namespace: str) -> Run:
    async def call(*arguments: str) -> Result:
        command = ["jobs", *arguments, "--nats", nats_url, "--namespace", namespace]
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, command))

    return call


async def submit(store: JobStore, **told: Any) -> JobRecord:
    return await store.submit(Submission(**{"model": "m", "work": InferWork(Request(0, "", [])), **told}))


async def succeed(store: JobStore, record: JobRecord) -> None:
    tensors = [
        Tensor.from_numpy("y", np.array([[1.5, 2.5]], np.float32)),
        Tensor.from_numpy("text", np.array([b"a\x1bb"], dtype=object)),
    ]
    frame = encode(ResponseFrame(1, "w", "3", BatchInfo(), [Response(1, 1, None, tensors)]))
    ref = store.data.place(record.id, "out", len(frame))
    await store.data.put(ref, frame, lifetime=60)
    await store.change(record.id, lambda job: transitions.begun(job, store.now_us()))
    await store.change(record.id, lambda job: transitions.succeeded(job, ref, store.now_us()))


async def test_lists(store: JobStore, run: Run) -> None:
    assert "no jobs" in (await run("list")).output
    first = await submit(store, owner="me")
    second = await submit(store, owner="them\x1b[31m")
    await store.cancel(second.id)
    shown = await run("list")
    assert shown.exit_code == 0
    assert shown.output.index(second.id) < shown.output.index(first.id)
    assert "\x1b[31m" not in shown.output
    assert "cancelled" in shown.output
    page = await run("list", "--limit", "1")
    assert f"--after {second.id}" in page.output
    assert first.id in (await run("list", "--after", second.id)).output
    told = json.loads((await run("list", "--state", "queued", "--owner", "me", "--json")).output)
    assert [job["id"] for job in told["jobs"]] == [first.id]


async def test_a_list_fits_a_terminal(store: JobStore, run: Run) -> None:
    record = await submit(store, model="fraud-score")
    (line,) = (await run("list")).output.splitlines()[1:]
    assert line.split()[:3] == [record.id, "fraud-score", "queued"]


async def test_shows_one(store: JobStore, run: Run) -> None:
    options = JobOptions(webhook="http://h/x", spare=True)
    record = await submit(store, version="2", owner="me", options=options)
    shown = (await run("show", record.id)).output
    for told in ("m version 2", "queued", "me", "spare capacity", "0 of 3", "http://h/x (pending)"):
        assert told in shown
    assert json.loads((await run("show", record.id, "--json")).output)["id"] == record.id
    missing = await run("show", "0" * 32)
    assert (missing.exit_code, "there is no job" in missing.output) == (1, True)


async def test_cancels_and_retries(store: JobStore, run: Run) -> None:
    records = [await submit(store) for _ in range(2)]
    done = await run("cancel", records[0].id, "0" * 32, records[1].id)
    assert done.exit_code == 1
    assert done.output.count(": cancelled") == 2
    assert f"{'0' * 32}: there is no job" in done.output
    again = await run("retry", records[0].id, "--json")
    assert again.exit_code == 0
    assert json.loads(again.output)[0]["state"] == "queued"
    await succeed(store, records[0])
    refused = json.loads((await run("retry", records[0].id, "--json")).output)
    assert refused[0]["reason"] == "invalid_request"


async def test_results(store: JobStore, run: Run, tmp_path: Path) -> None:
    record = await submit(store)
    early = await run("result", record.id, "--wait", "0")
    assert (early.exit_code, "is queued after 0 s" in early.output) == (1, True)
    await succeed(store, record)
    shown = await run("result", record.id)
    assert "y FP32 [1, 2]\n[[1.5, 2.5]]" in shown.output
    assert "\x1b" not in shown.output
    told = json.loads((await run("result", record.id, "--json")).output)
    assert told[0] == {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [[1.5, 2.5]]}
    file = tmp_path / "y.npy"
    saved = await run("result", record.id, "--output", f"y=@{file}")
    assert saved.exit_code == 0
    assert np.load(file).tolist() == [[1.5, 2.5]]
    assert "FP32" not in saved.output
    assert (await run("result", record.id, "--output", f"z=@{file}")).exit_code == 2
    assert (await run("result", record.id, "--output", "y=file")).exit_code == 2
    failing = await submit(store)
    error = ModelFailed("no luck")
    await store.change(failing.id, lambda job: transitions.failed(job, error, store.now_us()))
    failed = await run("result", failing.id)
    assert (failed.exit_code, "no luck" in failed.output) == (1, True)
    told = json.loads((await run("show", failing.id, "--json")).output)
    assert told["error"] == {"reason": "model_failed", "message": "no luck"}
