"""What a pipeline's file may say, and what is said of one that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from jsonschema_rs import validator_for

from qinfer.errors import ConfigError, QInferError, SetupError
from qinfer_workers.kafka import document, pipeline
from qinfer_workers.kafka.contract import Limits, ModelUse, Topics, Window
from qinfer_workers.kafka.settings import json_schema
from tests.kafka.formats.support import info, pipeline_of, settings_of

SMALL = """\
group: g
source: {topics: in}
output: {topic: out}
kafka: {bootstrap: "localhost:9092"}
repositories: [models]
models: [{name: m}]
"""


def parse(
    text: str, environment: dict[str, str] | None = None, folder: Path = Path()
) -> pipeline.ScoringPipeline:
    return pipeline.parse(text, folder=folder, environment=environment or {})


def message_of(text: str, environment: dict[str, str] | None = None, folder: Path = Path()) -> str:
    with pytest.raises(QInferError) as caught:
        parse(text, environment, folder)
    return caught.value.message


def test_a_small_one_has_defaults() -> None:
    read = parse(SMALL)
    assert (read.group, read.delivery, read.tombstones, read.start) == (
        "g",
        "at-least-once",
        "pass",
        "earliest",
    )
    assert read.topics == Topics(sources=("in",), output="out", dead="")
    assert read.models == (ModelUse(label="m", name="m"),)
    assert read.repositories == (Path("models"),)
    assert (read.window, read.limits) == (Window(), Limits())
    assert dict(read.client.options) == {}


def test_a_large_one_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    (tmp_path / "p.yaml").write_text(
        """
group: fraud
source: {topics: [a, b.c], format: {type: raw, datatype: INT8}, start: latest}
output: {topic: out, keep: none}
dead_letters: {topic: dead}
create_topics: {partitions: 6, replicas: 3}
delivery: exactly-once
tombstones: drop
fleet: nats://${USER_}:${PASSWORD_}@${HOST:-broker}:4222
models:
  - {name: m, version: 3, label: old, outputs: {s: "y[1]", t: {output: y, select: max}, u: z}}
  - {name: m}
window: {max_rows: "${ROWS}", max_delay_ms: 2.5}
limits: {max_record_bytes: 1000, commit_rows: 7}
kafka:
  bootstrap: h1:9093,h2:9093
  sasl: {mechanism: SCRAM-SHA-512, username: u, password_file: password}
  tls: {ca_file: ca.pem, cert_file: /etc/cert.pem, key_password: "${KEY}"}
  session_timeout: 30
  options: {client_id: scorer}
  consumer: {fetch_max_bytes: 1000}
  producer: {compression_type: zstd}
