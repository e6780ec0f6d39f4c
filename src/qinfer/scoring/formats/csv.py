"""`.csv`: comma-separated values in UTF-8, with the columns' names in the first line (RFC 4180)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec

from qinfer.errors import InvalidRequest, QInferError
from qinfer.scoring.columns import MISSING, Block, Chunk, ListColumn
from qinfer.scoring.formats.base import CHUNK_BYTES, Field, Part, Reader, Writer, join_files
from qinfer.scoring.formats.text import MAX_LINE, Lines, plain

_BOM = "\ufeff"
_encode = msgspec.json.Encoder().encode


class CsvReader(Reader):
    """Reads rows of text; numbers, booleans and JSON lists in it are read where the model's input is such."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = None
        lines = Lines(path, 0)
        csv.field_size_limit(MAX_LINE)
        try:
            header = next(csv.reader(lines.text(), strict=True), [])
        except (csv.Error, InvalidRequest) as error:
            raise InvalidRequest(f"{path}: line 1: {error}; expected the names of the columns") from None
        finally:
            lines.close()
        self._begin = lines.offset
        self.columns = [name.removeprefix(_BOM).strip() for name in header]
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise InvalidRequest(
                f"{path}: line 1: found {', '.join(header) or 'nothing'}; expected a name for each column, "
                "all different"
            )
        self.extent = path.stat().st_size

    def read(
        self, names: Sequence[str], rows: int, *, first: int = 0, begin: int | None = None
    ) -> Iterator[Chunk]:
        """Read chunk by chunk."""
        lines = Lines(self.path, self._begin if begin is None else begin)
        try:
            while found := self._take(lines, rows):
                yield self._chunk(first, found, names, lines.offset)
                first += len(found)
        finally:
            lines.close()

    def close(self) -> None:
        """Nothing is held between two readings."""

    def _take(self, lines: Lines, rows: int) -> list[list[str] | QInferError]:
        found: list[list[str] | QInferError] = []
        begun = lines.offset
        parsed = csv.reader(lines.text(), strict=True)
        while len(found) < rows and (not found or lines.offset - begun < CHUNK_BYTES):
            try:
                row = next(parsed, None)
            except (csv.Error, InvalidRequest) as error:
                found.append(InvalidRequest(f"no row of CSV: {error}"))
                parsed = csv.reader(lines.text(), strict=True)
                continue
            if row is None:
                break
            if row and len(row) != len(self.columns):
                found.append(InvalidRequest(f"found {len(row)} cells; expected {len(self.columns)}"))
            elif row:
                found.append(row)
        return found

    def _chunk(
        self, first: int, rows: Sequence[list[str] | QInferError], names: Sequence[str], end: int
    ) -> Chunk:
        columns = {}
        for name in names:
            place = self.columns.index(name)
            cells: list[Any] = [row[place] if isinstance(row, list) else MISSING for row in rows]
            columns[name] = ListColumn(cells, textual=True)
        faults = {place: row for place, row in enumerate(rows) if isinstance(row, QInferError)}
        return Chunk(first=first, rows=len(rows), columns=columns, end=end, faults=faults)


class _CsvPart(Part):
    def __init__(self, writer: CsvWriter, path: Path) -> None:
        self._file = path.open("wb")
        self._writer = writer

    def write(self, block: Block) -> int:
        fields = self._writer.fields
        columns = [plain(field, block.columns[field.name], binary=self._writer.binary) for field in fields]
        return self._file.write(_lines([_cell(value) for value in row] for row in zip(*columns, strict=True)))

    def close(self) -> None:
        self._file.close()


def _cell(value: Any) -> Any:
    """A value as text; vectors and objects are JSON, and what is missing is empty."""
    if value is MISSING or value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _encode(value).decode() if isinstance(value, list | dict) else value


def _lines(rows: Iterator[list[Any]] | Sequence[list[Any]]) -> bytes:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class CsvWriter(Writer):
    """Writes rows of text."""

    def __init__(self, fields: Sequence[Field], *, binary: bool = False) -> None:
        super().__init__(fields, binary=binary)
        self._head = _lines([[field.name for field in fields]])

    def part(self, path: Path) -> Part:
        """Begin a part."""
        return _CsvPart(self, path)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """The head, and the rows of all parts."""
        join_files([(part, 0) for part in parts], target, self._head)
