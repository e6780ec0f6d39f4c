"""What is to be scored, and how: files, model and mapping, checked before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from qinfer.client.base import ModelInfo
from qinfer.errors import InvalidRequest
from qinfer.registry import TensorRecord
from qinfer.scoring.formats import Field, Reader, Writer, open_reader, writer_of
from qinfer.scoring.formats.folder import FILE
from qinfer.scoring.mapping import Binding, Columns, bind, output_fields

MAX_CHUNK = 1024
"""Rows of a request where the model would take more."""


class OnError(StrEnum):
    """What becomes of a run when a row cannot be scored."""

    FAIL = "fail"  # it ends
    SKIP = "skip"  # it goes on without the row
    RECORD = "record"  # likewise, and the row's number is written down with the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the caller chose that changes the output.

    Attributes:
        columns: the mapping.
        on_error: what becomes of rows that cannot be scored.
        binary: BYTES of outputs and kept columns are written as they are, or in base64, not as text.
        chunk: rows of a request, at most; 0 for as many as the model takes.
    """

    columns: Columns = field(default_factory=Columns)
    on_error: OnError = OnError.FAIL
    binary: bool = False
    chunk: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a run needs but the way to the model.

    Attributes:
        source, target: input and output.
        model: its signature.
        settings: what the caller chose.
        reader, writer: of the files.
        bindings: the columns of each input.
        fields: columns of the output.
        rows: of a request.
    """

    source: Path
    target: Path
    model: ModelInfo
    settings: Settings
    reader: Reader
    writer: Writer
    bindings: Sequence[Binding]
    fields: Sequence[Field]
    rows: int

    @property
    def wanted(self) -> list[str]:
        """Names of the outputs to ask for."""
        return list(dict.fromkeys(field.output for field in self.fields if field.output))

    @property
    def columns(self) -> list[str]:
        """Columns of the input that are read."""
        bound = [name for binding in self.bindings for name in binding.columns]
        names = [FILE] if self.reader.names_rows else []
        return list(
            dict.fromkeys([*names, *bound, *(field.name for field in self.fields if not field.output)])
        )

    def identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be gone on with."""
        columns = self.settings.columns
        return {
            "input": self.reader.identity(),
            "model": f"{self.model.name} version {self.version}",
            "signature": {
                "inputs": [_told(spec) for spec in self.model.inputs],
                "outputs": [_told(spec) for spec in self.model.outputs],
            },
            "mapping": {binding.spec.name: list(binding.columns) for binding in self.bindings},
            "columns": {field.name: field.output for field in self.fields},
            "keep": list(columns.keep),
            "on-error": self.settings.on_error.value,
            "bytes": "binary" if self.settings.binary else "text",
        }

    @property
    def version(self) -> str:
        """The one version that all rows are scored with."""
        return self.model.versions[-1] if self.model.versions else ""


def make_plan(
    source: Path, target: Path, model: ModelInfo, settings: Settings, *, within: Path | None = None
) -> Plan:
    """Open the input and see whether everything fits together.

    Args:
        source: file or folder of inputs.
        target: file or folder of outputs, which its suffix tells.
        model: whose one version, or last one, is to be used.
        settings: what the caller chose.
        within: a folder that links among the inputs must not lead out of; None where they may.

    Raises:
        InvalidRequest: it does not: the message says what was found and what was expected.
        BackendUnavailable: a format needs what is not installed.
    """
    _check_places(source, target)
    if model.decoupled:
        raise InvalidRequest(
            f"model {model.name!r} is decoupled: it gives any number of responses to a request; expected one "
            "that gives one"
        )
    reader = open_reader(source, within=within)
    try:
        fields = output_fields(reader, model, settings.columns)
        return Plan(
            source=source,
            target=target,
            model=model,
            settings=settings,
            reader=reader,
            writer=writer_of(target, fields, binary=settings.binary),
            bindings=bind(reader, model, settings.columns),
            fields=fields,
            rows=_rows(model, settings.chunk),
        )
    except BaseException:
        reader.close()
        raise


def _check_places(source: Path, target: Path) -> None:
    """Refuse an output that would be read as input, or take its place."""
    place = target.resolve()
    whole = source.resolve()
    if place == whole:
        raise InvalidRequest(f"{target}: is the input; expected another name for the output")
    if whole in place.parents and source.is_dir():
        raise InvalidRequest(
            f"{target}: is in the folder of inputs, each file of which is a row; expected a place outside "
            f"{source}"
        )


def _rows(model: ModelInfo, chunk: int) -> int:
    most = model.max_batch_size
    if not most:  # without a batch dimension, or not told: a row is certain to be taken
        return 1
    return min(most, chunk or MAX_CHUNK)


def _told(spec: TensorRecord) -> Mapping[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "dims": list(spec.dims)}
