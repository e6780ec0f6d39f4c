"""`.jsonl`: a JSON object a line, whose fields are the columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from qinfer.errors import InvalidRequest, QInferError
from qinfer.scoring.columns import MISSING, Block, Chunk, ListColumn
from qinfer.scoring.formats.base import CHUNK_BYTES, SAMPLE_ROWS, Part, Reader, Writer, join_files
from qinfer.scoring.formats.text import Lines, LineTooLong, plain

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_SHOWN = 60


class JsonlReader(Reader):
    """Reads objects; empty lines are none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = None
        Lines(path, 0).close()
        self.extent = path.stat().st_size
        self.columns = self._seen()

    def read(
        self, names: Sequence[str], rows: int, *, first: int = 0, begin: int | None = None
    ) -> Iterator[Chunk]:
        """Read chunk by chunk."""
        lines = Lines(self.path, begin or 0)
        try:
            while found := _take(lines, rows):
                yield _chunk(first, found, names, lines.offset)
                first += len(found)
        finally:
            lines.close()

    def close(self) -> None:
        """Nothing is held between two readings."""

    def _seen(self) -> list[str]:
        """Fields of the first rows, in their order."""
        lines = Lines(self.path, 0)
        try:
            rows = _take(lines, SAMPLE_ROWS)
        finally:
            lines.close()
        return list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))


def _take(lines: Lines, rows: int) -> list[dict[str, Any] | QInferError]:
    """The next rows, each as its object or why there is none."""
    found: list[dict[str, Any] | QInferError] = []
    begun = lines.offset
    while len(found) < rows and (not found or lines.offset - begun < CHUNK_BYTES):
        try:
            line = lines.next()
        except LineTooLong as error:
            found.append(error)
            continue
        if not line:
            break
        if not line.isspace():
            found.append(_object(line))
    return found


def _object(line: bytes) -> dict[str, Any] | QInferError:
    try:
        row = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return InvalidRequest(f"found {_shown(line)}, which is not JSON ({error}); expected an object")
    return row if isinstance(row, dict) else InvalidRequest(f"found {_shown(line)}; expected a JSON object")


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _chunk(first: int, rows: Sequence[dict[str, Any] | QInferError], names: Sequence[str], end: int) -> Chunk:
    objects: list[dict[str, Any]] = [row if isinstance(row, dict) else {} for row in rows]
    return Chunk(
        first=first,
        rows=len(rows),
        columns={name: ListColumn([row.get(name, MISSING) for row in objects]) for name in names},
        end=end,
        faults={place: row for place, row in enumerate(rows) if isinstance(row, QInferError)},
    )


class _JsonlPart(Part):
    def __init__(self, writer: JsonlWriter, path: Path) -> None:
        self._file = path.open("wb")
        self._writer = writer

    def write(self, block: Block) -> int:
        fields = self._writer.fields
        names = [field.name for field in fields]
        columns = [plain(field, block.columns[field.name], binary=self._writer.binary) for field in fields]
        lines = [_encode(_object_of(names, row)) for row in zip(*columns, strict=True)]
        return self._file.write(b"".join(line + b"\n" for line in lines))

    def close(self) -> None:
        self._file.close()


def _object_of(names: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    """What a row had not, it has not."""
    return {name: value for name, value in zip(names, row, strict=True) if value is not MISSING}


class JsonlWriter(Writer):
    """Writes an object a row. JSON has no NaN and no infinities: they become null."""

    def part(self, path: Path) -> Part:
        """Begin a part."""
        return _JsonlPart(self, path)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """The lines of all parts."""
        join_files([(part, 0) for part in parts], target)
