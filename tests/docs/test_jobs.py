"""The page about jobs: its commands are answered as it says, and its tables are those of the code."""

from __future__ import annotations

import json
import re
import shlex
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest_asyncio

from qinfer.jobs import JobOptions, JobRecord, JobState, transitions
from qinfer.naming import ANSWER_LIFETIME
from qinfer_gateway.http.prefer import JOB_HEADERS, LONGEST_WAIT
from qinfer_gateway.jobs import results
from qinfer_gateway.jobs.describe import job_object
from qinfer_gateway.jobs.posting import TIMEOUT
from qinfer_gateway.jobs.signing import signed
from qinfer_gateway.jobs.webhooks import PAUSES
from tests.docs.pages import first_column, read
from tests.docs.test_served import CONFIG, IDENTITY
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import eventually
from tests.jobs.http_client import Client, Told, client
from tests.jobs.receiver import SECRET, receiving, secret_file, secret_line

PAGE = read("docs/jobs.md")
ID = "1a2055a4c0e5f3b1c47d0923a6be5f18"
ANSWER = {"y": [1, 2, 3]}


def marked(name: str) -> str:
    """The block, or table, behind a mark."""
    found = re.search(
        rf"<!-- {name} -->\n(?:```\w+\n(.*?)^```$|((?:\|.*\n)+))", PAGE, re.MULTILINE | re.DOTALL
    )
    assert found, name
    return found[1] or found[2]


@dataclass(frozen=True)
class Curl:
    """A command of the page."""

    method: str = "GET"
    path: str = ""
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def commands(name: str) -> list[Curl]:
    return [_read(line[2:]) for line in marked(name).splitlines() if line.startswith("$ ")]


def _read(line: str) -> Curl:
    program, *words = shlex.split(line)
    assert program == "curl"
    told: dict[str, Any] = {"headers": {}}
    while words:
        word = words.pop(0)
        if word == "-H":
            name, _, value = words.pop(0).partition(": ")
            told["headers"][name] = value
        elif word == "-d":
            told |= {"body": json.loads(words.pop(0)), "method": "POST"}
        elif word == "-X":
            told["method"] = words.pop(0)
        elif word != "-N":
            assert word.startswith("localhost:8000/"), line
            told["path"] = word.removeprefix("localhost:8000")
    return Curl(**told)


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    (tmp_path / "mymodel" / "1").mkdir(parents=True)
    (tmp_path / "mymodel" / "1" / "model.py").write_text(IDENTITY)
    (tmp_path / "mymodel" / "config.pbtxt").write_text(CONFIG)
    options = {"webhook_secret_file": (secret_file(tmp_path),), "webhook_allow": ("127.0.0.1",)}
    async with fleet(nats_url, namespace, tmp_path, **options) as made:
        await made.add_worker()
        await eventually(lambda: made.gateway.jobs and made.gateway.jobs.ready, "jobs")
        yield made


@pytest_asyncio.fixture
async def asks(running: Fleet) -> AsyncIterator[Client]:
    async with client(running.port) as made:
        yield made


async def ask(asks: Client, command: Curl, job_id: str = "", **headers: str) -> Told:
    path = command.path.replace(ID, job_id)
    return await asks.ask(command.method, path, command.body, **{**command.headers, **headers})


def outputs(told: Told) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in told.json["outputs"]}


async def test_the_commands(asks: Client) -> None:
    (command,) = commands("submit")
    submitted = await ask(asks, command)
    assert submitted.status == 202
    job_id = submitted.json["id"]
    (document,) = commands("document")
    assert (await ask(asks, document)).status == 202
    (wait,) = commands("wait")
    assert outputs(await ask(asks, wait)) == ANSWER
    await asks.ended(job_id)
    look, poll, listed = commands("look")
    for command in (look, poll):
        assert (await ask(asks, command, job_id)).json["state"] == "succeeded"
    assert job_id in [job["id"] for job in (await ask(asks, listed)).json["jobs"]]
    (result,) = commands("result")
    assert outputs(await ask(asks, result, job_id)) == ANSWER
    (events,) = commands("events")
    stream = (await ask(asks, events, job_id)).body.decode()
    assert re.match(
        r"retry: 1000\n\nevent: status\ndata: \{\"id\":\"\w{32}\",\"state\":\"succeeded\"", stream
    )
    cancel, retry, forget = commands("change")
    assert (await ask(asks, cancel, job_id)).status == 200
    assert (await ask(asks, retry, job_id)).status == 400  # it has succeeded
    assert (await ask(asks, forget, job_id)).status == 204


async def test_the_webhook(asks: Client) -> None:
    scope: dict[str, Any] = {}
    exec(marked("verify"), scope)
    (command,) = commands("webhook")
    async with receiving() as receiver:
        assert (await ask(asks, command, **{"x-qinfer-job-webhook": receiver.url})).status == 202
        await eventually(lambda: receiver.came, "the webhook")
    assert receiver.came[0]["result"]["outputs"][0]["data"] == [1, 2, 3]
    secret = secret_line().strip()
    body = b'{"a": 1}'
    headers = signed([SECRET], "id", int(time.time()), body)
    assert scope["genuine"](headers, body, secret)
    assert not scope["genuine"](headers, body + b" ", secret)
    assert not scope["genuine"](headers, body, f"whsec_{b64encode(bytes(32)).decode()}")
    assert not scope["genuine"](signed([SECRET], "id", int(time.time()) - 1000, body), body, secret)


def test_tables_are_those_of_the_code() -> None:
    record = JobRecord(id=ID, state=JobState.QUEUED, model="m")
    named = {name for cell in first_column(marked("fields")) for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(job_object(record))
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|", marked("options"), re.MULTILINE)
    assert {header.encode() for header, _ in rows} == JOB_HEADERS
    assert {option for _, option in rows} == set(JobOptions.__struct_fields__)
    assert f"| {JobOptions().max_attempts} | attempts" in marked("options")


def test_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"at most {LONGEST_WAIT:g} seconds" in text
    assert PAUSES == (5, 30, 120, 600, 1800, 3600, 7200, 14400, 21600, 28800)
    assert "after 5 and 30 seconds, 2, 10 and 30 minutes, 1, 2, 4, 6 and 8 hours" in text
    assert (TIMEOUT, results._SMALL) == (10, 64 * 1024)
    assert ANSWER_LIFETIME == 600
    assert sum(PAUSES) < transitions.WEBHOOK_WINDOW
