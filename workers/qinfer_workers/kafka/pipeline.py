"""A pipeline of `qinfer kafka-score`: what its YAML says, checked and typed.

`qinfer_workers.kafka.settings` has the fields of the file, this module what follows from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from qinfer.client.base import ModelInfo
from qinfer_workers.kafka import document as documents
from qinfer_workers.kafka import secrets, settings, typed
from qinfer_workers.kafka.contract import (
    Client,
    Codec,
    Delivery,
    Limits,
    ModelUse,
    Tombstones,
    Topics,
    Window,
)
from qinfer_workers.kafka.document import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringPipeline:
    """What a file says; for the engine a `contract.Pipeline`.

    Attributes:
        group, delivery, tombstones, topics, models, repositories, fleet, window, limits, client, start: as in
            the contract.
        file: the settings as they were written.
        document: where in the file they are, for messages.
        folder: what relative names of files begin at.
    """

    group: str
    delivery: Delivery
    tombstones: Tombstones
    topics: Topics
    models: tuple[ModelUse, ...]
    repositories: tuple[Path, ...]
    fleet: str = field(repr=False)
    window: Window
    limits: Limits
    client: Client
    start: Literal["earliest", "latest"]
    file: settings.PipelineSettings = field(repr=False)
    document: Document = field(repr=False)
    folder: Path

    def codec(self, models: Mapping[str, ModelInfo]) -> Codec:
        """The codec of its formats and mapping.

        Args:
            models: signature of each model, by `ModelUse.label`.

        Raises:
            ConfigError: the mapping does not fit the models, or the formats.
            SetupError: a file cannot be read.
            BackendUnavailable: the library of a format is not installed.
        """
        from qinfer_workers.kafka.codec import RecordCodec

        return RecordCodec(self, models)


def read(path: Path, environment: Mapping[str, str] = os.environ) -> ScoringPipeline:
    """Read a pipeline's file.

    Args:
        path: the file.
        environment: variables that it may refer to.

    Raises:
        SetupError: it, or a file with a secret, cannot be read.
        ConfigError: something in it is wrong; the message has a line for each fault.
        BackendUnavailable: its authentication needs a library that is not installed.
    """
    return build(documents.read(path, environment), path.parent)


def parse(
    text: str, *, folder: Path, name: str = "pipeline.yaml", environment: Mapping[str, str] = os.environ
) -> ScoringPipeline:
    """The same of a text; relative names of files in it begin at `folder`."""
    return build(documents.parse(text, name, environment), folder)


def build(document: Document, folder: Path) -> ScoringPipeline:
    """The pipeline of a document, whose values are used up."""
    secrets.check(document)
    for part in ("source", "output"):
        _name_format(document.root, part)
    file = typed.settings(document, settings.PipelineSettings, secrets=secrets.FIELDS)
    _check(document, file)
    if document.faults:
        raise document.error()
    return ScoringPipeline(
        group=file.group,
        delivery=file.delivery,
        tombstones=file.tombstones,
        topics=_topics(file),
        models=tuple(_use(model) for model in file.models),
        repositories=tuple(folder / name for name in file.repositories),
        fleet=file.fleet,
        window=Window(**msgspec.structs.asdict(file.window)),
        limits=Limits(**msgspec.structs.asdict(file.limits)),
        client=_client(file.kafka, folder),
        start=file.source.start,
        file=file,
        document=document,
        folder=folder,
    )


def _name_format(root: Any, part: str) -> None:
    """Fill in the type of a format that is a mapping without one, so that messages speak of its fields."""
    section = root.get(part) if isinstance(root, dict) else None
    given = section.get("format") if isinstance(section, dict) else None
    if isinstance(given, dict):
        given.setdefault("type", "json")


def _check(document: Document, file: settings.PipelineSettings) -> None:
    """What the types do not say."""
    if bool(file.fleet) == bool(file.repositories):
        found = "both" if file.fleet else "neither"
        document.fault("fleet", f"found {found} of fleet and repositories; expected one of the two")
    sources = _sources(file)
    if not sources:
        document.fault("source.topics", "found none; expected at least one")
    for name in {name for name in sources if sources.count(name) > 1}:
        document.fault("source.topics", f"found {name} twice; expected it once")
    dead = file.dead_letters.topic if file.dead_letters else ""
    written = [("output.topic", file.output.topic), ("dead_letters.topic", dead)]
    for path, topic in written:
        if topic in sources:
            document.fault(path, f"found {topic}, which is a source; expected another topic")
    if dead == file.output.topic:
        document.fault("dead_letters.topic", f"found {dead}, which is the output; expected another topic")
    labels = [settings.label_of(model) for model in file.models]
    for place, label in enumerate(labels):
        if label in labels[:place]:
            document.fault(
                f"models[{place}].label", f"found {label} a second time; expected a label of its own"
            )
        version = str(file.models[place].version)
        if version and not version.isdecimal():
            document.fault(f"models[{place}].version", f"found {version}; expected a decimal number")
    _check_transactions(document, file)
    _check_access(document, file)


def _check_transactions(document: Document, file: settings.PipelineSettings) -> None:
    age, timeout = file.limits.commit_interval_ms / 1000, file.kafka.transaction_timeout
    if file.delivery == "exactly-once" and age >= timeout:
        document.fault(
            "limits.commit_interval_ms",
            f"found {age:g} s; expected less than kafka.transaction_timeout, which is {timeout:g} s: brokers "
            "would abort every transaction",
        )


def _check_access(document: Document, file: settings.PipelineSettings) -> None:
    sasl = file.kafka.sasl
    if sasl is not None and sasl.mechanism == "OAUTHBEARER":
        if not sasl.token_file:
            document.fault("kafka.sasl.token_file", "missing; expected it with OAUTHBEARER")
    elif sasl is not None and not (sasl.username and (sasl.password or sasl.password_file)):
        document.fault("kafka.sasl", f"expected username and password_file with {sasl.mechanism}")
    parts = [("kafka.tls", file.kafka.tls)]
    if file.schema_registry is not None:
        parts.append(("schema_registry.tls", file.schema_registry.tls))
        given = file.schema_registry
        if (given.token or given.token_file) and given.username:
            document.fault("schema_registry.token", "given beside username; expected one of the two")
    for path, tls in parts:
        if tls is not None and tls.key_file and not tls.cert_file:
            document.fault(f"{path}.key_file", "given without cert_file; expected both")


def _sources(file: settings.PipelineSettings) -> list[str]:
    topics = file.source.topics
    return [topics] if isinstance(topics, str) else topics


def _topics(file: settings.PipelineSettings) -> Topics:
    create = file.create_topics
    return Topics(
        sources=tuple(_sources(file)),
        output=file.output.topic,
        dead=file.dead_letters.topic if file.dead_letters else "",
        create=create.partitions if create else 0,
        replicas=create.replicas if create else -1,
    )


def _use(model: settings.Model) -> ModelUse:
    """What the engine knows of a model: the outputs that fields name are the ones that are wanted."""
    outputs: list[str] = []
    if model.outputs is not UNSET:
        given = [settings.output_source(of).output for of in model.outputs.values()]
        outputs = [*dict.fromkeys(given)]
    return ModelUse(
        label=settings.label_of(model), name=model.name, version=str(model.version), outputs=tuple(outputs)
    )


def _client(kafka: settings.Kafka, folder: Path) -> Client:
    tls = kafka.tls
    options = _given(kafka.options)
    options["security_protocol"] = ("SASL_" if kafka.sasl else "") + (
        "SSL" if tls is not None else "PLAINTEXT"
    )
    if options["security_protocol"] == "PLAINTEXT":
        del options["security_protocol"]
    if kafka.sasl is not None:
        options.update(_sasl(kafka.sasl, folder))
    named = tls or settings.Tls()
    return Client(
        bootstrap=kafka.bootstrap,
        options=options,
        ca_file=file_name(folder, named.ca_file),
        cert_file=file_name(folder, named.cert_file),
        key_file=file_name(folder, named.key_file),
        key_password=secret(folder, named.key_password, named.key_password_file),
        consumer=_given(kafka.consumer),
        producer=_given(kafka.producer),
        session_timeout=kafka.session_timeout,
        transaction_timeout=kafka.transaction_timeout,
    )


def _sasl(sasl: settings.Sasl, folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"sasl_mechanism": sasl.mechanism}
    if sasl.mechanism == "OAUTHBEARER":
        options["sasl_oauth_token_provider"] = secrets.token_provider(folder / sasl.token_file)
    else:
        options["sasl_plain_username"] = sasl.username
        options["sasl_plain_password"] = secret(folder, sasl.password, sasl.password_file)
    return options


def _given(options: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(options).items() if value is not UNSET}


def file_name(folder: Path, name: str) -> str:
    """The whole name of a file; "" stays "" and means none."""
    return str(folder / name) if name else ""


def secret(folder: Path, given: str, name: str) -> str:
    """A secret that was given, or stands in a file of this name.

    Raises:
        SetupError: the file cannot be read.
    """
    return secrets.read(folder / name) if name else given
