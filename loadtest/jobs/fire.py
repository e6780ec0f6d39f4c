"""Submits jobs, kills processes meanwhile, and judges what came of it."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import tempfile
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from loadtest.jobs.served import HOST, MODEL, Served
from qinfer.errors import DeadlineExceeded

ROLES = ("gateway", "worker", "broker")

_SUBMITTERS = 32
_TRIES = 200
_PAUSE = 0.2
_PAGE = 1000
_LOOK = 0.02
_ENDED = ("succeeded", "failed", "cancelled")
_SAMPLE = 200  # results that are looked at


@dataclass(slots=True)
class Report:
    """What came of it.

    Attributes:
        jobs: that were accepted.
        states: of them in the end.
        wrong: results that are not what they should be, of those looked at.
        looked_at: results.
        untold: jobs whose webhook never came.
        told_again: webhooks that came more than once.
        invalid: webhooks with a bad signature.
        kills: processes killed, by role.
        refused: submissions that had to be repeated, by what they met.
        seconds: from the first submission to the last webhook.
    """

    jobs: int = 0
    states: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    looked_at: int = 0
    untold: int = 0
    told_again: int = 0
    invalid: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def well(self) -> bool:
        """Whether all accepted jobs succeeded and were told of."""
        return self.states == {"succeeded": self.jobs} and not (self.wrong or self.untold or self.invalid)


class Receiver:
    """Takes webhooks.

    Args:
        secret: they are signed with.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.came: Counter[str] = Counter()
        self.invalid = 0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        content = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + body
        expected = hmac.digest(self._secret, content, "sha256")
        given = [b64decode(each.removeprefix("v1,")) for each in request.headers["webhook-signature"].split()]
        if not any(hmac.compare_digest(expected, each) for each in given):
            self.invalid += 1
        self.came[request.headers["webhook-id"].partition(".")[0]] += 1
        return web.Response()


@asynccontextmanager
async def receiving(receiver: Receiver) -> AsyncIterator[str]:
    """The URL of a receiver of webhooks."""
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        yield f"http://{HOST}:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()


