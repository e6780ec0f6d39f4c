"""A client of the routes of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.helpers.waiting import PATIENCE


@dataclass(frozen=True)
class Told:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    json: Any

    @property
    def reason(self) -> str:
        return self.headers.get("x-qinfer-reason", "")


class Client:
    """Asks one gateway."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self.session = session
        self.root = f"http://127.0.0.1:{port}"

    async def ask(self, method: str, path: str, json: Any = None, **headers: str) -> Told:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, self.root + path, json=json, headers=given) as answer:
            body = await answer.read()
            is_json = answer.content_type == "application/json" and body
            return Told(answer.status, answer.headers, body, await answer.json() if is_json else None)

    async def infer(self, model: str, body: Any, **headers: str) -> Told:
        return await self.ask("POST", f"/v2/models/{model}/infer", body, **headers)

    async def submit(self, model: str, body: Any, **headers: str) -> str:
        """The id of a job."""
        answer = await self.infer(model, body, **{"prefer": "respond-async", **headers})
        assert answer.status == 202, answer
        return str(answer.json["id"])

    async def ended(self, job_id: str) -> Any:
        """A job once it has ended."""
        answer = await self.ask("GET", f"/v2/jobs/{job_id}?wait={PATIENCE:g}")
        assert answer.status == 200, answer
        assert answer.json["ended_at"], answer
        return answer.json


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    timeout = aiohttp.ClientTimeout(total=2 * PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield Client(session, port)
