"""What a pipeline's YAML may say, field by field; `qinfer kafka-score --schema` exports it as JSON Schema.

The types are the schema: names, defaults, bounds and descriptions are here and nowhere else.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from qinfer_workers.kafka.contract import Client, Delivery, Limits, Tombstones, Window

Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1000)]
Topic: TypeAlias = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]
Positive: TypeAlias = Annotated[int, Meta(ge=1)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=86_400)]
_CLIENT, _LIMITS, _WINDOW = Client(bootstrap=""), Limits(), Window()


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fields of a mapping of the file."""


# Formats


class Json(Settings, frozen=True, kw_only=True, tag="json", tag_field="type"):
    """Each value is a JSON document."""


class Msgpack(Settings, frozen=True, kw_only=True, tag="msgpack", tag_field="type"):
    """Each value is a MessagePack document."""


class Raw(Settings, frozen=True, kw_only=True, tag="raw", tag_field="type"):
    """Each value is one row of one tensor: its elements, little endian, row-major."""

    datatype: Annotated[str, Meta(description="of the elements; the model's own if left out")] = ""


class Frame(Settings, frozen=True, kw_only=True, tag="frame", tag_field="type"):
    """Each value is a frame of the protocol with one request; outputs are frames with one response."""


class Arrow(Settings, frozen=True, kw_only=True, tag="arrow", tag_field="type"):
    """Each value is an Arrow IPC stream: a table whose rows are scored."""


class WithSchema(Settings, frozen=True, kw_only=True):
    """What formats with a schema have in common."""

    schema_file: Annotated[str, Meta(description="the schema; with a registry it may be left out")] = ""
    registry: (
        Annotated[
            bool,
            Meta(description="values begin with their schema's id; the default with `schema_registry`"),
        ]
        | UnsetType
    ) = UNSET
    subject: Annotated[
        Literal["topic", "record", "topic-record"],
        Meta(description="what the schema of an output is registered under: `TOPIC-value`, RECORD, or both"),
    ] = "topic"
    register: Annotated[
        bool, Meta(description="register the schema of an output; else it has to be there already")
    ] = True


class Avro(WithSchema, frozen=True, kw_only=True, tag="avro", tag_field="type"):
    """Each value is an Avro datum. The file is an `.avsc`."""


class Protobuf(WithSchema, frozen=True, kw_only=True, tag="protobuf", tag_field="type"):
    """Each value is a Protobuf message. The file is a `.proto`, or a descriptor set that `protoc` made."""

    message: Annotated[
        str, Meta(description="full name of the message; needed where the schema has several")
    ] = ""


Format: TypeAlias = Json | Msgpack | Raw | Frame | Arrow | Avro | Protobuf
FormatName: TypeAlias = Literal["json", "msgpack", "raw", "frame", "arrow", "avro", "protobuf"]


# Topics


class Source(Settings, frozen=True, kw_only=True):
    """Where records come from."""

    topics: Annotated[Topic | list[Topic], Meta(description="one topic or several")]
    format: Annotated[
        FormatName | Format, Meta(description="its name, or a mapping with `type` and options")
    ] = "json"
    start: Annotated[
        Literal["earliest", "latest"], Meta(description="where a group without committed offsets begins")
    ] = "earliest"


class Output(Settings, frozen=True, kw_only=True):
    """Where scored records go, and what they hold."""

    topic: Topic
    format: Annotated[
        FormatName | Format, Meta(description="its name, or a mapping with `type` and options")
    ] = "json"
    keep: Annotated[
        Literal["all", "none"] | list[Text],
        Meta(description="fields of the input that the output has, too: all, none, or these"),
    ] = "none"
    into: Annotated[str, Meta(description="field that outputs of models are put into")] = ""


class DeadLetters(Settings, frozen=True, kw_only=True):
    """Where records go that cannot be scored."""

    topic: Topic


class CreateTopics(Settings, frozen=True, kw_only=True):
    """How the output and dead-letter topics are created where they are missing."""

    partitions: Annotated[Positive, Meta(description="of each")]
    replicas: Annotated[int, Meta(ge=-1, description="copies; -1 for as many as the first source has")] = -1


# Models


