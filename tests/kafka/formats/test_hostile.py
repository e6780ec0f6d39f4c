"""Bytes from anywhere: each value is scored or bad, and nothing else happens."""

from __future__ import annotations

import io
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinfer_workers.kafka.codec import RecordCodec
from tests.kafka.formats.support import Record, check, codec_of, floats, info, tensor
from tests.kafka.formats.test_documents import AVRO, PROTO
from tests.kafka.formats.test_tables import FIXED, frame, rows_of, stream

DEEP = 200_000
NAMES = ("json", "verbatim", "msgpack", "raw", "frame", "arrow", "avro", "protobuf", "nested")
SELF = 'syntax = "proto3"; message N { N n = 1; repeated float x = 2; }'


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RecordCodec]:
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "s.avsc").write_text(json.dumps(AVRO))
    (folder / "s.proto").write_text(PROTO)
    (folder / "n.proto").write_text(SELF)
    limits: dict[str, Any] = {"limits": {"max_record_bytes": 16 * 1024 * 1024}}
    free = {"m": info("m", [tensor("x", dims=(-1, -1))], rows=None)}
    return {
        "json": codec_of("json", **limits),
        "verbatim": codec_of("json", keep="all", **limits),
        "msgpack": codec_of("msgpack", **limits),
        "raw": codec_of("raw", **limits),
        "frame": codec_of("frame", "frame", keep="all", infos=free, **limits),
        "arrow": codec_of("arrow", keep="all", **limits),
        "avro": codec_of({"type": "avro", "schema_file": "s.avsc"}, keep="all", folder=folder, **limits),
        "protobuf": codec_of(
            {"type": "protobuf", "schema_file": "s.proto", "message": "In"},
            keep="all",
            folder=folder,
            **limits,
        ),
        "nested": codec_of(
            {"type": "protobuf", "schema_file": "n.proto"}, keep="all", folder=folder, **limits
        ),
    }


def avro() -> bytes:
    data = io.BytesIO()
    fastavro.schemaless_writer(data, fastavro.parse_schema(AVRO), {"x": [1, 2], "id": 5, "m": {"k": b"v"}})
    return data.getvalue()


SEEDS: dict[str, Callable[[], bytes]] = {
    "json": lambda: b'{"x":[1.5,2],"t":"\\u00fc\xc3\xbc","n":null,"o":{"a":[true]}}',
    "msgpack": lambda: msgspec.msgpack.encode({"x": [1.5, 2], "t": "ü", "b": b"b", "o": {"a": [True]}}),
    "raw": lambda: floats(1, 2).tobytes(),
    "frame": lambda: frame(rows_of([1, 2])),
    "arrow": lambda: stream(
        pa.table({"x": pa.array([[1, 2]], FIXED), "t": ["a"], "d": pa.array(["b"]).dictionary_encode()})
    ),
    "avro": avro,
    "protobuf": lambda: b"\x0a\x10" + bytes(16) + b"\x10\x05\x1a\x01t\x2a\x06\x0a\x01k\x12\x01v",
}
SEEDS["verbatim"] = SEEDS["json"]
SEEDS["nested"] = SEEDS["protobuf"]


def decode(codec: RecordCodec, *values: bytes) -> dict[int, str]:
    """Reasons of the bad ones."""
    decoded = codec.decode([Record(value) for value in values])
    check(decoded, len(values))
    return {place: record.reason for place, record in decoded.bad.items()}


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=150)
def test_any_bytes(name: str, data: st.DataObject, codecs: dict[str, RecordCodec]) -> None:
    seed = SEEDS[name]()
    if data.draw(st.booleans()):
        value = data.draw(st.binary(max_size=60))
    else:
        changed = bytearray(seed)
        for place, byte in data.draw(
            st.lists(st.tuples(st.integers(0, len(seed) - 1), st.integers(0, 255)), max_size=4)
        ):
            changed[place] = byte
        value = bytes(changed[: data.draw(st.integers(0, len(seed)))])
    before = decode(codecs[name], seed, seed)
    assert decode(codecs[name], seed, value, seed).keys() - {1} == ({0, 2} if before else set())


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation(name: str, codecs: dict[str, RecordCodec]) -> None:
    seed = SEEDS[name]()
    decode(codecs[name], *[seed[:size] for size in range(len(seed))])


def varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def nested_proto() -> bytes:
    """A message within a message and so on, with right lengths."""
    parts: list[bytes] = []
    size = 0
    for _ in range(DEEP):
        head = b"\x0a" + varint(size)
        parts.append(head)
        size += len(head)
    return b"".join(reversed(parts))


HUGE = 2**62
LONG = b"\xfe" + b"\xff" * 8 + b"\x7f"  # Avro's largest length
HOSTILE = {
    "json": [b"[" * DEEP, b'{"x":' * DEEP, b'{"x":' + b"[" * DEEP, b'{"y":' + b"[" * DEEP + b"]" * DEEP,
             b'{"x":[1,' + b"1" * DEEP + b"]}", b'{"x":"' + b"\\" * DEEP, b"\x00", b'{"x":[NaN,1]}'],
    "msgpack": [b"\x91" * DEEP, b"\x81\xa1x" * DEEP, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
                b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc1"],
    "raw": [b"", b"\x00" * DEEP],
    "frame": [b"\x91" * DEEP, b"\xdd\xff\xff\xff\xff", b"\x97" + b"\x91" * DEEP],
    "arrow": [b"\xff\xff\xff\xff" + b"\xff\xff\xff\x7f", b"\x00" * DEEP],
    "avro": [LONG, b"\x01" * 20, LONG * 20_000, b"\xff" * DEEP, b"\x02" + LONG, b"\x01" + LONG + LONG],
    "protobuf": [b"\x0a" + varint(HUGE), b"\x32" * DEEP, b"\x33" * DEEP, nested_proto(), b"\xff" * DEEP,
                 b"\x5b" * DEEP],
    "nested": [nested_proto(), b"\x0b" * DEEP],
}  # fmt: skip
HOSTILE["verbatim"] = HOSTILE["json"]


@pytest.mark.parametrize("name", NAMES)
def test_depth_and_claimed_lengths_cost_nothing(name: str, codecs: dict[str, RecordCodec]) -> None:
    values = HOSTILE[name]
    decode(codecs[name], *values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bad = decode(codecs[name], *values)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert set(bad) == set(range(len(values)))
    assert grown < 64 * 1024, f"{grown} KiB for values of {max(map(len, values))} bytes"


def test_a_path_does_not_follow_a_document_too_far(tmp_path: Path) -> None:
    codec = codec_of("json", "json", {"name": "m", "inputs": {"x": "a[*][*][*].b"}}, folder=tmp_path)
    values = [b'{"a":[[[{"b":1}]]]}', b'{"a":[1]}', b'{"a":{"b":[]}}', b"[]"]
    assert decode(codec, *values) == dict.fromkeys(range(4), "mapping")


def test_what_is_kept_as_it_is_has_been_looked_at(codecs: dict[str, RecordCodec]) -> None:
    """Bytes that no input needs would otherwise go on into the output."""
    assert decode(codecs["verbatim"], b'{"x":[1,2],"t":"\xff"}', b'{"x":[1,2],"t":"\xc3\xbc"}') == {
        0: "malformed"
    }
    fine = stream(pa.table({"x": pa.array([[1, 2]], FIXED), "t": ["ab"]}))
    offsets = (0).to_bytes(4, "little") + (2).to_bytes(4, "little")
    assert fine.count(offsets) >= 1
    start = fine.rindex(offsets)  # of the text; what comes before are lengths
    beyond = fine[: start + 4] + (2**31 - 1).to_bytes(4, "little") + fine[start + 8 :]
    assert decode(codecs["arrow"], fine, beyond, fine) == {1: "malformed"}
