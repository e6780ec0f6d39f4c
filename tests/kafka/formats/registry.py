"""A fake of a schema registry: the documented REST endpoints, in memory.

The real ones are Java services that no package brings; that is why this seam, and only this one, has a fake.
https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from aiohttp.test_utils import TestServer

_MEDIA = "application/vnd.schemaregistry.v1+json"


@dataclass
class FakeRegistry:
    """What it holds, what it was asked, and how it is to misbehave.

    Attributes:
        schemas: by id.
        subjects: ids of each subject's versions.
        asked: method and path of each request.
        authorization: of the last request.
        status: answer everything with this; 0 to answer as it should.
        body: with `status`, what the answer holds.
        wanted: the Authorization header it wants; "" for none.
        incompatible: subjects that take no new version.
    """

    schemas: dict[int, dict[str, Any]] = field(default_factory=dict)
    subjects: dict[str, list[int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    authorization: str = ""
    status: int = 0
    body: bytes = b'{"error_code": 50001, "message": "told to"}'
    wanted: str = ""
    incompatible: set[str] = field(default_factory=set)
    url: str = ""

    def add(self, text: str, kind: str = "AVRO", subject: str = "", references: Any = ()) -> int:
        """A schema that is registered; its id."""
        schema = {"schema": text, "schemaType": kind, "references": list(references)}
        number = next((known for known, other in self.schemas.items() if other == schema), 0)
        if not number:
            number = len(self.schemas) + 101
            self.schemas[number] = schema
        versions = self.subjects.setdefault(subject, []) if subject else []
        if number not in versions:
            versions.append(number)
        return number

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.rel_url.raw_path}")
        self.authorization = request.headers.get("Authorization", "")
        if self.status:
            return web.Response(status=self.status, body=self.body, headers={"Location": "/elsewhere"})
        if self.wanted and self.authorization != self.wanted:
            return _error(401, 401, "User cannot access the resource.")
        match [unquote(part) for part in request.rel_url.raw_path.strip("/").split("/")]:
            case ["schemas", "ids", number] if int(number) in self.schemas:
                return _json(self._told(int(number)))
            case ["schemas", "ids", _]:
                return _error(404, 40403, "Schema not found")
            case ["subjects", subject, *rest]:
                return await self._subject(request, subject, rest)
        return _error(404, 404, "HTTP 404 Not Found")

    async def _subject(self, request: web.Request, subject: str, rest: list[str]) -> web.Response:
        if request.method == "GET":
            versions = self.subjects.get(subject)
            if not versions:
                return _error(404, 40401, f"Subject '{subject}' not found.")
            version = len(versions) if rest[1] == "latest" else int(rest[1])
            return _json({"subject": subject, "version": version, **self._told(versions[version - 1])})
        sent = await request.json()
        assert request.content_type == _MEDIA
        kind = sent.get("schemaType", "AVRO")
        known = [
            number
            for number in self.subjects.get(subject, [])
            if (self.schemas[number]["schema"], self.schemas[number]["schemaType"]) == (sent["schema"], kind)
        ]
        if not rest:
            return _json({"id": known[0]}) if known else _error(404, 40403, "Schema not found")
        if subject in self.incompatible and not known:
            return _error(409, 409, "Schema being registered is incompatible with an earlier schema")
        return _json({"id": self.add(sent["schema"], kind, subject)})

    def _told(self, number: int) -> dict[str, Any]:
        schema = {"id": number, **self.schemas[number]}
        if schema["schemaType"] == "AVRO":  # as the real ones do
            del schema["schemaType"]
        if not schema["references"]:
            del schema["references"]
        return schema


def _json(body: Any, status: int = 200) -> web.Response:
    return web.json_response(body, status=status, content_type=_MEDIA)


def _error(status: int, code: int, message: str) -> web.Response:
    return _json({"error_code": code, "message": message}, status)


@asynccontextmanager
async def running(tls: SSLContext | None = None) -> AsyncIterator[FakeRegistry]:
    """A registry that listens on loopback."""
    fake = FakeRegistry()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    server = TestServer(app, scheme="https" if tls else "http")
    await server.start_server(ssl=tls)
    fake.url = str(server.make_url("")).rstrip("/")
    try:
        yield fake
    finally:
        await server.close()
