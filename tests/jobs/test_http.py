"""Jobs over HTTP, with a real gateway, broker and worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from qinfer.jobs.stored import StoredJob
from qinfer.jobs.submission import Submitter
from qinfer_gateway.http.exchange import Exchange
from qinfer_gateway.jobs.stats import JobsCollector
from tests.helpers.http import connect, floats, infer, tensor
from tests.helpers.served_models import GATED, IDENTITY, PICKY, RAISES, SAYS_ALL, VERSIONS
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, eventually
from tests.jobs.http_client import Client, client

FP32 = IDENTITY["FP32"]
KEYS = {
    "id", "state", "model_name", "model_version", "created_at", "started_at", "ended_at", "attempts",
    "priority", "queue_position", "progress", "error", "webhook_state", "status_url", "result_url",
    "cancel_url", "events_url",
}  # fmt: skip


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, served_repository: Path) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, served_repository) as made:
        assert made.gateway.jobs is not None
        await eventually(lambda: made.gateway.jobs and made.gateway.jobs.ready, "jobs can be taken in")
        yield made


@pytest_asyncio.fixture
async def served(running: Fleet) -> Fleet:
    await running.add_worker(FP32, PICKY, GATED, SAYS_ALL, VERSIONS)
    return running


@pytest_asyncio.fixture
async def asks(running: Fleet) -> AsyncIterator[Client]:
    async with client(running.port) as made:
        yield made


def gate(path: Path) -> dict[str, Any]:
    return {"inputs": [tensor([str(path)], "BYTES", [1, 1])]}


async def test_a_request_becomes_a_job(served: Fleet, asks: Client) -> None:
    answer = await asks.infer(FP32, {**floats(1, 2), "id": "mine"}, prefer="respond-async")
    assert answer.status == 202
    assert set(answer.json) == KEYS
    job_id = answer.json["id"]
    assert answer.headers["location"] == f"/v2/jobs/{job_id}" == answer.json["status_url"]
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.json["model_name"] == FP32
    job = await asks.ended(job_id)
    assert (job["state"], job["attempts"], job["error"]) == ("succeeded", 1, None)
    assert job["created_at"] <= job["started_at"] <= job["ended_at"]
    assert job["created_at"].endswith("Z")
    result = await asks.ask("GET", job["result_url"])
    synchronous = await asks.infer(FP32, {**floats(1, 2), "id": "mine"})
    assert result.status == 200
    assert result.json == synchronous.json


async def test_who_leaves_in_the_middle_leaves_no_half_of_a_job(
    served: Fleet, asks: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, left = asyncio.Event(), asyncio.Event()
    enqueue = Submitter.enqueue

    async def enqueue_late(self: Submitter, job: StoredJob) -> None:
        stored.set()
        await left.wait()
        await enqueue(self, job)

    disconnects = []
    on_disconnect = Exchange.on_disconnect

    def note(self: Exchange) -> None:
        on_disconnect(self)
        disconnects.append(self)

    monkeypatch.setattr(Submitter, "enqueue", enqueue_late)
    monkeypatch.setattr(Exchange, "on_disconnect", note)
    async with connect(served.port) as connection:
        connection.send(infer(FP32, floats(1), "prefer: respond-async"))
        async with asyncio.timeout(PATIENCE):
            await stored.wait()
    await eventually(lambda: disconnects, "the gateway knows that they have gone")
    left.set()
    (job,) = (await asks.ask("GET", "/v2/jobs")).json["jobs"]
    assert (await asks.ended(job["id"]))["state"] == "succeeded"


async def test_waiting_for_the_result_in_the_call(served: Fleet, asks: Client, tmp_path: Path) -> None:
    answer = await asks.infer(FP32, floats(3), prefer="wait=20")
    assert answer.status == 200
    assert answer.json["outputs"][0]["data"] == [3]
    gated = await asks.infer(GATED, gate(tmp_path / "gate"), prefer="wait=0")
    assert gated.status == 202
    assert gated.headers["preference-applied"] == "wait=0"
    assert gated.json["state"] in ("queued", "running")
    assert (await asks.ask("GET", gated.json["result_url"])).status == 202
    (tmp_path / "gate").touch()
    assert (await asks.ended(gated.json["id"]))["state"] == "succeeded"
    failing = await asks.infer(PICKY, floats(RAISES), prefer="respond-async; x=1, wait=20")
    assert (failing.status, failing.reason) == (500, "model_failed")


async def test_the_same_key_is_the_same_job(served: Fleet, asks: Client) -> None:
    told = {"idempotency-key": "once"}
    first = await asks.submit(FP32, floats(1), **told)
    await asks.ended(first)
    again = await asks.infer(FP32, floats(1), prefer="respond-async", **told)
    assert (again.status, again.json["id"], again.json["state"]) == (202, first, "succeeded")
    waited = await asks.infer(FP32, floats(1), prefer="wait=1", **told)
    assert (waited.status, waited.json["outputs"][0]["data"]) == (200, [1])
    other = await asks.infer(FP32, floats(2), prefer="respond-async", **told)
    assert (other.status, other.reason) == (422, "key_reused")


async def test_preferences_that_are_others(served: Fleet, asks: Client) -> None:
    for prefer in ("return=minimal", "wait=soon", "", ",,", 'respond="async', "handling=lenient"):
        answer = await asks.infer(FP32, floats(1), prefer=prefer)
        assert answer.status == 200, prefer
        assert "preference-applied" not in answer.headers


async def test_binary_results_as_of_the_call(served: Fleet, asks: Client) -> None:
    body = {**floats(1, 2), "parameters": {"binary_data_output": True}}
    job_id = await asks.submit(FP32, body)
    await asks.ended(job_id)
    result = await asks.ask("GET", f"/v2/jobs/{job_id}/result")
    synchronous = await asks.infer(FP32, body)
    header = "inference-header-content-length"
    assert result.headers[header] == synchronous.headers[header]
    assert result.body == synchronous.body
    plain = await asks.submit(FP32, floats(1, 2))
    await asks.ended(plain)
    raw = await asks.ask("GET", f"/v2/jobs/{plain}/result", accept="application/octet-stream")
    assert raw.body.endswith(b"\x00\x00\x80?\x00\x00\x00@")
    assert raw.headers["content-type"] == "application/octet-stream"


async def test_large_jobs(served: Fleet, asks: Client) -> None:
    values = [float(number) for number in range(300_000)]
    job_id = await asks.submit(FP32, floats(*values))
    assert (await asks.ended(job_id))["state"] == "succeeded"
    result = await asks.ask("GET", f"/v2/jobs/{job_id}/result")
    assert result.json["outputs"][0]["data"] == values


async def test_submitting_as_a_document(served: Fleet, asks: Client) -> None:
    body = {
        "model": VERSIONS,
        "model_version": "2",
        "request": floats(4),
        "priority": 1,
        "options": {"keep": 60, "max_attempts": 1},
        "idempotency_key": "once",
    }
    answer = await asks.ask("POST", "/v2/jobs", body)
    assert answer.status == 202
    assert (answer.json["model_version"], answer.json["priority"]) == ("2", 1)
    again = await asks.ask("POST", "/v2/jobs", body)
    assert again.json["id"] == answer.json["id"]
    other = await asks.ask("POST", "/v2/jobs", {**body, "request": floats(5)})
    assert (other.status, other.reason) == (422, "key_reused")
    await asks.ended(answer.json["id"])
    result = await asks.ask("GET", answer.json["result_url"])
    assert result.json["outputs"][0]["data"] == [8]


BAD_BODIES = [
    ({}, 400, "missing required field `model`"),
    ([], 400, "Expected `object`"),
    ({"model": FP32}, 400, "either 'request' or 'batch'"),
    ({"model": FP32, "request": {}}, 400, "`inputs`"),
    ({"model": FP32, "request": {"inputs": []}}, 400, "x"),
    ({"model": FP32, "request": floats(1), "options": {"keep": -1}}, 400, "keep"),
    ({"model": FP32, "request": floats(1), "options": {"x": 1}}, 400, "unknown field `x`"),
    ({"model": FP32, "request": floats(1), "priority": -1}, 400, "`$.priority`"),
    ({"model": FP32, "request": floats(1), "idempotency_key": "é"}, 400, "Idempotency-Key"),
    (
        {"model": FP32, "request": floats(1), "options": {"webhook": "http://h/"}},
        501,
        "--webhook-secret-file",
    ),
    ({"model": "nobody", "request": floats(1)}, 404, "nobody"),
    ({"model": FP32, "model_version": "7", "request": floats(1)}, 404, "7"),
]
BAD_HEADERS = [
    ("x-qinfer-job-keep", "-1", "expected seconds"),
    ("x-qinfer-job-keep", "99999999", "expected 0 to 604800 seconds"),
    ("x-qinfer-job-max-attempts", "1.5", "expected a whole number"),
    ("x-qinfer-job-spare", "maybe", "expected true or false"),
    ("x-qinfer-job-webhook", "gopher://h", "expected http"),
    ("idempotency-key", 300 * "x", "Idempotency-Key"),
]


async def test_submissions_that_cannot_be(served: Fleet, asks: Client) -> None:
    for body, status, told in BAD_BODIES:
        answer = await asks.ask("POST", "/v2/jobs", body)
        assert answer.status == status, (body, answer)
        assert told in answer.json["error"], body
    for header, value, told in BAD_HEADERS:
        answer = await asks.infer(FP32, floats(1), **{"prefer": "respond-async", header: value})
        assert (answer.status, answer.reason) == (400, "invalid_request"), header
        assert told in answer.json["error"], header
    wrong = await asks.infer(FP32, {"inputs": []}, prefer="respond-async")
    assert (wrong.status, wrong.reason) == (400, "invalid_request")
    assert (await asks.infer("nobody", floats(1), prefer="respond-async")).status == 404
    assert (await asks.ask("GET", "/v2/jobs")).json == {"jobs": [], "next": ""}


async def test_ids_of_nothing(running: Fleet, asks: Client) -> None:
    for job_id, (method, path) in product(
        ("x", "0" * 32, "a%20b", "%FF", "*"),
        (
            ("GET", ""), ("GET", "?wait=1"), ("GET", "/result"), ("GET", "/events"), ("DELETE", ""),
            ("POST", "/cancel"), ("POST", "/retry"),
        ),
    ):  # fmt: skip
        answer = await asks.ask(method, f"/v2/jobs/{job_id}{path}")
        assert (answer.status, answer.reason) == (404, "job_not_found"), (job_id, method, path)


async def test_methods_and_queries_that_are_not(running: Fleet, asks: Client) -> None:
    for method, path, allowed in (
        ("PUT", "/v2/jobs", {"GET", "HEAD", "POST"}),
        ("POST", f"/v2/jobs/{'0' * 32}", {"GET", "HEAD", "DELETE"}),
        ("GET", f"/v2/jobs/{'0' * 32}/cancel", {"POST"}),
    ):
        answer = await asks.ask(method, path)
        assert (answer.status, answer.reason) == (405, "method_not_allowed")
        assert set(answer.headers["allow"].split(", ")) == allowed
    for query in ("state=done", "limit=0", "limit=99999", "limit=x"):
        assert (await asks.ask("GET", f"/v2/jobs?{query}")).status == 400, query
    assert (await asks.ask("GET", f"/v2/jobs/{'0' * 32}?wait=-1")).status == 400


async def test_head(served: Fleet, asks: Client) -> None:
    job_id = await asks.submit(FP32, floats(1))
    await asks.ended(job_id)
    for path in ("", "/result", "/events"):
        answer = await asks.ask("HEAD", f"/v2/jobs/{job_id}{path}")
        assert (answer.status, answer.body) == (200, b"")


async def test_lists(served: Fleet, asks: Client) -> None:
    ids = [await asks.submit(FP32, floats(number)) for number in range(3)]
    failed = await asks.submit(PICKY, floats(RAISES))
    for job_id in (*ids, failed):
        await asks.ended(job_id)
    page = (await asks.ask("GET", "/v2/jobs?limit=2")).json
    rest = (await asks.ask("GET", f"/v2/jobs?after={page['next']}")).json
    assert {job["id"] for job in page["jobs"] + rest["jobs"]} == {*ids, failed}
    assert rest["next"] == ""
    (only,) = (await asks.ask("GET", "/v2/jobs?state=failed")).json["jobs"]
    assert only["id"] == failed
    assert only["error"]["reason"] == "model_failed"
    chosen = (await asks.ask("GET", f"/v2/jobs?model={FP32}&state=succeeded")).json["jobs"]
    assert {job["id"] for job in chosen} == set(ids)


async def test_events(served: Fleet, asks: Client, tmp_path: Path) -> None:
    job_id = await asks.submit(GATED, gate(tmp_path / "gate"))
    states: list[str] = []
    async with asks.session.get(f"{asks.root}/v2/jobs/{job_id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        event = ""
        async for raw in stream.content:
            line = raw.decode().rstrip("\n")
            if line.startswith("event:"):
                event = line.removeprefix("event: ")
            if line.startswith("data:"):
                assert event == "status"
                job = json.loads(line.removeprefix("data: "))
                assert set(job) == KEYS
                states.append(job["state"])
                if states[-1] == "running":
                    (tmp_path / "gate").touch()
    assert states[-2:] == ["running", "succeeded"]
    assert states == sorted(states, key=["queued", "running", "succeeded"].index)


async def test_cancelling_what_waits(running: Fleet, asks: Client, tmp_path: Path) -> None:
    await running.add_worker(GATED)
    blocking = await asks.submit(GATED, gate(tmp_path / "gate"))
    began = tmp_path / "gate.began"
    await eventually(began.exists, "the first job runs")
    cancelled = await asks.ask("POST", f"/v2/jobs/{blocking}/cancel")
    assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
    assert (await asks.ask("GET", f"/v2/jobs/{blocking}/result")).reason == "job_cancelled"
    assert (await asks.ask("GET", f"/v2/jobs/{blocking}/result")).status == 410
    (tmp_path / "gate").touch()
    await eventually(lambda: not running.in_flight, "nothing is asked any more")
    assert (await asks.ended(blocking))["state"] == "cancelled"


async def test_cancelled_in_the_queue_never_runs(running: Fleet, asks: Client, tmp_path: Path) -> None:
    worker = await running.add_worker(GATED)
    await worker.drain()
    await running.unknown(worker.id)
    waiting = await asks.submit(GATED, gate(tmp_path / "gate"))
    assert (await asks.ask("POST", f"/v2/jobs/{waiting}/cancel")).json["state"] == "cancelled"
    other = await asks.submit(GATED, {"inputs": [tensor([""], "BYTES", [1, 1])]})
    await running.add_worker(GATED)
    assert (await asks.ended(other))["state"] == "succeeded"
    assert not (tmp_path / "gate.began").exists()


async def test_retrying(served: Fleet, asks: Client) -> None:
    failed = await asks.submit(PICKY, floats(RAISES))
    assert (await asks.ended(failed))["state"] == "failed"
    result = await asks.ask("GET", f"/v2/jobs/{failed}/result")
    assert (result.status, result.reason) == (500, "model_failed")
    assert "thirteen" in result.json["error"]
    again = await asks.ask("POST", f"/v2/jobs/{failed}/retry")
    assert (again.status, again.json["state"], again.json["error"]) == (202, "queued", None)
    assert (await asks.ended(failed))["state"] == "failed"
    good = await asks.submit(FP32, floats(1))
    await asks.ended(good)
    answer = await asks.ask("POST", f"/v2/jobs/{good}/retry")
    assert answer.status == 400


async def test_forgetting(served: Fleet, asks: Client) -> None:
    job_id = await asks.submit(FP32, floats(1))
    await asks.ended(job_id)
    answer = await asks.ask("DELETE", f"/v2/jobs/{job_id}")
    assert (answer.status, answer.body) == (204, b"")
    assert (await asks.ask("GET", f"/v2/jobs/{job_id}")).status == 404
    assert (await asks.ask("DELETE", f"/v2/jobs/{job_id}")).status == 404


async def test_a_job_waits_for_a_worker(running: Fleet, asks: Client) -> None:
    worker = await running.add_worker(FP32)
    await worker.drain()
    await running.unknown(worker.id)
    assert (await asks.infer(FP32, floats(1))).status == 503
    job_id = await asks.submit(FP32, floats(1))
    assert (await asks.ask("GET", f"/v2/jobs/{job_id}")).json["state"] == "queued"
    await running.add_worker(FP32)
    assert (await asks.ended(job_id))["state"] == "succeeded"


async def test_a_job_that_waits_for_too_long_fails(running: Fleet, asks: Client) -> None:
    worker = await running.add_worker(FP32)
    await worker.drain()
    await running.unknown(worker.id)
    job_id = await asks.submit(FP32, floats(1), x_qinfer_job_max_queue_time="0.2")
    job = await asks.ended(job_id)
    assert (job["state"], job["error"]["reason"], job["attempts"]) == ("failed", "deadline_exceeded", 0)
    assert (await asks.ask("GET", f"/v2/jobs/{job_id}/result")).status == 504


async def test_an_attempt_that_takes_too_long_is_made_again(
    served: Fleet, asks: Client, tmp_path: Path
) -> None:
    job_id = await asks.submit(
        GATED,
        gate(tmp_path / "gate"),
        x_qinfer_job_timeout="0.3",
        x_qinfer_job_max_attempts="2",
    )
    job = await asks.ended(job_id)
    assert (job["state"], job["error"]["reason"], job["attempts"]) == ("failed", "deadline_exceeded", 2)
    (tmp_path / "gate").touch()


async def test_what_the_model_is_told(served: Fleet, asks: Client) -> None:
    body = {
        "id": "caller's own",
        "parameters": {"p": 7, "priority": 1},
        "inputs": [tensor([1], "INT32", [1, 1])],
    }
    job_id = await asks.submit(SAYS_ALL, body)
    await asks.ended(job_id)
    result = await asks.ask("GET", f"/v2/jobs/{job_id}/result")
    assert result.json["id"] == "caller's own"
    assert result.json["parameters"] == {"said": True, "count": 3}
    told = json.loads(result.json["outputs"][0]["data"][0])
    assert (told["id"], told["parameters"], told["priority"]) == ("caller's own", {"p": 7}, 1)


async def test_who_waits_is_let_go_when_the_gateway_leaves(
    served: Fleet, asks: Client, tmp_path: Path
) -> None:
    job_id = await asks.submit(GATED, gate(tmp_path / "gate"))
    waiting = asyncio.create_task(asks.ask("GET", f"/v2/jobs/{job_id}?wait={10 * PATIENCE:g}"))
    stream = await asks.session.get(f"{asks.root}/v2/jobs/{job_id}/events")
    await stream.content.readline()
    await eventually((tmp_path / "gate.began").exists, "the job runs")
    assert served.gateway.jobs is not None
    served.gateway.jobs.leave()
    assert (await waiting).json["state"] == "running"
    async with asyncio.timeout(PATIENCE):
        await stream.read()
    (tmp_path / "gate").touch()


async def test_too_many_jobs(nats_url: str, namespace: str, served_repository: Path, tmp_path: Path) -> None:
    limits = {"max_jobs": 1, "max_job_bytes": 100_000}
    async with (
        fleet(nats_url, namespace, served_repository, **limits) as running,
        client(running.port) as asks,
    ):
        await running.add_worker(GATED, FP32)
        await eventually(lambda: running.gateway.jobs and running.gateway.jobs.ready, "jobs")
        large = await asks.infer(FP32, floats(*range(20_000)), prefer="respond-async")
        assert (large.status, large.reason) == (429, "queue_full")
        assert "--max-job-bytes" in large.json["error"]
        await asks.submit(GATED, gate(tmp_path / "gate"))
        full = await asks.infer(GATED, gate(tmp_path / "gate"), prefer="respond-async")
        assert (full.status, full.reason) == (429, "queue_full")
        assert "--max-jobs" in full.json["error"]
        assert int(full.headers["retry-after"]) >= 1
        (tmp_path / "gate").touch()


async def test_keys(nats_url: str, namespace: str, served_repository: Path, tmp_path: Path) -> None:
    """Jobs are their owners' alone; models, priorities and rates are those of the key."""
    secrets = {name: f"qinfer_{name}" for name in ("mine", "theirs", "manager")}
    file = tmp_path / "keys.yaml"
    digests = {name: sha256(secret.encode()).hexdigest() for name, secret in secrets.items()}
    file.write_text(
        json.dumps(
            {
                "keys": [
                    {
                        "name": "mine",
                        "sha256": digests["mine"],
                        "models": [SAYS_ALL],
                        "priority_ceiling": 3,
                    },
                    {"name": "theirs", "sha256": digests["theirs"], "models": ["*"]},
                    {"name": "manager", "sha256": digests["manager"], "permissions": ["management"]},
                ]
            }
        )
    )
    async with (
        fleet(nats_url, namespace, served_repository, keys_file=file) as running,
        client(running.port) as asks,
    ):
        await running.add_worker(FP32, SAYS_ALL)
        await eventually(lambda: running.gateway.jobs and running.gateway.jobs.ready, "jobs")
        mine, theirs, manager = ({"x-api-key": secret} for secret in secrets.values())
        body = {"parameters": {"priority": 1}, "inputs": [tensor([1], "INT32", [1, 1])]}
        job_id = await asks.submit(SAYS_ALL, body, **mine)
        job = (await asks.ask("GET", f"/v2/jobs/{job_id}?wait={PATIENCE:g}", **mine)).json
        assert (job["state"], job["priority"]) == ("succeeded", 3)
        for method, path in (
            ("GET", ""),
            ("GET", "/result"),
            ("GET", "/events"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            answer = await asks.ask(method, f"/v2/jobs/{job_id}{path}", **theirs)
            assert (answer.status, answer.reason) == (404, "job_not_found"), path
        assert (await asks.ask("GET", "/v2/jobs", **theirs)).json["jobs"] == []
        assert [job["id"] for job in (await asks.ask("GET", "/v2/jobs", **mine)).json["jobs"]] == [job_id]
        document = {"model": SAYS_ALL, "request": body, "priority": 2}
        assert (await asks.ask("POST", "/v2/jobs", document, **mine)).json["priority"] == 3
        document = {"model": FP32, "request": floats(1)}
        assert (await asks.ask("POST", "/v2/jobs", document, **mine)).reason == "forbidden"
        assert (await asks.infer(FP32, floats(1), prefer="respond-async", **mine)).reason == "forbidden"
        assert (await asks.ask("GET", "/v2/jobs", **manager)).reason == "forbidden"
        assert (await asks.ask("GET", "/v2/jobs")).status == 401


async def test_metrics(nats_url: str, namespace: str, served_repository: Path) -> None:
    async with fleet(nats_url, namespace, served_repository) as running, client(running.port) as asks:
        await running.add_worker(FP32, PICKY)
        await eventually(lambda: running.gateway.jobs and running.gateway.jobs.ready, "jobs")
        assert running.gateway.jobs is not None
        collector = JobsCollector(running.gateway.jobs._stats)
        for model, body in ((FP32, floats(1)), (PICKY, floats(RAISES))):
            await asks.ended(await asks.submit(model, body))
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in collector.collect()
            for sample in family.samples
        }
        assert samples["qinfer_jobs_submitted_total", FP32] == 1
        assert samples["qinfer_job_attempts_total", PICKY] == 1
        assert samples["qinfer_jobs_ended_total", FP32, "succeeded"] == 1
        assert samples["qinfer_jobs_ended_total", "failed", PICKY] == 1
        assert samples["qinfer_jobs_running", FP32] == 0
        assert samples["qinfer_webhook_attempts_total", "delivered"] == 0


async def test_without_jobs(nats_url: str, namespace: str, served_repository: Path) -> None:
    async with fleet(nats_url, namespace, served_repository, jobs=False) as running:
        await running.add_worker(FP32)
        async with client(running.port) as asks:
            answer = await asks.ask("GET", "/v2/jobs")
            assert (answer.status, answer.reason) == (501, "unsupported")
            assert (await asks.infer(FP32, floats(1), prefer="respond-async")).status == 200
