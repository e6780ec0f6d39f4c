"""What formats with a schema share: schemas from files and from a registry, and what tells them apart."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from msgspec import UNSET

from qinfer.errors import SetupError
from qinfer_workers.kafka.formats.base import Setup
from qinfer_workers.kafka.formats.documents import DocumentReader, DocumentWriter, Malformed, Unknown
from qinfer_workers.kafka.outputs import OutputField
from qinfer_workers.kafka.registry import wire
from qinfer_workers.kafka.registry.client import Registry, Schema
from qinfer_workers.kafka.settings import WithSchema

C = TypeVar("C")

MAX_SCHEMAS = 1000
"""Most schemas that are kept compiled."""

MAX_FILE = 4 * 1024 * 1024
"""Largest schema file that is read, in bytes."""


class Compiler(ABC, Generic[C]):
    """Makes schemas of a format usable.

    Attributes:
        kind: what the registry calls the format.
    """

    kind: str

    @abstractmethod
    def compile(self, text: str, references: Sequence[tuple[str, str]] = ()) -> C:
        """A schema of its text and of those it refers to.

        Raises:
            ValueError: it is none, or not one that can be used.
        """

    @abstractmethod
    def load(self, path: Path) -> tuple[C, str]:
        """A schema of a file, and its text for the registry; "" for a file that has none.

        Raises:
            SetupError: it cannot be read, or is no schema.
        """


def text_of(path: Path) -> str:
    """The text of a schema file.

    Raises:
        SetupError: it cannot be read, or is no text.
    """
    return _decoded(path, bytes_of(path))


def bytes_of(path: Path) -> bytes:
    """The content of a schema file.

    Raises:
        SetupError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}; expected a schema") from None
    if len(data) > MAX_FILE:
        raise SetupError(f"{path}: more than {MAX_FILE} bytes; expected a schema")
    return data


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SetupError(f"{path}: {error}; expected a schema in UTF-8") from None


def _registry(setup: Setup) -> Registry | None:
    """The registry of a side, if its records begin with the ids of their schemas.

    Raises:
        ValueError: it should have one, and the pipeline has none.
    """
    given = cast(WithSchema, setup.format)
    if given.registry is UNSET:
        return setup.registry
    if given.registry and setup.registry is None:
        raise ValueError("found registry: true, but no schema_registry; expected one")
    return setup.registry if given.registry else None


class SchemaReader(DocumentReader, Generic[C]):
    """Reads documents of a schema.

    Args:
        setup: its side.
        compiler: of its format.

    Raises:
        ValueError: there is neither a schema file nor a registry.
        SetupError: the schema file cannot be read.
    """

    def __init__(self, setup: Setup, compiler: Compiler[C]) -> None:
        super().__init__(setup)
        given = cast(WithSchema, setup.format)
        self._compiler = compiler
        self._registry = _registry(setup)
        self._schemas: dict[int, C | str] = {}  # or what is wrong with it
        self._own: C | None = None
        if given.schema_file:
            self._own, _ = compiler.load(setup.folder / given.schema_file)
        elif self._registry is None:
            raise ValueError("found no schema_file and no schema_registry; expected one of them")

    @abstractmethod
    def document(self, value: bytes, offset: int, schema: C, own: C | None) -> Any:
        """The document that begins at an offset.

        Args:
            value: the record.
            offset: where the document begins.
            schema: what it was written with.
            own: what it is to be read as, where that may differ.

        Raises:
            Malformed: it is not of the schema.
        """

    def parse(self, value: bytes) -> Any:
        """The document."""
        if self._registry is None:
            assert self._own is not None
            return self.document(value, 0, self._own, None)
        try:
            number = wire.schema_id(value)
        except ValueError as error:
            raise Malformed(str(error)) from None
        schema = self._schemas.get(number)
        if schema is None:
            raise Unknown(f"schema {number} is not at {self._registry.url}; expected it to be")
        if isinstance(schema, str):
            raise Unknown(schema)
        return self.document(value, wire.HEADER_BYTES, schema, self._own)

    async def prepare(self, values: Sequence[bytes]) -> None:
        """Fetch the schemas of these values.

        Raises:
            Unavailable: the registry does not answer.
        """
        if self._registry is None:
            return
        heads = {value[1 : wire.HEADER_BYTES] for value in values if value[:1] == b"\0"}
        ids = {int.from_bytes(head) for head in heads if len(head) == wire.HEADER_BYTES - 1}
        wanted = ids - self._schemas.keys()
        if not wanted:
            return
        await self._registry.fetch(wanted)
        for number in wanted:
            schema = self._registry.known(number)
            if schema is None:
                continue
            compiled = await asyncio.to_thread(self._compiled, schema)
            if len(self._schemas) >= MAX_SCHEMAS:
                # Another dictionary: a thread that decodes may be using the one before.
                self._schemas = {kept: self._schemas[kept] for kept in ids if kept in self._schemas}
            self._schemas[number] = compiled

    def _compiled(self, schema: Schema) -> C | str:
        if schema.kind != self._compiler.kind:
            return f"schema {schema.id} is of type {schema.kind}; expected {self._compiler.kind}"
        try:
            return self._compiler.compile(schema.text, schema.references)
        except ValueError as error:
            return f"schema {schema.id}: {error}"


