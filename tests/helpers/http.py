"""HTTP as bytes on a socket, for what no client library would send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.helpers.waiting import PATIENCE

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Answer:
    """One response; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an error in the protocol's form."""
        document = self.json()
        assert set(document) == {"error"}, document
        return str(document["error"])

    @property
    def reason(self) -> str:
        return self.headers.get("x-qinfer-reason", "")

    def outputs(self) -> dict[str, Any]:
        """Data of the JSON outputs, by name."""
        assert self.status == 200, self
        return {output["name"]: output["data"] for output in self.json()["outputs"]}


class Closed(Exception):
    """The server ended the connection."""


class Connection:
    """One connection. Every wait has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def flush(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    async def line(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readline()

    async def answer(self, *, head_only: bool = False) -> Answer:
        """Read one response.

        Raises:
            Closed: the server ended the connection instead, before the first byte.
        """
        status_line = await self.line()
        if not status_line:
            raise Closed
        version, status, *_ = status_line.split(None, 2)
        assert version == b"HTTP/1.1", status_line
        headers: dict[str, str] = {}
        while (line := await self.line()) != b"\r\n":
            assert line.endswith(b"\r\n"), (status_line, line)
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if status == b"100":
            return Answer(100, headers, b"")
        size = 0 if head_only else int(headers["content-length"])
        async with asyncio.timeout(PATIENCE):
            body = await self.reader.readexactly(size)
        return Answer(int(status), headers, body)

    async def ask(self, *parts: bytes) -> Answer:
        self.send(*parts)
        return await self.answer()

    async def ended(self) -> bytes:
        """What still comes until the server closes the connection."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read(-1)
            except ConnectionResetError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.writer.wait_closed()
        except (ConnectionError, TimeoutError):
            self.writer.transport.abort()


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    """A connection to a server of this host."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 20)
    connection = Connection(reader, writer)
    try:
        yield connection
    finally:
        await connection.close()


def get(path: str, *headers: str) -> bytes:
    return _head("GET", path, headers)


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A request with a body; `length` is what it says its length is, where that is not the truth."""
    size = len(body) if length is None else length
    return _head("POST", path, (f"content-length: {size}", *headers)) + body


def chunked(path: str, chunks: Sequence[bytes], *headers: str) -> bytes:
    head = _head("POST", path, ("transfer-encoding: chunked", *headers))
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def infer_path(model: str, version: str = "") -> str:
    return f"/v2/models/{model}/versions/{version}/infer" if version else f"/v2/models/{model}/infer"


def infer(model: str, body: Any, *headers: str, version: str = "") -> bytes:
    """An infer request; a body that is not bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return post(infer_path(model, version), raw, *headers)


def tensor(data: Any, datatype: str, shape: Sequence[int], name: str = "x") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def floats(*values: float) -> dict[str, Any]:
    """A body with one input of one FP32 row."""
    return {"inputs": [tensor(list(values), "FP32", [1, len(values)])]}


def _head(verb: str, path: str, headers: Sequence[str]) -> bytes:
    lines = (f"{verb} {path} HTTP/1.1", "host: test", *headers, "", "")
    return "\r\n".join(lines).encode("latin-1")
