"""The contract of a record format: how values are read, and how they are written.

Each format is a module of the same shape: `reader` and `writer` make its two sides of a `Setup`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal, TypeAlias

from qinfer_workers.kafka.columns import ColumnOf, DocumentColumn
from qinfer_workers.kafka.contract import BadRecord
from qinfer_workers.kafka.outputs import OutputColumn, OutputField
from qinfer_workers.kafka.paths import Path
from qinfer_workers.kafka.registry.client import Registry
from qinfer_workers.kafka.settings import Format

Keep: TypeAlias = Literal["all", "none"] | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a side of a format is made of.

    Attributes:
        format: the settings.
        folder: what relative names of files begin at.
        topic: that it reads or writes; of several sources, the first.
        registry: where schemas are; None without one.
        paths: fields that are read.
        keep: fields of the input that the output has, too.
        verbatim: what is kept is written in the same format, so that its bytes can stay as they are.
        fields: what outputs of models are written as.
        tabular: records that are written come from a format whose records have rows.
        max_rows: rows a record may have; 0 where nothing limits them.
        max_bytes: of a value.
    """

    format: Format
    folder: FilePath
    topic: str
    registry: Registry | None = None
    paths: Sequence[Path] = ()
    keep: Keep = "none"
    verbatim: bool = False
    fields: Sequence[OutputField] = ()
    tabular: bool = False
    max_rows: int = 0
    max_bytes: int = 0


@dataclass(slots=True)
class Parsed:
    """What a reader has made of values.

    Attributes:
        places: those that are good, ascending.
        columns: values of each path of the setup by its text, in the order of `places`.
        kept: what is kept of each, in that order; for a writer of the same pipeline.
        bad: what is wrong with the others.
        counts: rows of each good one; None where records have no rows.
    """

    places: list[int]
    columns: Mapping[str, Sequence[Any]]
    kept: Sequence[Any] = ()
    bad: dict[int, BadRecord] = field(default_factory=dict)
    counts: list[int] | None = None


class Side:
    """What readers and writers have in common."""

    async def start(self) -> None:
        """Fetch or register schemas.

        Raises:
            SetupError: something is wrong with the configuration.
            Unavailable: the registry does not answer.
        """


class Reader(Side, ABC):
    """Reads values."""

    column: ColumnOf = DocumentColumn
    """What its values are on their way to inputs."""

    tabular = False
    """Whether its records have rows, of any number."""

    async def prepare(self, values: Sequence[bytes]) -> None:
        """Fetch what is needed to read these values.

        Raises:
            Unavailable: it cannot be had at the moment.
        """

    @abstractmethod
    def read(self, places: Sequence[int], values: Sequence[bytes]) -> Parsed:
        """Take values apart; `places` are what they are called in the result. Never raises."""


class Writer(Side, ABC):
    """Writes values."""

    @abstractmethod
    def write(
        self, columns: Sequence[OutputColumn], kept: Sequence[Any], count: int
    ) -> list[bytes | BadRecord]:
        """Make values.

        Args:
            columns: of each field of the setup, its values.
            kept: what the reader kept of each record; empty where nothing is kept.
            count: how many records.
        """