"""
    )
    read = pipeline.read(
        tmp_path / "p.yaml", {"USER_": "u", "PASSWORD_": "p", "ROWS": "64", "KEY": "0123", "HOST": "h"}
    )
    assert read.topics == Topics(sources=("a", "b.c"), output="out", dead="dead", create=6, replicas=3)
    assert (read.delivery, read.tombstones, read.start) == ("exactly-once", "drop", "latest")
    assert read.fleet == "nats://u:p@h:4222"
    assert read.models == (
        ModelUse(label="old", name="m", version="3", outputs=("y", "z")),
        ModelUse(label="m", name="m"),
    )
    assert read.window == Window(max_rows=64, max_delay_ms=2.5)
    assert (read.limits.max_record_bytes, read.limits.commit_rows) == (1000, 7)
    client = read.client
    assert client.bootstrap == "h1:9093,h2:9093"
    assert dict(client.options) == {
        "client_id": "scorer",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "s3cret",
    }
    assert (client.ca_file, client.cert_file) == (str(tmp_path / "ca.pem"), "/etc/cert.pem")
    assert client.key_password == "0123"
    assert dict(client.consumer) == {"fetch_max_bytes": 1000}
    assert dict(client.producer) == {"compression_type": "zstd"}
    assert client.session_timeout == 30
    assert "s3cret" not in repr(read)
    assert "0123" not in repr(read)
    assert "u:p@" not in repr(read)


@pytest.mark.parametrize(
    ("sasl", "tls", "protocol"),
    [(False, False, None), (True, False, "SASL_PLAINTEXT"), (False, True, "SSL"), (True, True, "SASL_SSL")],
)
def test_the_protocol_follows_from_what_is_given(sasl: bool, tls: bool, protocol: str | None) -> None:
    kafka: dict[str, Any] = {"bootstrap": "h:1"}
    if sasl:
        kafka["sasl"] = {"mechanism": "PLAIN", "username": "u", "password": "${P}"}
    if tls:
        kafka["tls"] = {}
    text = yaml.safe_dump(settings_of(kafka=kafka))
    assert parse(text, {"P": "p"}).client.options.get("security_protocol") == protocol


async def test_a_token_is_read_again_for_each_connection(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first")
    kafka = {"bootstrap": "h:1", "sasl": {"mechanism": "OAUTHBEARER", "token_file": "token"}, "tls": {}}
    read = pipeline_of(settings_of(kafka=kafka), tmp_path)
    provider = read.client.options["sasl_oauth_token_provider"]
    assert await provider.token() == "first"
    (tmp_path / "token").write_text("second\n")
    assert await provider.token() == "second"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"windw": {}}, "windw: no such field; expected window"),
        ({"window": {"max_row": 1}}, "window.max_row: no such field; expected max_rows"),
        ({"window": {"max_rows": 0}}, "window.max_rows: found 0; expected an integer >= 1"),
        ({"window": {"max_rows": "many"}}, "window.max_rows: found many; expected an integer"),
        ({"delivery": "exactly_once"}, "delivery: found exactly_once; expected"),
        ({"group": ""}, "group: found ; expected text of length >= 1"),
        ({"source": {"topics": "a b"}}, "source.topics: found a b; expected"),
        ({"source": {"topics": ["in", "in"]}}, "source.topics: found in twice"),
        ({"source": {"topics": []}}, "source.topics: found none"),
        ({"source": {}}, "source.topics: missing"),
        ({"source": {"topics": "in", "format": "xml"}}, "source.format: found xml; expected"),
        ({"source": {"topics": "in", "format": {"type": "xml"}}}, "source.format.type: found xml; expected"),
        (
            {"source": {"topics": "in", "format": {"type": "avro", "schema": "x"}}},
            "source.format.schema: no such field; expected schema_file",
        ),
        ({"output": {"topic": "in"}}, "output.topic: found in, which is a source"),
        ({"dead_letters": {"topic": "out"}}, "dead_letters.topic: found out, which is the output"),
        ({"models": []}, "models: found a list; expected a list of length >= 1"),
        ({"models": [{"name": "m"}, {"name": "m"}]}, "models[1].label: found m a second time"),
        ({"models": [{"name": "m", "version": "new"}]}, "models[0].version: found new; expected a decimal"),
        ({"models": [{"nam": "m"}]}, "models[0].nam: no such field; expected name"),
        (
            {"models": [{"name": "m", "inputs": {"x": {"feld": "a"}}}]},
            "models[0].inputs.x.feld: no such field; expected field",
        ),
        (
            {"models": [{"name": "m", "inputs": {"a": "b", "x": 5}}]},
            "models[0].inputs.x: found 5; expected text or a mapping",
        ),
        ({"fleet": "nats://h:1"}, "fleet: found both of fleet and repositories"),
        ({"repositories": []}, "fleet: found neither of fleet and repositories"),
        ({"kafka": {"bootstrap": "h"}}, "kafka.bootstrap: found h; expected"),
        (
            {"kafka": {"bootstrap": "h:1", "sasl": {"mechanism": "PLAIN"}}},
            "kafka.sasl: expected username and",
        ),
        (
            {"kafka": {"bootstrap": "h:1", "sasl": {"mechanism": "OAUTHBEARER"}}},
            "kafka.sasl.token_file: missing",
        ),
        (
            {"kafka": {"bootstrap": "h:1", "tls": {"key_file": "k"}}},
            "kafka.tls.key_file: given without cert_file",
        ),
        (
            {"delivery": "exactly-once", "limits": {"commit_interval_ms": 60_000}},
            "limits.commit_interval_ms: found 60 s; expected less than kafka.transaction_timeout",
        ),
        (
            {"kafka": {"bootstrap": "h:1", "consumer": {"group_id": "x"}}},
            "kafka.consumer.group_id: no such field; expected group_instance_id",
        ),
        (
            {"schema_registry": {"url": "http://h", "username": "u", "token_file": "t"}},
            "schema_registry.token: given beside username",
        ),
        ({"schema_registry": {"url": "h:8081"}}, "schema_registry.url: found h:8081; expected"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(change: dict[str, Any], expected: str) -> None:
    text = yaml.safe_dump({**settings_of(), **change}, sort_keys=False)
    said = message_of(text)
    assert any(
        line.startswith("pipeline.yaml: ") and expected in line and line.split(": ")[1].count(":") == 1
        for line in said.splitlines()
    ), said


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = message_of(
        SMALL.replace("topic: out", 'topic: "a b"').replace("group: g", "grup: g") + "windw: 1\n"
    )
    assert [line.split(": ")[2] for line in said.splitlines()] == ["grup", "group", "output.topic", "windw"]


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (
            "kafka: {bootstrap: 'h:1', sasl: {mechanism: PLAIN, username: u, password: %s}}",
            "kafka.sasl.password",
        ),
        ("kafka: {bootstrap: 'h:1', tls: {key_password: %s}}", "kafka.tls.key_password"),
        ("schema_registry: {url: 'http://h', username: u, password: %s}", "schema_registry.password"),
        ("schema_registry: {url: 'http://h', token: %s}", "schema_registry.token"),
        ("fleet: 'nats://u:%s@h:1'", "fleet"),
        ("schema_registry: {url: 'http://u:%s@h'}", "schema_registry.url"),
    ],
)
@pytest.mark.parametrize("secret", ["hunter2", "${P:-hunter2}", "hunter2${P}"])
def test_a_secret_in_the_file_is_refused_and_not_shown(section: str, field: str, secret: str) -> None:
    text = (
        SMALL.replace('kafka: {bootstrap: "localhost:9092"}\n', "") if section.startswith("kafka") else SMALL
    )
    text = text.replace("repositories: [models]\n", "") if section.startswith("fleet") else text
    said = message_of(text + section % (secret if "%s@" in section else f"'{secret}'"), {"P": "p"})
    assert f"{field}: found a " in said
    assert "${NAME}" in said
    assert "hunter2" not in said
    parse(
        text + section.replace("%s", "'${P}'" if field not in ("fleet", "schema_registry.url") else "${P}"),
        {"P": "p"},
    )


def test_a_secret_is_given_once(tmp_path: Path) -> None:
    sasl = "{mechanism: PLAIN, username: u, password: '${P}', password_file: f}"
    text = SMALL.replace('"localhost:9092"', f'"h:1", sasl: {sasl}')
    assert "kafka.sasl.password: given beside password_file" in message_of(text, {"P": "p"})
    text = text.replace("password: '${P}', ", "")
    assert f"{tmp_path / 'f'}: cannot be read" in message_of(text, folder=tmp_path)
    (tmp_path / "f").write_text("\n")
    assert "expected a secret of 1 to" in message_of(text, folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "a"),
        ("x${A}y${B:-b}", "xayb"),
        ("${B:-}", ""),
        ("$${A}", "${A}"),
        ("$A", "$A"),
    ],
)
def test_references_to_the_environment(text: str, expected: str) -> None:
    assert document.parse(f"k: '{text}'", "f", {"A": "a"}).root == {"k": expected}


def test_a_reference_to_what_is_not_there_is_a_fault() -> None:
    assert "1:1: group: environment variable NONE is not set" in message_of(
        SMALL.replace("group: g", "group: ${NONE}")
    )
    assert "expected ${NAME}" in message_of(SMALL.replace("group: g", "group: ${A B}"))


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = "[no, on, 010, 0x10, 1_000, 12:30:00, 2001-01-01, true, 1.5, -3, ~, 'true', 1e3]"
    assert document.parse(text, "f", {}).root == [
        *("no", "on", "010", "0x10", "1_000", "12:30:00", "2001-01-01"),
        *(True, 1.5, -3, None, "true", 1000.0),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "group: missing"),
        ("[1", "expected YAML"),
        ("a: b: c", "expected YAML"),
        ("- 1", "found a list; expected a mapping"),
        ("group: g\ngroup: h", "2:1: group: given twice"),
        ("? [1]\n: 2", "found a list or mapping as a key"),
        ("[" * 10_000, "nested too deeply"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{y}: &{y} [{','.join([f'*{x}'] * 10)}]\n" for x, y in zip("abcdef", "bcdefg", strict=True)
            ),
            "more than 100000 values",
        ),
    ],
)
def test_what_is_no_pipeline_is_refused(text: str, expected: str) -> None:
    assert expected in message_of(text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"none\.yaml: cannot be read"):
        pipeline.read(tmp_path / "none.yaml", {})
    (tmp_path / "binary.yaml").write_bytes(b"\xff")
    with pytest.raises(SetupError, match="expected YAML in UTF-8"):
        pipeline.read(tmp_path / "binary.yaml", {})


def test_the_json_schema_takes_what_is_read_and_refuses_what_is_not() -> None:
    schema = json_schema()
    check = validator_for(schema)
    assert check.is_valid(yaml.safe_load(SMALL))
    assert check.is_valid(settings_of({"type": "avro", "schema_file": "s.avsc"}, "protobuf", keep=["a"]))
    for wrong in (
        {"windw": 1},
        {"delivery": "often"},
        {"models": []},
        {"source": {"topics": "in", "format": "xml"}},
    ):
        assert not check.is_valid({**settings_of(), **wrong}), wrong
    described = [
        (name, field)
        for name, found in schema["$defs"].items()
        if found.get("type") == "object"
        for field in found["properties"]
    ]
    assert ("PipelineSettings", "dead_letters") in described
    assert msgspec.json.encode(schema)


def test_a_codec_needs_no_more_than_the_file_says(tmp_path: Path) -> None:
    read = pipeline_of(settings_of(keep="all"), tmp_path)
    with pytest.raises(ConfigError, match="models: "):
        read.codec({"m": info("m", outputs=[])})
