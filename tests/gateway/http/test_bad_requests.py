"""Bad input: each gets the protocol's error, with a status and a message that names what was wrong."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.helpers import http
from tests.helpers.http import Answer, Connection, floats, infer, infer_path, post, tensor
from tests.helpers.system import System

MODEL = "identity_fp32"
GOOD = floats(1.5, 2.5)
HEADER_LENGTH = "inference-header-content-length"


@pytest_asyncio.fixture
async def connection(system: System) -> AsyncIterator[Connection]:
    async with http.connect(system.http_port) as opened:
        yield opened


async def refused(connection: Connection, request: bytes, status: int, *parts: str) -> Answer:
    """The request is answered with that error, and the connection goes on working."""
    answer = await connection.ask(request)
    assert answer.status == status, answer
    for part in parts:
        assert part in answer.error, answer.error
    assert answer.reason, answer.headers
    assert (await connection.ask(infer(MODEL, GOOD))).outputs() == {"y": [1.5, 2.5]}
    return answer


def with_input(**changes: Any) -> dict[str, Any]:
    given = {**tensor([1.5, 2.5], "FP32", [1, 2]), **changes}
    return {"inputs": [{key: value for key, value in given.items() if value is not None}]}


def with_data(data: bytes) -> bytes:
    """A body whose data is put in as it is."""
    return b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":' + data + b"}]}"


JSON_BODIES: dict[str, tuple[Any, list[str]]] = {
    "empty": (b"", ["malformed JSON"]),
    "no JSON": (b"hello", ["malformed JSON"]),
    "cut off": (json.dumps(GOOD).encode()[:-3], ["malformed JSON"]),
    "two documents": (json.dumps(GOOD).encode() * 2, ["malformed JSON"]),
    "NaN": (json.dumps(with_input(data=[float("nan"), 1.0])).encode(), ["malformed JSON"]),
    "Infinity": (json.dumps(with_input(data=[float("-inf"), 1.0])).encode(), ["malformed JSON"]),
    "a list": ([GOOD], ["object"]),
    "no inputs": ({"id": "x"}, ["inputs"]),
    "empty inputs": ({"inputs": []}, ["no inputs", "x"]),
    "inputs no list": ({"inputs": {}}, ["inputs"]),
    "id no string": ({**GOOD, "id": 7}, ["$.id"]),
    "no name": (with_input(name=None), ["name"]),
    "unknown name": (with_input(name="z"), ["'x' is missing"]),
    "one name too many": ({"inputs": GOOD["inputs"] + [tensor([1], "FP32", [1, 1], "z")]}, ["'z'"]),
    "given twice": ({"inputs": GOOD["inputs"] * 2}, ["twice", "x"]),
    "no datatype": (with_input(datatype=None), ["datatype"]),
    "unknown datatype": (with_input(datatype="FLOAT"), ["'x'", "'FLOAT'", "FP32"]),
    "wrong datatype": (with_input(datatype="FP64"), ["'x'", "FP64", "expected FP32"]),
    "no shape": (with_input(shape=None), ["shape"]),
    "shape no list": (with_input(shape=2), ["shape"]),
    "fractional shape": (with_input(shape=[1, 2.5]), ["shape"]),
    "negative shape": (with_input(shape=[-1, -2]), ["'x'"]),
    "negative rows": (with_input(shape=[-1, 2], data=[]), ["'x'"]),
    "no dimension": (with_input(shape=[], data=[1.0]), ["'x'", "batch dimension"]),
    "one dimension short": (with_input(shape=[2]), ["'x'", "[-1, -1]"]),
    "one dimension more": (with_input(shape=[1, 2, 1]), ["'x'", "[-1, -1]"]),
    "no rows": (with_input(shape=[0, 2], data=[]), ["0 rows", "1 to 16"]),
    "too many rows": (with_input(shape=[17, 0], data=[]), ["17 rows", "1 to 16"]),
    "absurdly many rows": (with_input(shape=[2**70, 0], data=[]), ["1 to 16"]),
    "absurd dimension": (with_input(shape=[1, 2**70]), ["'x'", "2 elements"]),
    "too few elements": (with_input(data=[1.5]), ["'x'", "1 elements", "needs 2"]),
    "too many elements": (with_input(data=[1.5] * 3), ["'x'", "3 elements", "needs 2"]),
    "no data": (with_input(data=None), ["'x'", "neither data nor binary_data_size"]),
    "data no list": (with_input(data=1.5), ["'x'", "not a list"]),
    "a string among numbers": (with_input(data=[1.5, "2"]), ["'x'", "FP32"]),
    "null among numbers": (with_input(data=[1.5, None]), ["'x'", "FP32"]),
    "true among numbers": (with_input(data=[[1.5, True]]), ["'x'", "FP32", "bool"]),
    "ragged": (with_input(data=[[1.5], 2.5]), ["'x'", "mixes lists"]),
    "too large for FP32": (with_input(data=[1e300, 1.0]), ["'x'", "out of range"]),
    "out of all range": (with_data(b"[1e999]"), ["'x'"]),
    "parameters no object": ({**GOOD, "parameters": 1}, ["parameters"]),
    "parameter null": ({**GOOD, "parameters": {"p": None}}, ["'p'"]),
    "parameter list": ({**GOOD, "parameters": {"p": [1]}}, ["'p'", "list"]),
    "parameter too large": ({**GOOD, "parameters": {"p": 2**70}}, ["'p'"]),
    "parameter too small": ({**GOOD, "parameters": {"p": -(2**70)}}, ["'p'"]),
    "reserved parameter": ({**GOOD, "parameters": {"triton_x": 1}}, ["'triton_x'", "reserved"]),
    "timeout no number": ({**GOOD, "parameters": {"timeout": "1"}}, ["'timeout'"]),
    "timeout negative": ({**GOOD, "parameters": {"timeout": -1}}, ["'timeout'"]),
    "timeout absurd": ({**GOOD, "parameters": {"timeout": 2**70}}, ["'timeout'"]),
    "priority fraction": ({**GOOD, "parameters": {"priority": 0.5}}, ["'priority'"]),
    "unknown output": ({**GOOD, "outputs": [{"name": "z"}]}, ["'z'", "y"]),
    "output no object": ({**GOOD, "outputs": ["y"]}, ["outputs"]),
    "binary_data no boolean": (
        {**GOOD, "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
        ["'y'"],
    ),
    "binary_data null": (
        {**GOOD, "outputs": [{"name": "y", "parameters": {"binary_data": None}}]},
        ["'y'", "binary_data is None", "true or false"],
    ),
    "binary_data_size null": (with_input(parameters={"binary_data_size": None}), ["'x'", "both"]),
    "data and binary data": (with_input(parameters={"binary_data_size": 8}), ["'x'", "both"]),
    "binary data that is not there": (
        with_input(data=None, parameters={"binary_data_size": 8}),
        ["'x'", "only 0 bytes"],
    ),
    "invalid UTF-8 in a name": (with_data(b"[1]").replace(b"FP32", b"\xff"), ["utf-8"]),
    "invalid UTF-8 in the id": (json.dumps({**GOOD, "id": "@"}).encode().replace(b"@", b"\xc3"), ["utf-8"]),
    "half a surrogate": (json.dumps({**GOOD, "id": "\ud800"}).encode(), ["malformed JSON"]),
    "deep": (b'{"inputs":' + b"[" * 60_000, ["$.inputs[0]"]),
    "deep parameter": (b'{"inputs":[],"parameters":{"p":' + b"[" * 60_000, ["malformed JSON"]),
    "deep data": (with_data(b"[" * 30_000 + b"]" * 30_000), ["recursion"]),
    "deep and large": (with_data(b"[" * 200_000 + b"]" * 200_000), ["recursion"]),
    "rather deep data": (with_data(b"[" * 900 + b"1," + b"]" * 900), ["malformed JSON"]),
}  # fmt: skip


@pytest.mark.parametrize("name", JSON_BODIES)
async def test_malformed_json_body(connection: Connection, name: str) -> None:
    body, parts = JSON_BODIES[name]
    await refused(connection, infer(MODEL, body), 400, *parts)


@pytest.mark.parametrize(
    ("model", "datatype", "data"),
    [
        ("identity_uint8", "UINT8", [256]),
        ("identity_uint8", "UINT8", [-1]),
        ("identity_int8", "INT8", [128]),
        ("identity_int64", "INT64", [2**63]),
        ("identity_uint64", "UINT64", [2**64]),
        ("identity_int32", "INT32", [1.5]),
        ("identity_int32", "INT32", [True]),
        ("identity_bool", "BOOL", [1]),
        ("identity_bytes", "BYTES", [1]),
        ("identity_fp16", "FP16", [1.0]),
        ("identity_bf16", "BF16", [1.0]),
    ],
)
async def test_values_that_are_not_of_the_datatype(
    connection: Connection, model: str, datatype: str, data: list[Any]
) -> None:
    body = {"inputs": [tensor(data, datatype, [1, len(data)])]}
    await refused(connection, infer(model, body), 400, "'x'", datatype)


async def test_large_out_of_range_data_is_refused_like_small(connection: Connection) -> None:
    body = {"inputs": [tensor([0] * 9999 + [300], "UINT8", [1, 10_000])]}
    await refused(connection, infer("identity_uint8", body), 400, "'x'", "out of range", "UINT8")


def binary(size: Any, raw: bytes, *, header_length: Any = None, coding: str = "") -> bytes:
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}}
            ]
        }
    ).encode()
    length = len(head) if header_length is None else header_length
    headers = [f"{HEADER_LENGTH}: {length}", *([f"content-encoding: {coding}"] if coding else [])]
    return post(infer_path(MODEL), head + raw, *headers)


@pytest.mark.parametrize(
    ("request_bytes", "parts"),
    [
        (binary(8, b"1234567"), ["'x'", "binary_data_size is 8", "7 bytes"]),
        (binary(8, b"123456789"), ["1 bytes follow"]),
        (binary(4, b"1234"), ["'x'", "needs 8 bytes; got 4"]),
        (binary(-8, b"12345678"), ["'x'", "binary_data_size is -8"]),
        (binary(True, b"1"), ["'x'", "binary_data_size"]),
        (binary("8", b"12345678"), ["'x'", "binary_data_size"]),
        (binary(None, b"12345678"), ["'x'", "binary_data_size is None"]),
        (binary(2**70, b"12345678"), ["'x'", "8 bytes"]),
        (binary(8, b"12345678", header_length=10_000), ["Inference-Header-Content-Length is 10000"]),
        (binary(8, b"12345678", header_length=5), ["malformed JSON"]),
        (binary(8, b"12345678", header_length=-1), ["Inference-Header-Content-Length"]),
        (binary(8, b"12345678", header_length="many"), ["Inference-Header-Content-Length"]),
        (binary(8, b"12345678", header_length="9" * 5000), ["Inference-Header-Content-Length"]),
        (binary(8, b"12345678", header_length="\xb2"), ["Inference-Header-Content-Length"]),
        (binary(8, b"12345678", header_length=0), ["'x'"]),
        (binary(8, b"12345678", coding="gzip"), ["not valid gzip"]),
        (binary(8, b"12345678", coding="deflate"), ["not valid deflate"]),
    ],
)  # fmt: skip
async def test_binary_bodies_that_lie(connection: Connection, request_bytes: bytes, parts: list[str]) -> None:
    await refused(connection, request_bytes, 400, *parts)


async def test_a_raw_body_needs_whole_rows(connection: Connection) -> None:
    request = post(infer_path(MODEL), b"12345", f"{HEADER_LENGTH}: 0")
    await refused(connection, request, 400, "5 bytes", "'x'")


async def test_truncated_and_trailing_compressed_bodies(connection: Connection) -> None:
    packed = gzip.compress(json.dumps(GOOD).encode())
    for body in (packed[:-4], packed + b"more"):
        await refused(connection, infer(MODEL, body, "content-encoding: gzip"), 400, "gzip")


async def test_unknown_content_coding_tells_the_known_ones(connection: Connection) -> None:
    answer = await refused(connection, infer(MODEL, b"x", "content-encoding: zstd"), 415, "'zstd'", "gzip")
    assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_decompression_bombs(connection: Connection, coding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(70)) + packer.flush()
    assert len(bomb) < 100_000
    await refused(connection, infer(MODEL, bomb, f"content-encoding: {coding}"), 413, "67108864 bytes")


async def test_parameters_above_the_brokers_limit_are_told_the_limit(connection: Connection) -> None:
    """Tensors may be larger: see `tests.e2e.test_large`."""
    answer = await refused(
        connection, infer(MODEL, {**GOOD, "parameters": {"text": "x" * (9 << 20)}}), 413, "8388608"
    )
    assert answer.reason == "payload_too_large"


@pytest.mark.parametrize("extension", ["shared memory", "classification"])
async def test_extensions_that_are_not_there(connection: Connection, extension: str) -> None:
    if extension == "classification":
        body = {**GOOD, "outputs": [{"name": "y", "parameters": {"classification": 3}}]}
    else:
        body = with_input(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8})
    await refused(connection, infer(MODEL, body), 501, extension)


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("nobody", ""),
        (MODEL, "7"),
        (MODEL, "latest"),
        (MODEL, "-1"),
        (MODEL, "01"),
        ("broken_config", ""),
        ("..", ""),
        ("..%2f..%2fetc%2fpasswd", ""),
        ("identity_fp32%00", ""),
        ("identity.fp32", ""),
        ("*", ""),
        ("%3E", ""),
        ("a%20b%0d%0aset-cookie:%20x", ""),
        ("%ff%fe", ""),
        ("x" * 5000, ""),
    ],
)
async def test_unknown_models_and_versions(connection: Connection, model: str, version: str) -> None:
    answer = await refused(connection, infer(model, GOOD, version=version), 404, "does not exist")
    assert answer.reason == "model_not_found"
    assert "set-cookie" not in answer.headers


async def test_a_model_of_several_versions_knows_no_third(connection: Connection) -> None:
    await refused(connection, infer("versions", GOOD, version="3"), 404, "'versions' version 3")


async def test_all_elements_of_empty_tensors_are_there(connection: Connection) -> None:
    """Zero is a size like any other where the signature leaves it open."""
    answer = await connection.ask(infer(MODEL, {"inputs": [tensor([], "FP32", [2, 0])]}))
    assert answer.outputs() == {"y": []}
    # The product of these is zero, so the number of elements says nothing about the other dimension.
    for shape in ([2**70, 0], [0, 2**63]):
        body = {"inputs": [tensor([], "INT64", shape)]}
        await refused(connection, infer("scalar", body), 400, "'x'", "shape")
