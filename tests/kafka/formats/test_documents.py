"""Formats whose values are documents, on their own: JSON, MessagePack, Avro and Protobuf of a file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinfer.errors import ConfigError, SetupError
from qinfer_workers.kafka.codec import RecordCodec
from qinfer_workers.kafka.formats import protobuf_schema
from tests.kafka.formats.support import bad, codec_of, double, good, info, run, tensor

AVRO = {
    "type": "record",
    "name": "In",
    "namespace": "n",
    "fields": [
        {"name": "x", "type": {"type": "array", "items": "double"}},
        {"name": "id", "type": "long"},
        {"name": "text", "type": ["null", "string"], "default": None},
        {"name": "y", "type": ["null", {"type": "array", "items": "float"}], "default": None},
        {"name": "m", "type": {"type": "map", "values": "bytes"}, "default": {}},
    ],
}
PROTO = """\
syntax = "proto3";
package n;
message Other { string s = 1; }
message In {
  repeated double x = 1;
  int64 id = 2;
  optional string text = 3;
  repeated float y = 4;
  map<string, bytes> m = 5;
  repeated In.Inner inner = 6;
  Kind kind = 7;
  message Inner { bool flag = 1; uint32 n = 2; }
  enum Kind { NONE = 0; SOME = 5; }
}
"""

Sides = dict[str, tuple[Any, Callable[[Any], bytes], Callable[[bytes], Any]]]


@pytest.fixture(scope="session")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Schema files: `s.avsc`, `s.proto`, and the same as a set of descriptors, `s.binpb`."""
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "s.avsc").write_text(json.dumps(AVRO))
    (folder / "s.proto").write_text(PROTO)
    made = protobuf_schema.compile_file(folder / "s.proto")._file
    from google.protobuf import descriptor_pb2

    files = descriptor_pb2.FileDescriptorSet()
    made.CopyToProto(files.file.add())
    (folder / "s.binpb").write_bytes(files.SerializeToString())
    return folder


@pytest.fixture(scope="session")
def sides(schemas: Path) -> Sides:
    """Each format with what others write and read it with."""
    parsed = fastavro.parse_schema(AVRO)
    file = protobuf_schema.compile_file(schemas / "s.proto")
    described = file.find("n.In")
    assert described is not None

    def avro(document: Any) -> bytes:
        data = io.BytesIO()
        fastavro.schemaless_writer(data, parsed, document)
        return data.getvalue()

    def proto(document: Any) -> bytes:
        message: Any = file.new(described)
        message.x.extend(document["x"])
        message.id = document["id"]
        if document["text"] is not None:
            message.text = document["text"]
        for key, value in document["m"].items():
            message.m[key] = value
        return bytes(message.SerializeToString())

    def of_proto(value: bytes) -> Any:
        message: Any = file.new(described)
        message.ParseFromString(value)
        text = message.text if message.HasField("text") else None
        return {"x": [*message.x], "id": message.id, "text": text, "y": [*message.y], "m": dict(message.m)}

    avro_file = {"type": "avro", "schema_file": "s.avsc"}
    proto_file = {"type": "protobuf", "schema_file": "s.proto", "message": "n.In"}
    return {
        "json": ("json", json_of, msgspec.json.decode),
        "msgpack": ("msgpack", msgpack.packb, msgpack.unpackb),
        "avro": (avro_file, avro, lambda value: fastavro.schemaless_reader(io.BytesIO(value), parsed, None)),
        "protobuf": (proto_file, proto, of_proto),
        "descriptors": ({**proto_file, "schema_file": "s.binpb"}, proto, of_proto),
    }


def json_of(document: Any) -> bytes:
    return json.dumps(document, default=bytes.decode).encode()


NAMES = ("json", "msgpack", "avro", "protobuf", "descriptors")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
DOCUMENTS = st.fixed_dictionaries(
    {
        "x": st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=2),
        "id": st.integers(-(2**63), 2**63 - 1),
        "text": st.none() | TEXT,
        "m": st.dictionaries(TEXT, st.binary(max_size=4), max_size=3),
    }
)