class SchemaWriter(DocumentWriter, Generic[C]):
    """Writes documents of a schema. Fields that it does not have are left out.

    Args:
        setup: its side.
        compiler: of its format.

    Raises:
        ValueError: there is neither a schema file nor a registry.
        SetupError: the schema file cannot be read, or lacks fields.
    """

    def __init__(self, setup: Setup, compiler: Compiler[C]) -> None:
        super().__init__(setup)
        self._given = cast(WithSchema, setup.format)
        self._topic = setup.topic
        self._compiler = compiler
        self._registry = _registry(setup)
        self._text = ""
        self._header = b""
        self._schema: C | None = None
        if self._given.schema_file:
            path = setup.folder / self._given.schema_file
            self._schema, self._text = compiler.load(path)
            self._check(self._schema, str(path))
            if self._registry is not None and not self._text:
                raise ValueError(f"{path} has no text that could be registered; expected the schema's source")
        elif self._registry is None:
            raise ValueError("found no schema_file and no schema_registry; expected one of them")
        elif self._given.subject != "topic":
            raise ValueError(f"found subject: {self._given.subject} without schema_file, which has the name")

    @abstractmethod
    def missing(self, schema: C, fields: Sequence[OutputField]) -> list[str]:
        """The fields that a schema does not have."""

    @abstractmethod
    def record_name(self, schema: C) -> str:
        """The full name of a schema's record."""

    def head(self, schema: C) -> bytes:  # noqa: ARG002 (Protobuf has one)
        """What comes between a schema's id and the document."""
        return b""

    async def start(self) -> None:
        """Register the schema, or find it.

        Raises:
            SetupError: the registry refuses it, has none, or it lacks fields.
            Unavailable: the registry does not answer.
        """
        if self._registry is None:
            return
        subject = self._subject()
        if self._schema is None:
            latest = await self._registry.latest(subject)
            if latest.kind != self._compiler.kind:
                raise SetupError(
                    f"subject {subject!r}: a schema of type {latest.kind}; expected {self._compiler.kind}"
                )
            try:
                schema = await asyncio.to_thread(self._compiler.compile, latest.text, latest.references)
            except ValueError as error:
                raise SetupError(f"subject {subject!r}: {error}") from None
            self._check(schema, f"subject {subject!r}")
            self._schema, number = schema, latest.id
        else:
            ask = self._registry.register if self._given.register else self._registry.look_up
            number = await ask(subject, self._compiler.kind, self._text)
        self._header = wire.header(number) + self.head(self._schema)

    @property
    def schema(self) -> C:
        """The schema; there once `start` has returned."""
        assert self._schema is not None
        return self._schema

    @property
    def header(self) -> bytes:
        """What records begin with; empty without a registry."""
        return self._header

    def _subject(self) -> str:
        if self._given.subject == "topic" or self._schema is None:
            return f"{self._topic}-value"
        name = self.record_name(self._schema)
        return name if self._given.subject == "record" else f"{self._topic}-{name}"

    def _check(self, schema: C, where: str) -> None:
        if missing := self.missing(schema, self._fields):
            raise SetupError(f"{where}: no field {', '.join(missing)}; expected a field for each output")
