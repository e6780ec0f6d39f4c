"""Properties of HTTP bodies: valid tensors come back bit for bit, anything else is the client's fault."""

from __future__ import annotations

import copy
import json
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from qinfer.datatypes import DATATYPES, Array, to_raw
from tests.helpers import http
from tests.helpers.http import Answer, infer, infer_path, post, tensor
from tests.helpers.served_models import IDENTITY, MAX_BATCH
from tests.helpers.system import System

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
MANY = settings(SETTINGS, max_examples=300)


SHAPES = st.tuples(st.integers(1, MAX_BATCH), st.integers(0, 20))


def arrays(datatype: str) -> st.SearchStrategy[Array]:
    """Tensors of a datatype, [1..16, 0..20], any bit pattern."""
    kind = DATATYPES[datatype]
    if datatype == "BYTES":
        return SHAPES.flatmap(lambda shape: npst.arrays(object, shape, elements=st.binary(max_size=40)))
    if datatype == "BOOL":
        return SHAPES.flatmap(lambda shape: npst.arrays(bool, shape))
    bits = SHAPES.flatmap(lambda shape: npst.arrays(f"<u{kind.itemsize}", shape))
    return bits.map(lambda array: array.view(kind.dtype))


@pytest.mark.parametrize("datatype", DATATYPES)
@SETTINGS
@given(data=st.data())
async def test_binary_tensors_come_back_bit_for_bit(
    system: System, datatype: str, data: st.DataObject
) -> None:
    array = data.draw(arrays(datatype))
    raw = bytes(to_raw(datatype, array))
    one = {"name": "x", "datatype": datatype, "shape": list(array.shape)}
    head = json.dumps(
        {
            "inputs": [{**one, "parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    answer = await ask(system, post(infer_path(IDENTITY[datatype]), head + raw, length_of(head)))
    assert answer.status == 200, answer
    size = int(answer.headers["inference-header-content-length"])
    output = json.loads(answer.body[:size])["outputs"][0]
    assert output["shape"] == list(array.shape)
    assert output["parameters"] == {"binary_data_size": len(raw)}
    assert answer.body[size:] == raw


@pytest.mark.parametrize("datatype", [name for name, kind in DATATYPES.items() if kind.json])
@SETTINGS
@given(data=st.data(), nested=st.booleans())
async def test_json_tensors_come_back_bit_for_bit(
    system: System, datatype: str, data: st.DataObject, nested: bool
) -> None:
    array = json_values(data.draw(arrays(datatype)), datatype)
    values = array.tolist() if nested else array.ravel().tolist()
    answer = await ask(system, infer(IDENTITY[datatype], {"inputs": [tensor(values, datatype, array.shape)]}))
    assert answer.status == 200, answer
    output = answer.json()["outputs"][0]
    assert output["shape"] == list(array.shape)
    back = np.array(output["data"], dtype=array.dtype).reshape(array.shape)
    if datatype == "BYTES":
        assert back.tolist() == array.tolist()
    else:
        assert back.tobytes() == array.tobytes()


def json_values(array: Array, datatype: str) -> Array:
    """The values that have a JSON form: text, and numbers that are finite."""
    if datatype == "BYTES":
        texts = [element.decode("utf-8", "replace") for element in array.ravel()]
        made = np.empty(len(texts), dtype=object)
        made[:] = texts
        return made.reshape(array.shape)
    if array.dtype.kind == "f":
        return np.where(np.isfinite(array), array, array.dtype.type(1.5))
    return array


async def test_what_json_lacks_becomes_null(system: System) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 1.0]], dtype="<f4")
    one = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [one]}).encode()
    request = post(infer_path(IDENTITY["FP32"]), head + values.tobytes(), length_of(head))
    assert (await ask(system, request)).outputs() == {"y": [None, None, None, 1.0]}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["x", "y", "FP32", "INT64", "BYTES", "binary_data_size", "shared_memory_region"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "data", "datatype", "parameters"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
VALID: dict[str, Any] = {
    "id": "7",
    "parameters": {"p": 1, "priority": 1, "timeout": 10_000_000, "binary_data_output": False},
    "inputs": [{**tensor([1.0, 2.0], "FP32", [1, 2]), "parameters": {"q": 1}}],
    "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
}


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a document."""
    found = [path] if path else []
    if isinstance(document, dict):
        items: Any = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    else:
        return found
    return found + [inner for key, value in items for inner in places(value, (*path, key))]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """The valid body with up to three places replaced, removed or added to."""
    document = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        candidates = places(document)
        if not candidates:
            break
        *parents, last = draw(st.sampled_from(candidates))
        owner: Any = document
        for key in parents:
            owner = owner[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace":
            owner[last] = draw(JSON)
        elif change == "remove":
            del owner[last]
        elif isinstance(owner, list):
            owner.append(draw(JSON))
        else:
            owner[draw(st.text(max_size=6))] = draw(JSON)
    return document


async def ask(system: System, request: bytes) -> Answer:
    """Ask on a connection of its own, which goes on working whatever was asked."""
    async with http.connect(system.http_port) as connection:
        answer = await connection.ask(request)
        assert (await connection.ask(http.get("/v2/health/live"))).status == 200
        return answer


def length_of(head: bytes) -> str:
    return f"inference-header-content-length: {len(head)}"


def check(answer: Answer) -> None:
    """Either it was valid still, or it is said what was wrong with it; never is it the server's fault."""
    if answer.status == 200:
        for output in answer.json()["outputs"]:
            assert len(output["data"]) == prod(output["shape"])
    else:
        assert 400 <= answer.status < 500 or answer.status in (501, 504), answer
        assert answer.error
        assert answer.reason


@MANY
@given(body=mutated() | JSON)
@example(body=VALID)
async def test_no_json_is_the_servers_fault(system: System, body: Any) -> None:
    check(await ask(system, infer(IDENTITY["FP32"], body)))


WORDS = b"\x01\0\0\0a\x02\0\0\0bc"
WORDS_HEAD = json.dumps(
    {"inputs": [tensor(None, "BYTES", [1, 2]) | {"parameters": {"binary_data_size": len(WORDS)}}]}
).replace('"data": null, ', "").encode()  # fmt: skip


@MANY
@given(
    start=st.integers(0, len(WORDS_HEAD + WORDS)),
    removed=st.integers(0, 12),
    added=st.binary(max_size=12),
    off=st.integers(-3, 3) | st.integers(0, 200),
    coding=st.sampled_from(["", "", "", "gzip", "deflate"]),
)
@example(start=0, removed=0, added=b"", off=0, coding="")
async def test_no_bytes_are_the_servers_fault(
    system: System, start: int, removed: int, added: bytes, off: int, coding: str
) -> None:
    """Bytes cut, overwritten and put in anywhere, with header lengths that may or may not fit."""
    valid = WORDS_HEAD + WORDS
    body = valid[:start] + added + valid[start + removed :]
    headers = [f"inference-header-content-length: {max(0, len(WORDS_HEAD) + off)}"]
    headers += [f"content-encoding: {coding}"] if coding else []
    answer = await ask(system, post(infer_path(IDENTITY["BYTES"]), body, *headers))
    if answer.headers["content-type"] == "application/json":
        check(answer)
    if body == valid and not off and not coding:
        assert answer.outputs() == {"y": ["a", "bc"]}