@pytest.fixture(scope="session")
def codecs(sides: Sides, schemas: Path) -> dict[str, RecordCodec]:
    return {name: codec_of(sides[name][0], sides[name][0], keep="all", folder=schemas) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@given(documents=st.lists(DOCUMENTS, max_size=4))
def test_documents_come_back_with_their_outputs(
    name: str, documents: list[Any], sides: Sides, codecs: dict[str, RecordCodec]
) -> None:
    _, write, read = sides[name]
    if name == "json":
        documents = [{**document, "m": {}} for document in documents]
    outcomes = run(codecs[name], [write(document) for document in documents])
    for document, outcome in zip(documents, outcomes, strict=True):
        doubled = double({"x": np.array([document["x"]], "<f4")})["y"][0].tolist()
        assert read(good(outcome)) == {**document, "y": doubled}


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("output", NAMES)
def test_any_format_becomes_any_other(source: str, output: str, sides: Sides, schemas: Path) -> None:
    document = {"x": [1.0, 2.0], "id": 2**53 + 1, "text": "ü", "m": {}}
    codec = codec_of(sides[source][0], sides[output][0], keep=["id", "text", "x", "m"], folder=schemas)
    (outcome,) = run(codec, [sides[source][1](document)])
    assert sides[output][2](good(outcome)) == {**document, "y": [2, 4]}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_of_the_format_is_bad_and_its_neighbours_are_not(
    name: str, sides: Sides, codecs: dict[str, RecordCodec]
) -> None:
    _, write, read = sides[name]
    fine = write({"x": [1.0, 2.0], "id": 1, "text": "t", "m": {}})
    first, *broken, last = run(codecs[name], [fine, fine[:-1], fine + b"\xff", b"\xff" * 40, fine])
    assert read(good(first)) == read(good(last))
    assert all(bad(outcome).reason == "malformed" for outcome in broken), broken


def test_protobuf_messages_are_mappings(schemas: Path) -> None:
    described = {"type": "protobuf", "schema_file": "s.proto", "message": "In"}
    codec = codec_of("json", described, keep="all", folder=schemas)
    document = {
        "x": [1, 2],
        "inner": [{"flag": True, "n": 3}, {}],
        "kind": 5,
        "m": {"k": "v"},
        "text": None,
        "unknown": 1,
    }
    (outcome,) = run(codec, [msgspec.json.encode(document)])
    back = codec_of(described, "msgpack", keep="all", folder=schemas)
    (outcome,) = run(back, [good(outcome)])
    assert msgpack.unpackb(good(outcome)) == {
        "x": [1, 2],
        "id": 0,
        "y": [2, 4],
        "m": {"k": b"v"},
        "inner": [{"flag": True, "n": 3}, {"flag": False, "n": 0}],
        "kind": 5,
    }


@pytest.mark.parametrize(
    ("output", "document"),
    [
        ("avro", {"id": "text"}),
        ("avro", {}),
        ("avro", {"id": 2**63}),
        ("protobuf", {"id": "text"}),
        ("protobuf", {"id": True}),
        ("protobuf", {"id": 2**63}),
        ("protobuf", {"m": 5}),
        ("protobuf", {"text": ["a"]}),
        ("protobuf", {"inner": {"n": 1}}),
        ("protobuf", {"inner": [{"n": -1}]}),
        ("msgpack", {"id": 2**64}),
    ],
)
def test_what_does_not_fit_the_schema_is_bad(output: str, document: Any, sides: Sides, schemas: Path) -> None:
    codec = codec_of("json", sides[output][0], keep="all", folder=schemas)
    fine = {"x": [1, 2], "id": 1, "m": {}}
    values = [msgspec.json.encode(value) for value in (fine, {"x": [1, 2], **document}, fine)]
    first, second, third = run(codec, values)
    assert good(first) == good(third)
    assert bad(second).reason == "encode"
    assert "cannot be written" in second.message


def test_an_extension_of_messagepack_is_bad() -> None:
    value = msgpack.packb({"x": [1, 2], "e": msgpack.ExtType(5, b"abc")})
    (outcome,) = run(codec_of("msgpack"), [value])
    assert "extension type 5" in bad(outcome).message


def test_bytes_stay_bytes_where_the_format_has_them() -> None:
    spec = [tensor(name, "BYTES", (1,)) for name in "xy"]
    model = {"name": "m", "outputs": {"y": {"output": "y", "binary": True}}}
    codec = codec_of("msgpack", "msgpack", model, infos={"m": info("m", spec[:1], spec[1:])})
    (outcome,) = run(codec, [msgpack.packb({"x": b"\xff"})], lambda tensors: {"y": tensors["x"]})
    assert msgpack.unpackb(good(outcome)) == {"y": b"\xff"}


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ("{", "expected an Avro schema in JSON"),
        ('"none"', "type none is not defined"),
        ("[" * 200_000, "expected an Avro schema in JSON"),
        ('{"type":"array","items":' * 100 + '"int"' + "}" * 100, "nested deeper than 64"),
        ({"type": "array", "items": "null"}, "items without bytes"),
        ({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}, "items without bytes"),
        (
            {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]},
            "type L contains itself",
        ),
        (
            {
                "type": "record",
                "name": "a.L",
                "fields": [{"name": "next", "type": {"type": "array", "items": "a.L"}}],
            },
            "type a.L contains itself",
        ),
        ({"type": "fixed", "name": "F"}, "expected an Avro schema"),
        ("5", "found 5; expected an Avro type"),
    ],
)
def test_avro_schemas_that_are_not_taken(schema: Any, part: str, tmp_path: Path) -> None:
    (tmp_path / "s.avsc").write_text(schema if isinstance(schema, str) else json.dumps(schema))
    with pytest.raises(SetupError, match=part):
        codec_of({"type": "avro", "schema_file": "s.avsc"}, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "more", "part"),
    [
        ("s.proto", "message", {}, "expected a .proto file"),
        ("s.proto", PROTO, {}, r"several messages \(n.Other, n.In, n.In.Inner\)"),
        ("s.proto", PROTO, {"message": "n.Out"}, "no message n.Out"),
        ("s.proto", 'syntax = "proto3"; import "none.proto"; message A {}', {}, "none.proto"),
        ("s.binpb", "text", {}, "expected a set of descriptors"),
        ("s.binpb", "", {}, "found no file"),
    ],
)
def test_protobuf_schemas_that_are_not_taken(
    name: str, text: str, more: Any, part: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SetupError, match=part):
        codec_of({"type": "protobuf", "schema_file": name, **more}, folder=tmp_path)