class InputSource(Settings, frozen=True, kw_only=True):
    """What an input of a model is made of: exactly one of `field`, `fields` and `value`."""

    field: Annotated[Text, Meta(description="path of the field")] | UnsetType = UNSET
    fields: (
        Annotated[
            list[Text],
            Meta(min_length=1, description="paths of fields with one value each, which make a vector"),
        ]
        | UnsetType
    ) = UNSET
    value: Annotated[Any, Meta(description="the same value for all records")] = UNSET
    default: Annotated[
        Any, Meta(description="stands in for a field that is missing or null; without it, that is an error")
    ] = UNSET
    base64: Annotated[bool, Meta(description="the field's texts are base64")] = False


class OutputSource(Settings, frozen=True, kw_only=True):
    """What a field of the output is made of."""

    output: Annotated[Text, Meta(description="name of the model's output")]
    select: (
        Annotated[
            Literal["argmax", "max", "label"],
            Meta(
                description="of the last dimension: place of the largest element, that element, or its label"
            ),
        ]
        | UnsetType
    ) = UNSET
    index: Annotated[int, Meta(ge=0, description="only this element of the last dimension")] | UnsetType = (
        UNSET
    )
    labels: Annotated[list[Text], Meta(description="names of the elements, for `label`")] | UnsetType = UNSET
    labels_file: Annotated[Text, Meta(description="file with a label a line")] | UnsetType = UNSET
    binary: Annotated[
        bool, Meta(description="BYTES are no text: written as bytes, or in base64 where there are none")
    ] = False


class Model(Settings, frozen=True, kw_only=True):
    """A model, what its inputs are made of, and what becomes of its outputs."""

    name: Text
    version: Annotated[str | int, Meta(description="the newest if left out")] = ""
    label: Annotated[str, Meta(description="its name within the pipeline, for one that is used twice")] = ""
    inputs: Annotated[
        dict[str, str | InputSource],
        Meta(description="by the model's input; one left out is the field of its name"),
    ] = {}
    outputs: (
        Annotated[
            dict[str, str | OutputSource],
            Meta(description="by the field of the output record; all, by their names, if left out"),
        ]
        | UnsetType
    ) = UNSET


# The way to the brokers and the schema registry


class Sasl(Settings, frozen=True, kw_only=True):
    """How the scorer proves to the brokers who it is."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
    username: str = ""
    password: Annotated[str, Meta(description="only as ${NAME}")] = ""
    password_file: str = ""
    token_file: Annotated[str, Meta(description="for OAUTHBEARER; read again for each connection")] = ""


class Tls(Settings, frozen=True, kw_only=True):
    """Files in PEM. An empty mapping asks for TLS with the system's authorities."""

    ca_file: Annotated[str, Meta(description="authorities that may vouch for the other side")] = ""
    cert_file: Annotated[str, Meta(description="our certificate")] = ""
    key_file: Annotated[str, Meta(description="its private key, if that is not in the same file")] = ""
    key_password: Annotated[str, Meta(description="only as ${NAME}")] = ""
    key_password_file: str = ""


class ClientOptions(Settings, frozen=True, kw_only=True):
    """Settings of aiokafka for every connection."""

    client_id: Text | UnsetType = UNSET
    request_timeout_ms: Positive | UnsetType = UNSET
    retry_backoff_ms: Positive | UnsetType = UNSET
    metadata_max_age_ms: Positive | UnsetType = UNSET
    connections_max_idle_ms: Positive | UnsetType = UNSET


class ConsumerOptions(Settings, frozen=True, kw_only=True):
    """Settings of aiokafka for reading."""

    fetch_max_bytes: Positive | UnsetType = UNSET
    fetch_min_bytes: Positive | UnsetType = UNSET
    fetch_max_wait_ms: Positive | UnsetType = UNSET
    max_partition_fetch_bytes: Positive | UnsetType = UNSET
    check_crcs: bool | UnsetType = UNSET
    group_instance_id: Text | UnsetType = UNSET
    client_rack: Text | UnsetType = UNSET


class ProducerOptions(Settings, frozen=True, kw_only=True):
    """Settings of aiokafka for writing."""

    compression_type: Literal["gzip", "snappy", "lz4", "zstd"] | UnsetType = UNSET
    linger_ms: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    max_request_size: Positive | UnsetType = UNSET


