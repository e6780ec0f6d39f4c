"""What formats of documents share: each value is one, made of mappings, lists, texts and numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qinfer.datatypes import Array
from qinfer_workers.kafka.contract import BadRecord
from qinfer_workers.kafka.formats.base import Keep, Parsed, Reader, Setup, Writer
from qinfer_workers.kafka.outputs import OutputColumn, OutputField, texts_of
from qinfer_workers.kafka.paths import values_at


class Malformed(Exception):
    """A value is not of its format."""


class Unknown(Exception):
    """A value is of a schema that cannot be had."""


class DocumentReader(Reader):
    """Reads documents, one by one.

    Args:
        setup: which fields are read and kept.
    """

    def __init__(self, setup: Setup) -> None:
        self._paths = setup.paths
        self._keep: Keep = setup.keep

    @abstractmethod
    def parse(self, value: bytes) -> Any:
        """The document.

        Raises:
            Malformed: it is none.
            Unknown: its schema cannot be had.
        """

    def read(self, places: Sequence[int], values: Sequence[bytes]) -> Parsed:
        """Take documents apart."""
        good: list[int] = []
        documents: list[Any] = []
        bad: dict[int, BadRecord] = {}
        for place, value in zip(places, values, strict=True):
            try:
                documents.append(self.parse(value))
            except Malformed as error:
                bad[place] = BadRecord("malformed", str(error))
            except Unknown as error:
                bad[place] = BadRecord("schema", str(error))
            else:
                good.append(place)
        if self._keep != "none" and not all(isinstance(document, dict) for document in documents):
            good, documents = _only_objects(good, documents, bad)
        columns = {path.text: values_at(documents, path) for path in self._paths}
        return Parsed(good, columns, kept=kept_of(documents, self._keep), bad=bad)


def _only_objects(
    places: Sequence[int], documents: Sequence[Any], bad: dict[int, BadRecord]
) -> tuple[list[int], list[Any]]:
    """Without those that have no fields that could be kept."""
    good: list[int] = []
    objects: list[Any] = []
    for place, document in zip(places, documents, strict=True):
        if isinstance(document, dict):
            good.append(place)
            objects.append(document)
        else:
            bad[place] = BadRecord(
                "mapping", f"found {type(document).__name__}; expected a document with fields, to keep them"
            )
    return good, objects


def kept_of(documents: Sequence[dict[str, Any]], keep: Keep) -> Sequence[dict[str, Any]]:
    """What is kept of each document."""
    if keep == "none":
        return ()
    if keep == "all":
        return documents
    return [{name: document[name] for name in keep if name in document} for document in documents]


class DocumentWriter(Writer):
    """Writes documents, one by one.

    Args:
        setup: what they hold.
    """

    as_bytes = True
    """Whether documents can hold bytes."""

    def __init__(self, setup: Setup) -> None:
        self._fields = setup.fields
        self._tabular = setup.tabular
        self._names = [field.path[0] for field in setup.fields]
        self._flat = all(len(field.path) == 1 for field in setup.fields)
        self._trees = _trees(setup.fields)

    @abstractmethod
    def render(self, document: dict[str, Any]) -> bytes:
        """The value of a document.

        Raises:
            ValueError, TypeError, OverflowError: the format cannot hold it.
        """

    def plain(self, value: Any) -> Any:
        """A kept value as Python has it."""
        return value

    def write(
        self, columns: Sequence[OutputColumn], kept: Sequence[Any], count: int
    ) -> list[bytes | BadRecord]:
        """Make documents of outputs and what is kept."""
        faults: dict[int, str] = {}
        if self._tabular and kept:
            kept = [_plain(tensors, place, faults) for place, tensors in enumerate(kept)]
        values = [column.values(as_bytes=self.as_bytes) for column in columns]
        assert all(len(column) == count for column in values)
        rows = zip(*values, strict=True)
        documents = (
            [dict(zip(self._names, row, strict=True)) for row in rows]
            if self._flat
            else [self._nested(row, kept[place] if kept else {}) for place, row in enumerate(rows)]
        )
        if kept:
            documents = [{**old, **new} for old, new in zip(kept, documents, strict=True)]
        bad = [*filter(None, [faults, *[column.bad for column in columns]])]
        written: list[bytes | BadRecord] = []
        for place, document in enumerate(documents):
            if bad and (why := next((known[place] for known in bad if place in known), None)):
                written.append(BadRecord("encode", why))
                continue
            try:
                written.append(self.render(document))
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                written.append(BadRecord("encode", f"the output cannot be written: {error}"[:1000]))
        return written

    def _nested(self, row: Sequence[Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of a record; fields that they share with kept ones hold both."""
        return {
            name: build(row, self.plain(kept[name]) if name in kept else None)
            for name, build in self._trees.items()
        }


def _plain(tensors: Mapping[str, Array], place: int, faults: dict[int, str]) -> dict[str, Any]:
    """Tensors that are kept as lists, with texts in place of bytes."""
    try:
        return {name: texts_of(array.tolist(), bytes.decode) for name, array in tensors.items()}
    except UnicodeDecodeError:
        faults[place] = "what is kept holds bytes that are no text; expected UTF-8"
        return {}


def _trees(fields: Sequence[OutputField]) -> dict[str, Callable[[Sequence[Any], Any], Any]]:
    """For each field of the document, what makes its value of the outputs of a record."""
    tree: dict[str, Any] = {}
    for place, field in enumerate(fields):
        inner = tree
        for name in field.path[:-1]:
            inner = inner.setdefault(name, {})
        inner[field.path[-1]] = place
    return {name: _builder(branch) for name, branch in tree.items()}


def _builder(branch: Any) -> Callable[[Sequence[Any], Any], Any]:
    if isinstance(branch, int):
        return lambda row, _: row[branch]
    builders = {name: _builder(inner) for name, inner in branch.items()}

    def build(row: Sequence[Any], old: Any) -> Any:
        made = dict(old) if isinstance(old, dict) else {}
        for name, inner in builders.items():
            made[name] = inner(row, made.get(name))
        return made

    return build