def test_a_proto_file_imports_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.proto").write_text('syntax = "proto3"; package n; message A { repeated float x = 1; }')
    (tmp_path / "b.proto").write_text(
        'syntax = "proto3"; import "a.proto"; import "google/protobuf/timestamp.proto"; '
        "message B { n.A a = 1; google.protobuf.Timestamp t = 2; repeated float y = 3; }"
    )
    described = {"type": "protobuf", "schema_file": "b.proto"}
    codec = codec_of("json", described, keep="all", folder=tmp_path)
    (value,) = run(codec, [b'{"x":[1,2],"a":{"x":[3,4]},"t":{"seconds":5}}'])
    back = codec_of(described, "json", {"name": "m", "inputs": {"x": "a.x"}}, keep=["t"], folder=tmp_path)
    assert run(back, [good(value)]) == [b'{"t":{"seconds":5,"nanos":0},"y":[6.0,8.0]}']


@pytest.mark.parametrize(
    ("schema", "model", "part"),
    [
        ({**AVRO, "fields": AVRO["fields"][:2]}, {}, "no field y"),
        (AVRO, {"outputs": {"p.q": "y", "m.k": "y"}}, "no field p.q;"),
    ],
)
def test_a_schema_of_an_output_has_a_field_for_each(
    schema: Any, model: Any, part: str, tmp_path: Path
) -> None:
    (tmp_path / "s.avsc").write_text(json.dumps(schema))
    with pytest.raises(SetupError, match=part):
        codec_of("json", {"type": "avro", "schema_file": "s.avsc"}, {"name": "m", **model}, folder=tmp_path)


@pytest.mark.parametrize("kind", ["avro", "protobuf"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_format_with_schemas_needs_one(kind: str, side: int) -> None:
    formats: list[Any] = ["json", "json"]
    formats[side] = kind
    with pytest.raises(ConfigError, match=r"no schema_file and no schema_registry"):
        codec_of(*formats)
    formats[side] = {"type": kind, "registry": True}
    with pytest.raises(ConfigError, match="registry: true, but no schema_registry"):
        codec_of(*formats)
    formats[side] = {"type": kind, "schema_file": "none"}
    with pytest.raises(SetupError, match="none: cannot be read"):
        codec_of(*formats)