class Kafka(Settings, frozen=True, kw_only=True):
    """How to reach the brokers."""

    bootstrap: Annotated[str, Meta(pattern=r"^[^:,\s]*[^,\s]*:[0-9]+(,[^,\s]+:[0-9]+)*$")]
    sasl: Sasl | None = None
    tls: Tls | None = None
    session_timeout: Annotated[
        Seconds, Meta(description="seconds without a heartbeat after which partitions go to others")
    ] = _CLIENT.session_timeout
    transaction_timeout: Annotated[
        Seconds, Meta(description="seconds after which brokers abort a transaction that nobody ends")
    ] = _CLIENT.transaction_timeout
    options: ClientOptions = ClientOptions()
    consumer: ConsumerOptions = ConsumerOptions()
    producer: ProducerOptions = ProducerOptions()


class SchemaRegistry(Settings, frozen=True, kw_only=True):
    """Where schemas are: any registry with the REST interface of Confluent's."""

    url: Annotated[str, Meta(pattern="^https?://[^ ]+$")]
    username: str = ""
    password: Annotated[str, Meta(description="only as ${NAME}")] = ""
    password_file: Annotated[str, Meta(description="file with it; read again for each request")] = ""
    token: Annotated[str, Meta(description="bearer token, instead of a user; only as ${NAME}")] = ""
    token_file: Annotated[str, Meta(description="file with it; read again for each request")] = ""
    tls: Tls = Tls()
    timeout: Annotated[Seconds, Meta(description="seconds a request may take")] = 10.0


# The whole


class WindowSettings(Settings, frozen=True, kw_only=True):
    """When a group of records is scored; the first condition that holds closes it."""

    max_rows: Annotated[int, Meta(ge=1, le=100_000)] = _WINDOW.max_rows
    max_delay_ms: Annotated[float, Meta(ge=0, le=60_000)] = _WINDOW.max_delay_ms


class LimitSettings(Settings, frozen=True, kw_only=True):
    """Bounds of memory and time."""

    max_record_bytes: Annotated[int, Meta(ge=1, le=2**30)] = _LIMITS.max_record_bytes
    max_in_flight: Positive = _LIMITS.max_in_flight
    max_in_flight_bytes: Positive = _LIMITS.max_in_flight_bytes
    commit_interval_ms: Annotated[float, Meta(gt=0, le=600_000)] = _LIMITS.commit_interval_ms
    commit_rows: Positive = _LIMITS.commit_rows
    score_timeout: Seconds = _LIMITS.score_timeout
    drain_timeout: Seconds = _LIMITS.drain_timeout


class PipelineSettings(Settings, frozen=True, kw_only=True):
    """A pipeline of `qinfer kafka-score`: a topic in, models, a topic out."""

    group: Annotated[Text, Meta(description="consumer group; a pipeline has one of its own")]
    source: Source
    output: Output
    kafka: Kafka
    models: Annotated[list[Model], Meta(min_length=1, max_length=64)]
    dead_letters: Annotated[
        DeadLetters | None,
        Meta(
            description="where what cannot be scored goes; without it the first such record stops the scorer"
        ),
    ] = None
    delivery: Delivery = "at-least-once"
    tombstones: Annotated[
        Tombstones, Meta(description="records without a value are passed on, or dropped")
    ] = "pass"
    fleet: Annotated[
        str,
        Meta(description="URL of the broker or gateway of a fleet that scores; instead of `repositories`"),
    ] = ""
    repositories: Annotated[
        list[Text], Meta(description="model repositories to score from in this process; instead of `fleet`")
    ] = []
    create_topics: CreateTopics | None = None
    window: WindowSettings = WindowSettings()
    limits: LimitSettings = LimitSettings()
    schema_registry: SchemaRegistry | None = None


_INDEXED = re.compile(r"(.+)\[([0-9]{1,9})\]")


def output_source(given: str | OutputSource) -> OutputSource:
    """What a field of the output is made of, also where only a name or `NAME[INDEX]` is given."""
    if not isinstance(given, str):
        return given
    found = _INDEXED.fullmatch(given)
    if found is None:
        return OutputSource(output=given)
    return OutputSource(output=found[1], index=int(found[2]))


def input_source(given: str | InputSource) -> InputSource:
    """What an input is made of, also where only a path is given."""
    return InputSource(field=given) if isinstance(given, str) else given


def label_of(model: Model) -> str:
    """What a model is called within its pipeline."""
    return model.label or model.name


def format_of(given: FormatName | Format) -> Format:
    """A format, also where only its name is given."""
    return given if not isinstance(given, str) else msgspec.convert({"type": given}, Format)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the file, for editors and checks."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **msgspec.json.schema(PipelineSettings),
    }
