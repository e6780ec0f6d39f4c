"""The seam between the engine, which moves records, and the codec, which knows what a record means.

The engine reads records, groups them, has models score them, writes and commits. A codec turns records into
the inputs of models and the outputs into the values that are written. Both work on whole groups: a Python
call for each record is what makes stream scoring slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from qinfer.client.base import ModelInfo
from qinfer.datatypes import Array

Headers: TypeAlias = "Sequence[tuple[str, bytes]]"


class Record(Protocol):
    """A record as it was read; that of aiokafka fits. Tombstones (value None) never come to a codec."""

    @property
    def topic(self) -> str: ...

    @property
    def partition(self) -> int: ...

    @property
    def offset(self) -> int: ...

    @property
    def timestamp(self) -> int:
        """Unix milliseconds of whoever wrote it."""

    @property
    def key(self) -> bytes | None: ...

    @property
    def value(self) -> bytes | None: ...

    @property
    def headers(self) -> Headers: ...


@dataclass(frozen=True, slots=True)
class BadRecord:
    """Why a record goes to the dead letters.

    Attributes:
        reason: one machine-readable word: "malformed" (not of the format), "schema" (of another schema, or an
            unknown one), "mapping" (a field is missing or does not fit the model's input), "too_large" (it is
            above a limit, or its output is), "encode" (its output cannot be written in the output format); or
            the `reason` of an error of `qinfer.errors`.
        message: what was wrong, what was expected, and where, for a person to read.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs of some records of a group for one model, or its outputs, stacked.

    Attributes:
        places: the records, as indices into the group, ascending.
        tensors: arrays by name as `qinfer.datatypes` has them. With a batch dimension the first one
            counts the rows of all records, in the order of `places`. A model without one (`max_batch_size` 0)
            gets a `Rows` for each record.
        counts: rows of each record; None when each has one.
    """

    places: Sequence[int]
    tensors: Mapping[str, Array]
    counts: Sequence[int] | None = None


@dataclass(slots=True)
class Decoded:
    """What a codec has made of a group of records.

    Attributes:
        inputs: for each model of the pipeline, by its `ModelUse.label`, the rows to score. Records whose rows
            have different shapes are in different `Rows`. A record that is good is in exactly one `Rows` of
            each model.
        bad: records that are in none, by place.
        parsed: what the codec wants back in `encode`, for instance the input's own fields.
    """

    inputs: Mapping[str, Sequence[Rows]]
    bad: Mapping[int, BadRecord] = field(default_factory=dict)
    parsed: Any = None


Scored: TypeAlias = "Mapping[str, Sequence[Rows]]"
"""Outputs by `ModelUse.label`. They need not be cut as the inputs were: a batch that failed comes back in
parts and without its culprit. A record that some model could not score may still be in those of another."""


class Codec(Protocol):
    """Made of a pipeline and the signatures of its models.

    `decode` and `encode` run in threads, also at the same time, for different groups.
    """

    async def start(self) -> None:
        """Connect to what it needs; register what it writes.

        Raises:
            SetupError: something is wrong with its configuration.
            Unavailable: something it needs does not answer at the moment.
        """

    async def close(self) -> None:
        """Disconnect. Idempotent."""

    async def prepare(self, records: Sequence[Record]) -> None:
        """Fetch what is needed to decode these records and is not known yet: schemas, for instance.

        Called before each `decode`, so it is quick where there is nothing to fetch.

        Raises:
            Unavailable: it cannot be had at the moment; the engine waits and calls again. What can never be
                had makes `decode` give a `BadRecord`.
        """

    def decode(self, records: Sequence[Record]) -> Decoded:
        """Make model inputs of records. Whatever their bytes, it does not raise."""

    def encode(
        self, records: Sequence[Record], decoded: Decoded, scored: Scored, places: Sequence[int]
    ) -> Sequence[bytes | BadRecord]:
        """Make the values to write.

        Args:
            records: as they were given to `decode`.
            decoded: what that returned.
            scored: the outputs.
            places: the records that every model has scored, ascending.

        Returns:
            The value of each of `places`, in order, or why it has none.
        """


# What the engine reads of a pipeline. `qinfer_workers.kafka.pipeline` makes it of a YAML file and says there
# what each field is called.

Delivery: TypeAlias = Literal["at-least-once", "exactly-once"]
Tombstones: TypeAlias = Literal["pass", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUse:
    """One model of a pipeline.

    Attributes:
        label: its name within the pipeline, unique there; the model's name unless two versions are compared.
        name: of the model.
        version: of the model; "" for the newest.
        outputs: names of the outputs that are wanted; empty for all.
    """

    label: str
    name: str
    version: str = ""
    outputs: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When a group of records is scored; the first condition that holds closes it.

    Attributes:
        max_rows: records it may hold.
        max_delay_ms: how long its first record may wait for others. A backlog is never waited for.
    """

    max_rows: int = 512
    max_delay_ms: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of memory and time.

    Attributes:
        max_record_bytes: larger values are not decoded, and larger outputs not written: "too_large".
        max_in_flight: records that are read and not committed yet, before reading pauses.
        max_in_flight_bytes: bytes of their values, likewise.
        commit_interval_ms: how long what is written may stay uncommitted: also the age of a transaction.
        commit_rows: records after which it is committed sooner.
        score_timeout: seconds a group may take in the fleet; there is no limit in process.
        drain_timeout: seconds that what is in flight may take at shutdown, and when partitions are taken
            away.
    """

    max_record_bytes: int = 1024 * 1024
    max_in_flight: int = 50_000
    max_in_flight_bytes: int = 256 * 1024 * 1024
    commit_interval_ms: float = 100.0
    commit_rows: int = 10_000
    score_timeout: float = 30.0
    drain_timeout: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """Where records come from and go to.

    Attributes:
        sources: topics to read; a record of partition N is written to partition N modulo those of the output,
            so that the order within each partition is kept.
        output: topic of the scored records.
        dead: topic of those that could not be scored; "" to stop at the first of them instead.
        create: create the missing ones of `output` and `dead`, with this many partitions; 0 to refuse to
            start.
        replicas: copies of those that are created; -1 for as many as the first source has.
    """

    sources: Sequence[str]
    output: str
    dead: str
    create: int = 0
    replicas: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """How to reach the brokers. Times in seconds.

    Attributes:
        bootstrap: "HOST:PORT[,HOST:PORT]".
        options: arguments of aiokafka's clients beyond those here, by name: security_protocol,
            sasl_mechanism, sasl_plain_username, ...; holds secrets, so it is never logged.
        ca_file, cert_file, key_file, key_password: for TLS, where `options` ask for it: PEM files of the
            authorities, certificate and key; "" for the system's authorities, and no certificate of our own.
        consumer, producer: arguments of only one of them, for instance fetch_max_bytes or compression_type.
        session_timeout: after how long without a heartbeat a member's partitions go to others.
        transaction_timeout: after how long the brokers abort a transaction that nobody ends.
    """

    bootstrap: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    key_password: str = field(default="", repr=False)
    consumer: Mapping[str, Any] = field(default_factory=dict)
    producer: Mapping[str, Any] = field(default_factory=dict)
    session_timeout: float = 10.0
    transaction_timeout: float = 60.0


class Pipeline(Protocol):
    """What the engine reads of a pipeline."""

    @property
    def group(self) -> str:
        """Consumer group."""

    @property
    def delivery(self) -> Delivery: ...

    @property
    def tombstones(self) -> Tombstones: ...

    @property
    def topics(self) -> Topics: ...

    @property
    def models(self) -> Sequence[ModelUse]:
        """At least one."""

    @property
    def repositories(self) -> Sequence[Path]:
        """Model repositories to score in process; empty when a fleet does."""

    @property
    def fleet(self) -> str:
        """URL of the fleet's broker or gateway (`qinfer.client.connect`); "" to score in process."""

    @property
    def window(self) -> Window: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def client(self) -> Client: ...

    @property
    def start(self) -> Literal["earliest", "latest"]:
        """Where a group without committed offsets begins."""

    def codec(self, models: Mapping[str, ModelInfo]) -> Codec:
        """The codec of its formats and mapping.

        Args:
            models: signature of each model, by `ModelUse.label`, as what scores them tells it.

        Raises:
            ConfigError: the mapping does not fit the models.
        """
