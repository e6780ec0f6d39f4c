"""Content codings of answers, as bytes on the wire: a client library would not show a missing one."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from qinfer_gateway.http.compression import MIN_SIZE, accepted
from tests.helpers import http
from tests.helpers.http import Connection, infer, tensor
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import System

MODEL = IDENTITY["FP32"]
DECODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest_asyncio.fixture
async def connection(system: System) -> AsyncIterator[Connection]:
    async with http.connect(system.http_port) as made:
        yield made


def body(elements: int) -> dict[str, object]:
    return {"inputs": [tensor([0.0] * elements, "FP32", [1, elements])]}


@pytest.mark.parametrize("coding", DECODERS)
@pytest.mark.parametrize("elements", [1000, 50_000])
async def test_json_answers_are_compressed(connection: Connection, coding: str, elements: int) -> None:
    answer = await connection.ask(infer(MODEL, body(elements), f"accept-encoding: {coding}"))
    assert answer.headers["content-encoding"] == coding
    assert answer.headers["vary"] == "accept-encoding"
    assert len(answer.body) < elements
    (output,) = json.loads(DECODERS[coding](answer.body))["outputs"]
    assert output["data"] == [0.0] * elements


async def test_binary_answers_are_compressed_with_their_header(connection: Connection) -> None:
    wanted = {**body(1000), "parameters": {"binary_data_output": True}}
    answer = await connection.ask(infer(MODEL, wanted, "accept-encoding: gzip"))
    assert answer.headers["content-encoding"] == "gzip"
    whole = gzip.decompress(answer.body)
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(whole[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 4000}
    assert whole[length:] == bytes(4000)


@pytest.mark.parametrize(
    ("elements", "headers"),
    [
        (1000, ()),
        (1000, ("accept-encoding: identity",)),
        (1000, ("accept-encoding: br, zstd",)),
        (1000, ("accept-encoding: gzip;q=0",)),
        (10, ("accept-encoding: gzip",)),  # not worth it
    ],
)
async def test_answers_that_are_not(connection: Connection, elements: int, headers: tuple[str, ...]) -> None:
    answer = await connection.ask(infer(MODEL, body(elements), *headers))
    assert "content-encoding" not in answer.headers
    assert (len(answer.body) >= MIN_SIZE) == (elements == 1000)
    assert answer.outputs() == {"y": [0.0] * elements}


async def test_both_ways(connection: Connection) -> None:
    packed = zlib.compress(json.dumps(body(1000)).encode())
    request = infer(MODEL, packed, "content-encoding: deflate", "accept-encoding: deflate, gzip;q=0.5")
    answer = await connection.ask(request)
    assert answer.headers["content-encoding"] == "deflate"
    (output,) = json.loads(zlib.decompress(answer.body))["outputs"]
    assert output["data"] == [0.0] * 1000


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"gzip", "gzip"),
        (b"GZip, deflate", "gzip"),
        (b"deflate", "deflate"),
        (b"gzip;q=0.2, deflate;q=0.8", "deflate"),
        (b"gzip;q=zero", ""),
        (b"gzip;q=0, deflate;q=0", ""),
        (b"br", ""),
        (b"", ""),
        (b"\xff,;;q=", ""),
    ],
)
def test_what_clients_accept(header: bytes, coding: str) -> None:
    assert accepted(header) == coding
