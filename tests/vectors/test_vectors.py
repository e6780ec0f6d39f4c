"""Every reader and writer of the message has to agree with the vectors: a plain one, and ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from qinfer.datatypes import DATATYPES
from qinfer.errors import BY_REASON, QInferError
from qinfer.message import (
    CancelFrame,
    RequestFrame,
    ResponseFrame,
    decode_cancel_frame,
    decode_request_frame,
    decode_response_frame,
    encode,
    reply_address,
)
from tests.vectors import generate

NAMES = sorted(path.stem for path in generate.DIRECTORY.glob("*.json"))


def load(name: str) -> tuple[bytes, dict[str, Any]]:
    data = (generate.DIRECTORY / f"{name}.bin").read_bytes()
    return data, _bytes((generate.DIRECTORY / f"{name}.json").read_text())


def _bytes(text: str) -> Any:
    def hook(value: dict[str, Any]) -> Any:
        return bytes.fromhex(value["$hex"]) if set(value) == {"$hex"} else value

    return json.loads(text, object_hook=hook)


DECODERS: dict[str, Callable[[bytes], RequestFrame | ResponseFrame | CancelFrame]] = {
    "request": decode_request_frame,
    "response": decode_response_frame,
    "cancel": decode_cancel_frame,
}


def decode(kind: str, data: bytes) -> RequestFrame | ResponseFrame | CancelFrame:
    return DECODERS[kind](data)


def plain(value: object) -> Any:
    """A frame as lists, with tensor data as bytes."""
    return as_bytes(msgspec.to_builtins(value, builtin_types=(bytes, memoryview)))


def as_bytes(value: Any) -> Any:
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list | tuple):
        return [as_bytes(element) for element in value]
    return value


@pytest.mark.parametrize("name", NAMES)
def test_plain_msgpack_reads_what_the_json_says(name: str) -> None:
    data, meaning = load(name)
    if "wire" in meaning:
        assert msgpack.unpackb(data) == meaning["wire"]
    else:
        with pytest.raises((ValueError, msgpack.UnpackException)):
            msgpack.unpackb(data)


@pytest.mark.parametrize("name", NAMES)
def test_our_decoder_reads_what_the_json_says(name: str) -> None:
    data, meaning = load(name)
    if "error" in meaning:
        with pytest.raises(QInferError) as caught:
            decode(meaning["kind"], data)
        assert type(caught.value) is BY_REASON[meaning["error"]]
        if meaning["kind"] == "request":
            assert reply_address(data) == meaning["reply_to"]
    else:
        frame = decode(meaning["kind"], data)
        assert plain(frame) == meaning.get("decoded", meaning["wire"])


@pytest.mark.parametrize("name", [name for name in NAMES if "error" not in load(name)[1]])
def test_our_encoder_writes_the_same_bytes(name: str) -> None:
    data, meaning = load(name)
    written = encode(decode(meaning["kind"], data))
    if "decoded" in meaning:
        assert written == msgpack.packb(meaning["decoded"])
    else:
        assert written == data


def test_there_is_a_vector_for_every_datatype() -> None:
    assert {f"request-{datatype.lower()}" for datatype in DATATYPES} <= set(NAMES)


def test_the_files_are_what_the_generator_writes() -> None:
    found = {path.name: path.read_bytes() for path in _files()}
    assert found == generate.files()


def _files() -> list[Path]:
    return [path for path in generate.DIRECTORY.iterdir() if path.suffix in (".json", ".bin")]
