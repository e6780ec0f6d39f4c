"""The codec of a pipeline: format in, mapping, format out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from qinfer.client.base import ModelInfo
from qinfer_workers.kafka import compiling
from qinfer_workers.kafka.contract import BadRecord, Decoded, Record, Scored
from qinfer_workers.kafka.document import Document
from qinfer_workers.kafka.formats import Parsed, reader_of, writer_of
from qinfer_workers.kafka.mapping import InputMapping
from qinfer_workers.kafka.outputs import Located
from qinfer_workers.kafka.registry.client import Registry

if TYPE_CHECKING:
    from qinfer_workers.kafka.pipeline import ScoringPipeline


class RecordCodec:
    """Makes inputs of records, and values of outputs. A `contract.Codec`.

    Args:
        pipeline: the formats and the mapping.
        models: signature of each model, by its label.

    Raises:
        ConfigError: the mapping does not fit the models, or the formats.
        SetupError: a file cannot be read.
        BackendUnavailable: the library of a format is not installed.
    """

    def __init__(self, pipeline: ScoringPipeline, models: Mapping[str, ModelInfo]) -> None:
        self._registry = Registry.of(pipeline.file.schema_registry, pipeline.folder)
        document = replace(pipeline.document, faults=[])
        plans = compiling.models(pipeline.file, models, document)
        self._fields = compiling.fields(pipeline.file, pipeline.folder, models, document)
        if document.faults:
            raise document.error()
        source, output = compiling.setups(pipeline, plans, self._fields, self._registry)
        with _part(document, "source.format"):
            self._reader = reader_of(source)
        with _part(document, "output.format"):
            self._writer = writer_of(output)
        self._mapping = InputMapping(plans, self._reader.column)
        self._batched = {plan.label: plan.batched for plan in plans}
        self._max_bytes = pipeline.limits.max_record_bytes

    async def start(self) -> None:
        """Fetch and register schemas.

        Raises:
            SetupError: the registry refuses, or a schema does not fit.
            Unavailable: the registry does not answer.
        """
        try:
            if self._registry is not None:
                await self._registry.start()
            await self._reader.start()
            await self._writer.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._registry is not None:
            await self._registry.close()

    async def prepare(self, records: Sequence[Record]) -> None:
        """Fetch the schemas of these records that are not known yet.

        Raises:
            Unavailable: the registry does not answer.
        """
        await self._reader.prepare([record.value for record in records if record.value is not None])

    def decode(self, records: Sequence[Record]) -> Decoded:
        """Make model inputs of records."""
        places: Sequence[int] = range(len(records))
        values = [record.value or b"" for record in records]
        large: dict[int, BadRecord] = {}
        if max(map(len, values), default=0) > self._max_bytes:
            large = {
                place: BadRecord("too_large", _too_large("the value has", len(value), self._max_bytes))
                for place, value in enumerate(values)
                if len(value) > self._max_bytes
            }
            places = [place for place in places if place not in large]
            values = [values[place] for place in places]
        parsed = self._reader.read(places, values)
        parsed.bad.update(large)
        rows, bad = self._mapping.rows(parsed)
        return Decoded(inputs=rows, bad=bad, parsed=parsed)

    def encode(
        self,
        records: Sequence[Record],  # noqa: ARG002
        decoded: Decoded,
        scored: Scored,
        places: Sequence[int],
    ) -> Sequence[bytes | BadRecord]:
        """Make the values to write."""
        parsed: Parsed = decoded.parsed
        tabular = parsed.counts is not None
        located = {
            label: Located(scored.get(label, ()), places, tabular=tabular, batched=batched)
            for label, batched in self._batched.items()
        }
        columns = [located[field.model].column(field) for field in self._fields]
        written = self._writer.write(columns, _kept(parsed, places), len(places))
        limit = self._max_bytes
        return [
            BadRecord("too_large", _too_large("the output has", len(value), limit))
            if isinstance(value, bytes) and len(value) > limit
            else value
            for value in written
        ]


def _kept(parsed: Parsed, places: Sequence[int]) -> Sequence[object]:
    """What was kept of these records."""
    if not parsed.kept or len(places) == len(parsed.places):
        return parsed.kept
    index = {place: i for i, place in enumerate(parsed.places)}
    return [parsed.kept[index[place]] for place in places]


def _too_large(what: str, size: int, limit: int) -> str:
    return f"{what} {size} bytes; expected at most {limit} (limits.max_record_bytes)"


@contextmanager
def _part(document: Document, path: str) -> Iterator[None]:
    """Says where in the file it is that a format does not fit."""
    try:
        yield
    except ValueError as error:
        document.fault(path, str(error))
        raise document.error() from None
