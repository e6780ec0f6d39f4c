"""Large bodies are converted in threads of their own, so that they do not hold up the small ones."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from qinfer_gateway.http import exchange
from qinfer_gateway.http.exchange import OFF_LOOP_BYTES
from tests.helpers import http
from tests.helpers.http import infer, tensor
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import Fleet, fleet

MODEL = IDENTITY["UINT8"]


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, served_repository: Path) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, served_repository) as made:
        await made.add_worker(MODEL)
        yield made


@pytest.fixture
def converted_by(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The threads that converted the last request and the last answer."""
    seen: dict[str, str] = {}
    for name in ("decode_body", "encode_body"):

        def spy(*given: object, name: str = name, real: object = getattr(exchange, name)) -> object:
            seen[name] = threading.current_thread().name.partition("_")[0]
            return real(*given)  # type: ignore[operator]

        monkeypatch.setattr(exchange, name, spy)
    return seen


async def test_where_bodies_are_converted(running: Fleet, converted_by: dict[str, str]) -> None:
    loop, threads = threading.current_thread().name.partition("_")[0], "convert"
    for elements, decoded, encoded in (
        (1, loop, loop),
        (OFF_LOOP_BYTES // 2, threads, loop),  # "0," is two bytes of JSON, and one byte of data
        (OFF_LOOP_BYTES + 1, threads, threads),
    ):
        async with http.connect(running.port) as connection:
            body = {"inputs": [tensor([0] * elements, "UINT8", [1, elements])]}
            answer = await connection.ask(infer(MODEL, body))
        assert answer.outputs() == {"y": [0] * elements}
        assert converted_by == {"decode_body": decoded, "encode_body": encoded}