class Fire:
    """One run.

    Args:
        jobs: how many.
        rounds: how often each role is killed.
        timeout: seconds until it is given up.
    """

    def __init__(self, jobs: int, *, rounds: int, timeout: float) -> None:
        self._jobs = jobs
        self._kills = [ROLES[number % len(ROLES)] for number in range(rounds * len(ROLES))]
        self._timeout = timeout
        self._secret = secrets.token_bytes(32)
        self._receiver = Receiver(self._secret)
        self._accepted: dict[str, float] = {}
        self.report = Report()

    async def run(self) -> Report:
        """Do it.

        Raises:
            Unavailable: the system did not start.
            DeadlineExceeded: it is not over in time.
        """
        with tempfile.TemporaryDirectory(prefix="qinfer-jobs-") as name:
            folder = Path(name)
            secret_file = folder / "secret"
            secret_file.write_text(f"whsec_{b64encode(self._secret).decode()}\n")
            async with (
                receiving(self._receiver) as url,
                Served(folder, secret_file) as served,
                aiohttp.ClientSession(
                    f"http://{HOST}:{served.port}", timeout=aiohttp.ClientTimeout(total=30)
                ) as session,
            ):
                began = time.monotonic()
                try:
                    async with asyncio.timeout(self._timeout):
                        await self._under_fire(session, served, url)
                        self.report.seconds = time.monotonic() - began
                        await self._judge(session)
                except TimeoutError:
                    raise DeadlineExceeded(
                        f"after {self._timeout:.0f} s {len(self._receiver.came)} of {len(self._accepted)} "
                        "jobs were told of"
                    ) from None
        return self.report

    async def _under_fire(self, session: aiohttp.ClientSession, served: Served, url: str) -> None:
        numbers = iter(range(self._jobs))
        async with asyncio.TaskGroup() as group:
            killing = group.create_task(self._kill(served))
            submitters = [group.create_task(self._submit(session, numbers, url)) for _ in range(_SUBMITTERS)]
            await asyncio.gather(*submitters)
            await _until(lambda: len(self._receiver.came) >= len(self._accepted))
            await killing

    async def _kill(self, served: Served) -> None:
        """Kill one process after the other, at even steps of the way."""
        for number, role in enumerate(self._kills, 1):
            share = number / (len(self._kills) + 1)
            await _until(lambda share=share: len(self._receiver.came) >= share * self._jobs)
            await _until(lambda role=role: served.kill(role))
            self.report.kills[role] += 1

    async def _submit(self, session: aiohttp.ClientSession, numbers: Any, url: str) -> None:
        for number in numbers:
            value = float(number)
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}
            headers = {
                "prefer": "respond-async",
                "idempotency-key": f"job {number}",
                "x-qinfer-job-webhook": url,
                "x-qinfer-job-max-attempts": "20",
            }
            job_id = await self._accept(session, {"inputs": [tensor]}, headers)
            self._accepted[job_id] = value

    async def _accept(self, session: aiohttp.ClientSession, body: Any, headers: dict[str, str]) -> str:
        for _ in range(_TRIES):
            try:
                async with session.post(f"/v2/models/{MODEL}/infer", json=body, headers=headers) as answer:
                    told = await answer.json()
                    if answer.status == web.HTTPAccepted.status_code:
                        return str(told["id"])
                    self.report.refused[answer.headers.get("x-qinfer-reason", str(answer.status))] += 1
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self.report.refused[type(error).__name__] += 1
            await asyncio.sleep(_PAUSE)
        raise DeadlineExceeded(f"a job was not accepted within {_TRIES} tries")

    async def _judge(self, session: aiohttp.ClientSession) -> None:
        report = self.report
        report.jobs = len(self._accepted)
        states = await self._states(session)
        report.states = Counter(states.get(job_id, "forgotten") for job_id in self._accepted)
        for job_id, value in list(self._accepted.items())[:: max(1, report.jobs // _SAMPLE)]:
            async with session.get(f"/v2/jobs/{job_id}/result") as answer:
                told = await answer.json()
                report.looked_at += 1
                report.wrong += told.get("outputs", [{}])[0].get("data") != [2 * value]
        came = self._receiver.came
        report.untold = sum(1 for job_id in self._accepted if not came[job_id])
        report.told_again = sum(1 for count in came.values() if count > 1)
        report.invalid = self._receiver.invalid

    async def _states(self, session: aiohttp.ClientSession) -> dict[str, str]:
        """State of each job, from the pages of the list."""
        states: dict[str, str] = {}
        after = ""
        while True:
            query = {"limit": str(_PAGE), "after": after} if after else {"limit": str(_PAGE)}
            async with session.get("/v2/jobs", params=query) as answer:
                page = await answer.json()
            states |= {job["id"]: job["state"] for job in page["jobs"]}
            after = page["next"]
            if not after:
                return states


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (other processes are waited for)
        await asyncio.sleep(_LOOK)


def rows(report: Report) -> Sequence[tuple[str, str]]:
    """A report as people read it."""
    return (
        ("jobs accepted", str(report.jobs)),
        *((f"  {state}", str(count)) for state, count in sorted(report.states.items())),
        ("results looked at, wrong", f"{report.looked_at}, {report.wrong}"),
        ("webhooks that never came", str(report.untold)),
        ("webhooks that came again", str(report.told_again)),
        ("webhooks with a bad signature", str(report.invalid)),
        (
            "killed with SIGKILL",
            ", ".join(f"{count} {role}" for role, count in report.kills.items()) or "nothing",
        ),
        (
            "submissions repeated",
            ", ".join(f"{count} {what}" for what, count in report.refused.items()) or "none",
        ),
        ("seconds", f"{report.seconds:.1f}"),
        ("jobs a second", f"{report.jobs / report.seconds:.0f}" if report.seconds else "-"),
    )
