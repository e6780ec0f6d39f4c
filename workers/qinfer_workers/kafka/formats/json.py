"""JSON. What is kept is written as it was read, digit by digit, where the output is JSON too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from qinfer_workers.kafka.contract import BadRecord
from qinfer_workers.kafka.formats.base import Parsed, Reader, Setup, Writer
from qinfer_workers.kafka.formats.documents import DocumentReader, DocumentWriter, Malformed, kept_of
from qinfer_workers.kafka.paths import values_at

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decode = msgspec.json.Decoder().decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def reader(setup: Setup) -> Reader:
    """What reads it."""
    verbatim = setup.verbatim and setup.keep != "none" and all(path.root for path in setup.paths)
    return VerbatimReader(setup) if verbatim else JsonReader(setup)


def writer(setup: Setup) -> Writer:
    """What writes it."""
    return JsonWriter(setup)


class JsonReader(DocumentReader):
    """Reads documents whole."""

    def parse(self, value: bytes) -> Any:
        """The document."""
        try:
            return _decode(value)
        except _UNREADABLE as error:
            raise Malformed(f"not JSON: {error}") from None


class VerbatimReader(Reader):
    """Reads only the fields that models want, and keeps others as the bytes they are."""

    def __init__(self, setup: Setup) -> None:
        self._paths = setup.paths
        self._roots = [*dict.fromkeys(path.root for path in setup.paths if path.root is not None)]
        self._keep = setup.keep

    def read(self, places: Sequence[int], values: Sequence[bytes]) -> Parsed:
        """Take documents apart."""
        good: list[int] = []
        kept: list[dict[str, msgspec.Raw]] = []
        documents: list[dict[str, Any]] = []
        bad: dict[int, BadRecord] = {}
        roots = self._roots
        for place, value in zip(places, values, strict=True):
            try:
                if not value.isascii():
                    str(value, "utf-8")  # what stays as it is has not been looked at otherwise
                fields = _fields(value)
                documents.append({name: _decode(fields[name]) for name in roots if name in fields})
            except msgspec.ValidationError as error:
                bad[place] = BadRecord("mapping", f"not a JSON object: {error}")
            except _UNREADABLE as error:
                bad[place] = BadRecord("malformed", f"not JSON: {error}")
            else:
                good.append(place)
                kept.append(fields)
        columns = {path.text: values_at(documents, path) for path in self._paths}
        return Parsed(good, columns, kept=kept_of(kept, self._keep), bad=bad)


class JsonWriter(DocumentWriter):
    """Writes documents. JSON has no NaN and no infinities: they become null."""

    as_bytes = False

    def render(self, document: dict[str, Any]) -> bytes:
        """The value of a document."""
        return _encode(document)

    def plain(self, value: Any) -> Any:
        """A kept value as Python has it."""
        return _decode(value) if isinstance(value, msgspec.Raw) else value
