"""Protobuf messages, with a schema from a registry or from a file.

In documents a message is a mapping: fields without presence have their defaults, others are there when they
are set; enums are numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from google.protobuf import message as protobuf_message
from google.protobuf.descriptor import Descriptor

from qinfer.errors import SetupError
from qinfer_workers.kafka.formats import protobuf_schema
from qinfer_workers.kafka.formats.base import Reader, Setup, Writer
from qinfer_workers.kafka.formats.documents import Malformed
from qinfer_workers.kafka.formats.messages import fill, plain
from qinfer_workers.kafka.formats.protobuf_schema import File
from qinfer_workers.kafka.formats.schemas import Compiler, SchemaReader, SchemaWriter, bytes_of, text_of
from qinfer_workers.kafka.outputs import OutputField
from qinfer_workers.kafka.registry import wire
from qinfer_workers.kafka.settings import Protobuf


def reader(setup: Setup) -> Reader:
    """What reads it.

    Raises:
        ValueError: there is no schema.
        SetupError: the schema file cannot be read.
        BackendUnavailable: the compiler of `.proto` files is needed and not installed.
    """
    return ProtobufReader(setup, ProtobufCompiler(cast(Protobuf, setup.format).message))


def writer(setup: Setup) -> Writer:
    """What writes it.

    Raises:
        ValueError: there is no schema.
        SetupError: the schema file cannot be read, or lacks fields.
        BackendUnavailable: the compiler of `.proto` files is needed and not installed.
    """
    return ProtobufWriter(setup, ProtobufCompiler(cast(Protobuf, setup.format).message))


@dataclass(frozen=True, slots=True)
class ProtobufSchema:
    """A compiled file.

    Attributes:
        file: what is in it.
        message: the message that is meant where nothing else tells; None where there are several.
    """

    file: File
    message: Descriptor | None


class ProtobufCompiler(Compiler[ProtobufSchema]):
    """Compiles `.proto` files with protoc.

    Args:
        message: full name of the message that is meant; "" for the only one, or the first.
    """

    kind = "PROTOBUF"

    def __init__(self, message: str) -> None:
        self._message = message

    def compile(self, text: str, references: Sequence[tuple[str, str]] = ()) -> ProtobufSchema:
        """A schema of its text."""
        file = protobuf_schema.compile_text(text, references)
        return ProtobufSchema(file, file.find(self._message))

    def load(self, path: Path) -> tuple[ProtobufSchema, str]:
        """A schema of a `.proto` file, or of a set of descriptors."""
        try:
            if path.suffix == ".proto":
                text = text_of(path)
                file = protobuf_schema.compile_file(path)
            else:
                text, file = "", protobuf_schema.of_descriptors(bytes_of(path))
            message = file.find(self._message)
        except ValueError as error:
            raise SetupError(f"{path}: {error}") from None
        if message is None:
            names = ", ".join(file.names())
            found = f"no message {self._message}" if self._message else f"several messages ({names})"
            raise SetupError(f"{path}: {found}; expected the name of one in format.message")
        return ProtobufSchema(file, message), text


class ProtobufReader(SchemaReader[ProtobufSchema]):
    """Reads messages; with a schema file of its own, as that has them."""

    def document(self, value: bytes, offset: int, schema: ProtobufSchema, own: ProtobufSchema | None) -> Any:
        """The message as a mapping."""
        descriptor = schema.message
        if offset:  # after the id of a schema
            try:
                indexes, offset = wire.read_indexes(value, offset)
                descriptor = schema.file.at(indexes)
            except ValueError as error:
                raise Malformed(str(error)) from None
        if own is not None:
            schema, descriptor = own, own.message
        assert descriptor is not None
        message = schema.file.new(descriptor)
        try:
            message.ParseFromString(value[offset:])
        except (protobuf_message.DecodeError, RecursionError) as error:
            raise Malformed(f"not a {descriptor.full_name}: {error}") from None
        return plain(message)


class ProtobufWriter(SchemaWriter[ProtobufSchema]):
    """Writes messages."""

    def render(self, document: dict[str, Any]) -> bytes:
        """The value of a document."""
        schema = self.schema
        assert schema.message is not None
        message = schema.file.new(schema.message)
        fill(message, document)
        try:
            return self.header + message.SerializeToString()
        except protobuf_message.EncodeError as error:
            raise ValueError(str(error)) from None

    def missing(self, schema: ProtobufSchema, fields: Sequence[OutputField]) -> list[str]:
        """The fields that a schema does not have."""
        if schema.message is None:
            return ["(of several messages, none is named: expected format.message)"]
        return [field.name for field in fields if not protobuf_schema.has(schema.message, field.path)]

    def record_name(self, schema: ProtobufSchema) -> str:
        """The full name of the message."""
        return schema.message.full_name if schema.message is not None else ""

    def head(self, schema: ProtobufSchema) -> bytes:
        """The path of the message within its file."""
        assert schema.message is not None
        return wire.write_indexes(schema.file.indexes(schema.message))
