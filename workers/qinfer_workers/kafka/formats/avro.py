"""Avro: binary data, with a schema from a registry or from a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from qinfer.errors import BackendUnavailable, SetupError
from qinfer_workers.kafka.formats import avro_schema
from qinfer_workers.kafka.formats.base import Reader, Setup, Writer
from qinfer_workers.kafka.formats.documents import Malformed
from qinfer_workers.kafka.formats.schemas import Compiler, SchemaReader, SchemaWriter, text_of
from qinfer_workers.kafka.outputs import OutputField

_Schema = Any  # what fastavro makes of one


def reader(setup: Setup) -> Reader:
    """What reads it.

    Raises:
        ValueError: there is no schema.
        SetupError: the schema file cannot be read.
        BackendUnavailable: fastavro is not installed.
    """
    return AvroReader(setup, AvroCompiler())


def writer(setup: Setup) -> Writer:
    """What writes it.

    Raises:
        ValueError: there is no schema.
        SetupError: the schema file cannot be read, or lacks fields.
        BackendUnavailable: fastavro is not installed.
    """
    return AvroWriter(setup, AvroCompiler())


class AvroCompiler(Compiler[_Schema]):
    """Checks schemas before fastavro sees them: it runs out of stack or memory with some.

    Raises:
        BackendUnavailable: fastavro is not installed.
    """

    kind = "AVRO"

    def __init__(self) -> None:
        try:
            import fastavro
        except ImportError as error:
            raise BackendUnavailable(
                f"Avro needs a library: pip install 'qinfer[kafka-schemas]': {error}"
            ) from error
        self._library = fastavro

    def compile(self, text: str, references: Sequence[tuple[str, str]] = ()) -> _Schema:
        """A schema of its text."""
        check = avro_schema.Check()
        named: dict[str, Any] = {}
        parsed: Any = None
        for part in (*[text for _, text in references], text):
            try:
                plain = msgspec.json.decode(part)
            except (msgspec.DecodeError, RecursionError) as error:
                raise ValueError(f"{error}; expected an Avro schema in JSON") from None
            check.schema(plain)
            try:
                parsed = self._library.parse_schema(plain, named_schemas=named)
            except Exception as error:  # noqa: BLE001 (fastavro raises anything for a schema that is wrong)
                raise ValueError(f"{error!r}; expected an Avro schema"[:1000]) from None
        return parsed

    def load(self, path: Path) -> tuple[_Schema, str]:
        """A schema of a file."""
        text = text_of(path)
        try:
            return self.compile(text), text
        except ValueError as error:
            raise SetupError(f"{path}: {error}") from None


class AvroReader(SchemaReader[_Schema]):
    """Reads data; with a schema file of its own they are resolved to that."""

    def __init__(self, setup: Setup, compiler: AvroCompiler) -> None:
        super().__init__(setup, compiler)
        import fastavro

        self._read = fastavro.schemaless_reader

    def document(self, value: bytes, offset: int, schema: _Schema, own: _Schema | None) -> Any:
        """The datum."""
        data = io.BytesIO(value)
        data.seek(offset)
        try:
            found = self._read(data, schema, own)
        except Exception as error:  # noqa: BLE001 (fastavro raises anything on bytes from anywhere)
            text = str(error) or type(error).__name__
            raise Malformed(f"not Avro of its schema: {text}"[:1000]) from None
        if left := len(value) - data.tell():
            raise Malformed(f"{left} bytes after the end of the Avro datum; expected none")
        return found


class AvroWriter(SchemaWriter[_Schema]):
    """Writes data."""

    def __init__(self, setup: Setup, compiler: AvroCompiler) -> None:
        super().__init__(setup, compiler)
        import fastavro

        self._write = fastavro.schemaless_writer

    def render(self, document: dict[str, Any]) -> bytes:
        """The value of a document."""
        data = io.BytesIO()
        data.write(self.header)
        try:
            self._write(data, self.schema, document)
        except (KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"does not fit the Avro schema: {error!r}") from None
        return data.getvalue()

    def missing(self, schema: _Schema, fields: Sequence[OutputField]) -> list[str]:
        """The fields that a schema does not have."""
        return [field.name for field in fields if not avro_schema.has(schema, field.path)]

    def record_name(self, schema: _Schema) -> str:
        """The full name of a schema's record."""
        return str(schema.get("name", "")) if isinstance(schema, dict) else ""
