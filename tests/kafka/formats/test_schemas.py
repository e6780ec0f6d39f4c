"""Records whose schemas are in a registry."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import fastavro
import pytest

from qinfer.errors import SetupError, Unavailable
from qinfer_workers.kafka.codec import RecordCodec
from qinfer_workers.kafka.contract import BadRecord
from qinfer_workers.kafka.formats import protobuf_schema, schemas
from qinfer_workers.kafka.registry import wire
from tests.kafka.formats.registry import FakeRegistry, running
from tests.kafka.formats.support import Record, bad, codec_of, good, run

IN = {
    "type": "record",
    "name": "n.In",
    "fields": [{"name": "x", "type": {"type": "array", "items": "float"}}],
}
OUT = {
    "type": "record",
    "name": "n.Out",
    "fields": [{"name": "y", "type": {"type": "array", "items": "float"}}],
}
PROTO = """\
syntax = "proto3";
package n;
message First { string s = 1; }
message Second {
  message Inner { repeated float x = 1; repeated float y = 2; }
}
"""


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    async with running() as registry:
        yield registry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.avsc").write_text(json.dumps(IN))
    (tmp_path / "out.avsc").write_text(json.dumps(OUT))
    (tmp_path / "s.proto").write_text(PROTO)
    return tmp_path


async def started(
    fake: FakeRegistry, folder: Path, source: Any, output: Any = "json", **more: Any
) -> RecordCodec:
    codec = codec_of(source, output, folder=folder, schema_registry={"url": fake.url}, **more)
    await codec.start()
    return codec


async def outcomes(codec: RecordCodec, values: Sequence[bytes]) -> list[bytes | BadRecord]:
    await codec.prepare([Record(value) for value in values])
    return run(codec, values)


def avro(number: int, schema: Any, document: Any) -> bytes:
    data = io.BytesIO(wire.header(number))
    data.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(data, fastavro.parse_schema(schema), document)
    return data.getvalue()


def read_avro(value: bytes, schema: Any) -> Any:
    return fastavro.schemaless_reader(
        io.BytesIO(value[wire.HEADER_BYTES :]), fastavro.parse_schema(schema), None
    )


async def test_each_record_is_read_with_its_own_schema(fake: FakeRegistry, folder: Path) -> None:
    older = {**IN, "fields": [{"name": "id", "type": "string"}, *IN["fields"]]}
    numbers = [fake.add(json.dumps(schema)) for schema in (IN, older)]
    codec = await started(fake, folder, "avro")
    values = [
        avro(numbers[0], IN, {"x": [1, 2]}),
        avro(numbers[1], older, {"id": "a", "x": [3, 4]}),
        avro(numbers[0], IN, {"x": [5, 6]}),
    ]
    assert await outcomes(codec, values) == [b'{"y":[2.0,4.0]}', b'{"y":[6.0,8.0]}', b'{"y":[10.0,12.0]}']
    assert len(fake.asked) == 2
    await outcomes(codec, values)
    assert len(fake.asked) == 2
    await codec.close()


async def test_records_are_resolved_to_the_schema_of_a_file(fake: FakeRegistry, folder: Path) -> None:
    newer = {**IN, "fields": [*IN["fields"], {"name": "k", "type": "int", "default": 7}]}
    (folder / "newer.avsc").write_text(json.dumps(newer))
    number = fake.add(json.dumps(IN))
    codec = await started(fake, folder, {"type": "avro", "schema_file": "newer.avsc"}, keep="all")
    (outcome,) = await outcomes(codec, [avro(number, IN, {"x": [1, 2]})])
    assert outcome == b'{"x":[1.0,2.0],"k":7,"y":[2.0,4.0]}'
    await codec.close()


async def test_a_schema_of_several_parts_is_put_together(fake: FakeRegistry, folder: Path) -> None:
    part = {"type": "array", "items": "float"}
    inner = {"type": "record", "name": "n.Part", "fields": [{"name": "v", "type": part}]}
    outer = {"type": "record", "name": "n.In", "fields": [{"name": "p", "type": "n.Part"}]}
    fake.add(json.dumps(inner), subject="part")
    references = [{"name": "n.Part", "subject": "part", "version": 1}]
    number = fake.add(json.dumps(outer), references=references)
    whole = {**outer, "fields": [{"name": "p", "type": inner}]}
    codec = codec_of(
        "avro",
        "json",
        {"name": "m", "inputs": {"x": "p.v"}},
        folder=folder,
        schema_registry={"url": fake.url},
    )
    await codec.start()
    assert await outcomes(codec, [avro(number, whole, {"p": {"v": [1, 2]}})]) == [b'{"y":[2.0,4.0]}']
    await codec.close()


async def test_records_of_schemas_that_cannot_be_had_are_bad(fake: FakeRegistry, folder: Path) -> None:
    fine = fake.add(json.dumps(IN))
    numbers = {
        "not at": 5,
        "of type PROTOBUF": fake.add(PROTO, "PROTOBUF"),
        "contains itself": fake.add(
            '{"type":"record","name":"L","fields":[{"name":"n","type":["null","L"]}]}'
        ),
        "expected an Avro schema in JSON": fake.add("{"),
    }
    codec = await started(fake, folder, "avro")
    value = avro(fine, IN, {"x": [1, 2]})
    broken = [avro(number, IN, {"x": [1, 2]}) for number in numbers.values()]
    first, *rest, last = await outcomes(codec, [value, *broken, value])
    assert first == last == b'{"y":[2.0,4.0]}'
    assert [
        (bad(outcome).reason, part in bad(outcome).message)
        for part, outcome in zip(numbers, rest, strict=True)
    ] == [("schema", True)] * 4
    await codec.close()


@pytest.mark.parametrize("value", [b"", b"\x00\x00\x00", b'{"x":[1,2]}', b"\x01\x00\x00\x00\x05abc"])
async def test_a_record_that_names_no_schema_is_bad(value: bytes, fake: FakeRegistry, folder: Path) -> None:
    codec = await started(fake, folder, "avro")
    (outcome,) = await outcomes(codec, [value])
    assert bad(outcome).reason == "malformed"
    assert "id of a schema" in bad(outcome).message
    assert fake.asked == []
    await codec.close()


async def test_a_registry_that_is_away_is_no_fault_of_records(fake: FakeRegistry, folder: Path) -> None:
    number = fake.add(json.dumps(IN))
    codec = await started(fake, folder, "avro")
    value = avro(number, IN, {"x": [1, 2]})
    fake.status = 503
    with pytest.raises(Unavailable):
        await codec.prepare([Record(value)])
    fake.status = 0
    assert await outcomes(codec, [value]) == [b'{"y":[2.0,4.0]}']
    fake.status = 503  # what is known needs nobody
    assert await outcomes(codec, [value]) == [b'{"y":[2.0,4.0]}']
    await codec.close()


async def test_schemas_that_are_kept_are_bounded(
    fake: FakeRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas, "MAX_SCHEMAS", 3)
    versions = [{**IN, "doc": str(place)} for place in range(8)]
    numbers = [fake.add(json.dumps(version)) for version in versions]
    codec = await started(fake, folder, "avro")
    for number in numbers:
        (outcome,) = await outcomes(codec, [avro(number, IN, {"x": [1, 2]})])
        assert outcome == b'{"y":[2.0,4.0]}'
    assert len(codec._reader._schemas) <= 4  # type: ignore[attr-defined]
    values = [avro(number, IN, {"x": [1, 2]}) for number in numbers]
    assert await outcomes(codec, values) == [b'{"y":[2.0,4.0]}'] * 8
    await codec.close()


@pytest.mark.parametrize(
    ("subject", "name"), [("topic", "out-value"), ("record", "n.Out"), ("topic-record", "out-n.Out")]
)
async def test_the_schema_of_an_output_is_registered(
    subject: str, name: str, fake: FakeRegistry, folder: Path
) -> None:
    output = {"type": "avro", "schema_file": "out.avsc", "subject": subject}
    codec = await started(fake, folder, "json", output)
    (number,) = fake.subjects[name]
    (outcome,) = await outcomes(codec, [b'{"x":[1,2]}'])
    assert wire.schema_id(good(outcome)) == number
    assert read_avro(good(outcome), OUT) == {"y": [2, 4]}
    await codec.close()


async def test_a_schema_may_have_to_be_there_already(fake: FakeRegistry, folder: Path) -> None:
    output = {"type": "avro", "schema_file": "out.avsc", "register": False}
    with pytest.raises(SetupError, match="subject 'out-value': 404"):
        await started(fake, folder, "json", output)
    assert fake.subjects == {}
    number = fake.add(json.dumps(OUT), subject="out-value")
    codec = await started(fake, folder, "json", output)
    (outcome,) = await outcomes(codec, [b'{"x":[1,2]}'])
    assert wire.schema_id(good(outcome)) == number
    await codec.close()


async def test_without_a_file_the_newest_schema_of_the_topic_is_used(
    fake: FakeRegistry, folder: Path
) -> None:
    with pytest.raises(SetupError, match="'out-value': 404: Subject 'out-value' not found"):
        await started(fake, folder, "json", "avro")
    fake.add(json.dumps(IN), subject="out-value")
    with pytest.raises(SetupError, match="subject 'out-value': no field y"):
        await started(fake, folder, "json", "avro")
    number = fake.add(json.dumps(OUT), subject="out-value")
    codec = await started(fake, folder, "json", "avro")
    (outcome,) = await outcomes(codec, [b'{"x":[1,2]}'])
    assert (wire.schema_id(good(outcome)), read_avro(good(outcome), OUT)) == (number, {"y": [2, 4]})
    await codec.close()


async def test_an_incompatible_schema_stops_the_start(fake: FakeRegistry, folder: Path) -> None:
    fake.incompatible.add("out-value")
    with pytest.raises(SetupError, match="incompatible with an earlier schema"):
        await started(fake, folder, "json", {"type": "avro", "schema_file": "out.avsc"})


async def test_a_registry_may_be_only_for_one_side(fake: FakeRegistry, folder: Path) -> None:
    plain = {"type": "avro", "schema_file": "in.avsc", "registry": False}
    codec = await started(fake, folder, plain, {"type": "avro", "schema_file": "out.avsc"})
    value = avro(1, IN, {"x": [1, 2]})[wire.HEADER_BYTES :]
    (outcome,) = await outcomes(codec, [value])
    assert wire.schema_id(good(outcome)) in fake.schemas
    await codec.close()


async def test_protobuf_messages_say_which_of_the_file_they_are(fake: FakeRegistry, folder: Path) -> None:
    described = {"type": "protobuf", "schema_file": "s.proto", "message": "n.Second.Inner"}
    codec = await started(fake, folder, "json", described)
    (outcome,) = await outcomes(codec, [b'{"x":[1,2]}'])
    (number,) = fake.subjects["out-value"]
    assert good(outcome).startswith(wire.header(number) + b"\x04\x02\x00")
    assert fake.schemas[number]["schemaType"] == "PROTOBUF"
    await codec.close()
    codec = codec_of(
        "protobuf",
        "json",
        {"name": "m", "inputs": {"x": "y"}},
        schema_registry={"url": fake.url},
    )
    await codec.start()
    wrong = wire.header(number) + wire.write_indexes([5]) + b""
    scored, other, cut = await outcomes(codec, [good(outcome), wrong, wire.header(number)])
    assert scored == b'{"y":[4.0,8.0]}'
    assert "message indexes [5]" in bad(other).message
    assert bad(cut).reason == "malformed"
    await codec.close()


async def test_protobuf_schemas_of_several_files(fake: FakeRegistry, folder: Path) -> None:
    fake.add('syntax = "proto3"; package n; message P { repeated float v = 1; }', "PROTOBUF", "part")
    text = 'syntax = "proto3"; import "n/part.proto"; message Q { n.P p = 1; }'
    references = [{"name": "n/part.proto", "subject": "part", "version": 1}]
    number = fake.add(text, "PROTOBUF", references=references)
    outside = [{"name": "../part.proto", "subject": "part", "version": 1}]
    evil = fake.add(text, "PROTOBUF", references=outside)
    codec = codec_of(
        "protobuf",
        "json",
        {"name": "m", "inputs": {"x": "p.v"}},
        schema_registry={"url": fake.url},
    )
    await codec.start()
    message = b"\x00\x0a\x0a\x0a\x08\x00\x00\x80\x3f\x00\x00\x00\x40"
    scored, refused = await outcomes(codec, [wire.header(number) + message, wire.header(evil) + message])
    assert scored == b'{"y":[2.0,4.0]}'
    assert "expected a relative name" in bad(refused).message
    await codec.close()


def test_a_message_is_found_by_its_path() -> None:
    file = protobuf_schema.compile_text(PROTO)
    for name, path in {"n.First": (0,), "n.Second": (1,), "n.Second.Inner": (1, 0)}.items():
        message = file.find(name)
        assert message is not None
        assert file.indexes(message) == path
        assert file.at(path).full_name == name
    with pytest.raises(ValueError, match="message indexes"):
        file.at((0, 0))
