"""HTTP/1.1 with keep-alive: each lane has a connection of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np

from loadtest.chaos.asks import Answer, Ask, Refusal, Sender, Settings, broken
from loadtest.chaos.models import Integers
from loadtest.chaos.proxy import HOST

_HEAD_LIMIT = 64 * 1024
_TIMEOUT, _KEY, _REASON = "x-qinfer-timeout-ms", "idempotency-key", "x-qinfer-reason"


class HttpSender(Sender):
    """Asks with JSON tensors."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._port = settings.http_port
        self._connections: dict[int, _Connection] = {}

    async def start(self) -> None:
        """Connections are made when they are needed."""

    async def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    async def send(self, ask: Ask, lane: int, budget: float) -> Answer:
        connection = self._connections.pop(lane, None)
        if connection is None or connection.ended:
            if connection is not None:
                connection.close()
            connection = await _connect(self._port)
        reusable = False
        try:
            connection.write(_request(ask, budget))
            status, headers, body = await connection.response()
            reusable = headers.get("connection", "").lower() != "close"
        except (OSError, asyncio.IncompleteReadError) as error:
            raise broken(error) from error
        finally:
            if reusable:
                self._connections[lane] = connection
            else:
                connection.close()
        if status != 200:
            raise _refusal(status, headers, body)
        return _answer(body)


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def ended(self) -> bool:
        """Whether the server has ended it between two requests."""
        return self._reader.at_eof() or self._writer.is_closing()

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with names in lower case, body."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await self._reader.readexactly(int(headers["content-length"]))
        return int(status_line.split(" ", 2)[1]), headers, body

    def close(self) -> None:
        self._writer.close()


async def _connect(port: int) -> _Connection:
    try:
        return _Connection(*await asyncio.open_connection(HOST, port, limit=_HEAD_LIMIT))
    except OSError as error:
        raise broken(error) from error


def _request(ask: Ask, budget: float) -> bytes:
    body = msgspec.json.encode(
        {
            "id": str(ask.id),
            "inputs": [
                {"name": name, "datatype": "INT64", "shape": value.shape, "data": value.ravel().tolist()}
                for name, value in (("x", ask.x), ("id", ask.ids))
            ],
        }
    )
    lines = [
        f"POST /v2/models/{ask.model}/infer HTTP/1.1",
        f"host: {HOST}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"{_TIMEOUT}: {max(1, int(budget * 1000))}",
    ]
    if ask.key:
        lines.append(f"{_KEY}: {ask.key}")
    return "\r\n".join((*lines, "", "")).encode() + body


def _answer(body: bytes) -> Answer:
    document = msgspec.json.decode(body)
    return Answer(
        y=_output(document, "y"), by=_output(document, "by"), model_version=document["model_version"]
    )


def _output(document: Any, name: str) -> Integers:
    (output,) = (each for each in document["outputs"] if each["name"] == name)
    return np.array(output["data"], np.int64).reshape(output["shape"])


def _refusal(status: int, headers: dict[str, str], body: bytes) -> Refusal:
    pause = headers.get("retry-after")
    return Refusal(
        headers.get(_REASON, ""),
        body.decode(errors="replace")[:500],
        status=status,
        pause=None if pause is None else float(pause),
    )
