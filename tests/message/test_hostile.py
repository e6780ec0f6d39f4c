"""Bytes from anywhere end in a frame or in an error of ours, never in anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinfer.errors import MalformedMessage, QInferError, UnsupportedVersion
from qinfer.message import (
    RequestFrame,
    ResponseFrame,
    decode_request_frame,
    decode_response_frame,
    encode,
    reply_address,
)
from tests.message import frames

DECODERS = [decode_request_frame, decode_response_frame]

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | frames.text | st.binary(),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(frames.text, inner, max_size=3),
    max_leaves=12,
)


def read(data: bytes) -> None:
    """Read a message in every way a process does, down to its tensors."""
    reply_address(data)
    with contextlib.suppress(QInferError):
        for request in decode_request_frame(data).requests:
            for tensor in request.inputs:
                tensor.numpy()
    with contextlib.suppress(QInferError):
        for response in decode_response_frame(data).responses:
            if response.error is not None:
                response.error.exception()
            for tensor in response.outputs:
                tensor.numpy()


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    read(data)


@given(anything)
def test_any_msgpack(value: object) -> None:
    read(msgpack.packb(value))


@given(st.lists(anything, max_size=9))
def test_any_array_of_our_version(rest: list[object]) -> None:
    read(msgpack.packb([1, *rest]))


@given(frames.request_frame, st.data())
def test_truncated_request_frames(frame: RequestFrame, data: st.DataObject) -> None:
    whole = encode(frame)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(MalformedMessage):
        decode_request_frame(whole[:cut])
    read(whole[:cut])


@given(st.one_of(frames.request_frame, frames.response_frame), st.data())
def test_mutated_frames(frame: RequestFrame | ResponseFrame, data: st.DataObject) -> None:
    changed = bytearray(encode(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(changed) - 1))
        changed[position] = data.draw(st.integers(0, 255))
    read(bytes(changed))


@given(st.integers(-(2**63), 2**64 - 1).filter(lambda version: version != 1), frames.text, anything)
def test_other_versions_are_told_from_garbage(version: int, reply_to: str, rest: object) -> None:
    data = msgpack.packb([version, reply_to, rest])
    for decode in DECODERS:
        with pytest.raises(UnsupportedVersion, match=f"version {version} "):
            decode(data)
    assert reply_address(data) == reply_to


_NESTED = [1, "_INBOX.a", "m", "", 0, 0, [[1, "", [], [], 0, {"deep": "HERE"}]]]


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"])
def test_nesting_without_end(decode: Callable[[bytes], object], opening: bytes) -> None:
    deep = opening * 200_000 + b"\x00"
    inside_a_parameter = msgpack.packb(_NESTED).replace(msgpack.packb("HERE"), deep)
    for data in (deep, inside_a_parameter, msgpack.packb([1, "_INBOX.a"])[:1] + deep):
        with pytest.raises(MalformedMessage):
            decode(data)
    assert reply_address(inside_a_parameter) in ("_INBOX.a", "")


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x92\x01\xdb\xff\xff\xff\xff",
    ],
)
def test_lengths_that_are_not_there(data: bytes) -> None:
    for decode in DECODERS:
        with pytest.raises(MalformedMessage):
            decode(data)
