"""Compiles the mapping of a pipeline for the signatures of its models, with every fault that is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from qinfer.client.base import ModelInfo
from qinfer.datatypes import DATATYPES, Array
from qinfer.errors import InvalidRequest
from qinfer.registry import TensorRecord
from qinfer.scoring.columns import MISSING, ListColumn
from qinfer.scoring.convert import to_rows
from qinfer_workers.kafka import paths, settings
from qinfer_workers.kafka.document import Document
from qinfer_workers.kafka.formats import Setup
from qinfer_workers.kafka.mapping import InputPlan, ModelPlan
from qinfer_workers.kafka.outputs import OutputField
from qinfer_workers.kafka.registry.client import Registry

if TYPE_CHECKING:
    from qinfer_workers.kafka.pipeline import ScoringPipeline

_MAX_LABELS_BYTES = 16 * 1024 * 1024
_TABLES = (settings.Frame, settings.Arrow)


def models(
    file: settings.PipelineSettings, infos: Mapping[str, ModelInfo], document: Document
) -> list[ModelPlan]:
    """What the inputs of each model are made of; faults are added to the document."""
    plans: list[ModelPlan] = []
    raw = isinstance(settings.format_of(file.source.format), settings.Raw)
    for place, model in enumerate(file.models):
        label = settings.label_of(model)
        info, where = infos[label], f"models[{place}].inputs"
        known = [spec.name for spec in info.inputs]
        for name in model.inputs:
            if name not in known:
                document.fault(
                    f"{where}.{name}", f"no such input of {model.name}; expected {_nearest(name, known)}"
                )
        inputs = [
            _input(model.inputs.get(spec.name), spec, raw, document, f"{where}.{spec.name}")
            for spec in info.inputs
        ]
        plans.append(ModelPlan(label=label, max_batch_size=info.max_batch_size, inputs=tuple(inputs)))
    return plans


def _input(
    given: str | settings.InputSource | None,
    spec: TensorRecord,
    raw: bool,
    document: Document,
    where: str,
) -> InputPlan:
    if given is None:
        path = paths.Path("$", ()) if raw else paths.Path(spec.name, (spec.name,))
        return InputPlan(spec=spec, paths=(path,))
    source = settings.input_source(given)
    found = [name for name in ("field", "fields", "value") if getattr(source, name) is not UNSET]
    if len(found) != 1:
        document.fault(
            where, f"found {' and '.join(found) or 'none'} of field, fields and value; expected one"
        )
        return InputPlan(spec=spec)
    if source.value is not UNSET:
        return InputPlan(spec=spec, constant=_fitting(source.value, spec, document, f"{where}.value"))
    texts = source.fields if isinstance(source.fields, list) else [str(source.field)]
    default: Any = MISSING
    if source.default is not UNSET:
        default = source.default
        element = TensorRecord(spec.name, spec.datatype, (1,)) if source.fields is not UNSET else spec
        _fitting(default, element, document, f"{where}.default")
    return InputPlan(
        spec=spec,
        paths=tuple(parsed for text in texts if (parsed := _path(text, document, where)) is not None),
        vector=source.fields is not UNSET,
        default=default,
        base64=source.base64,
    )


def _fitting(value: Any, spec: TensorRecord, document: Document, where: str) -> Array | None:
    (array,) = to_rows(spec.name, ListColumn([value]), spec)
    if isinstance(array, InvalidRequest):
        document.fault(where, array.message.partition(": ")[2])
        return None
    return array


def _path(text: str, document: Document, where: str) -> paths.Path | None:
    try:
        return paths.parse(text)
    except ValueError as error:
        document.fault(where, str(error))
        return None


def fields(
    file: settings.PipelineSettings,
    folder: FilePath,
    infos: Mapping[str, ModelInfo],
    document: Document,
) -> list[OutputField]:
    """What the output record holds of the models' outputs; faults are added to the document."""
    found: list[OutputField] = []
    prefix = _names(file.output.into, document, "output.into") if file.output.into else ()
    for place, model in enumerate(file.models):
        label = settings.label_of(model)
        info, where = infos[label], f"models[{place}].outputs"
        if model.outputs is UNSET:
            above = (*prefix, label) if len(file.models) > 1 else prefix
            sources = {(*above, spec.name): settings.OutputSource(output=spec.name) for spec in info.outputs}
        else:
            sources = {
                (*prefix, *_names(name, document, f"{where}.{name}")): settings.output_source(given)
                for name, given in model.outputs.items()
            }
        for path, source in sources.items():
            field = _field(
                path, source, label, info, folder, document, f"{where}.{'.'.join(path[len(prefix) :])}"
            )
            if field is not None:
                found.append(field)
    if not found and not document.faults:
        document.fault("models", "found no outputs; expected at least one field for the output record")
    _check_paths(found, document)
    return found


def _field(
    path: tuple[str, ...],
    source: settings.OutputSource,
    label: str,
    info: ModelInfo,
    folder: FilePath,
    document: Document,
    where: str,
) -> OutputField | None:
    spec = next((spec for spec in info.outputs if spec.name == source.output), None)
    if spec is None:
        known = [spec.name for spec in info.outputs]
        document.fault(
            where, f"no output {source.output!r} of {info.name}; expected {_nearest(source.output, known)}"
        )
        return None
    select = "" if source.select is UNSET else source.select
    index = -1 if source.index is UNSET else source.index
    labels = _labels(source, folder, document, where)
    if labels is None:
        return None
    if fault := _unfit(spec, select, index, labels):
        document.fault(where, fault)
        return None
    chosen = bool(select) or index >= 0
    widened = "FP32" if chosen and spec.datatype == "BF16" else spec.datatype
    datatype = {"argmax": "INT64", "label": "BYTES"}.get(select, widened)
    return OutputField(
        path=path,
        model=label,
        output=spec.name,
        datatype=datatype,
        dims=spec.dims[:-1] if chosen else spec.dims,
        batched=info.max_batch_size != 0,
        bf16=spec.datatype == "BF16",
        select=select,
        index=index,
        labels=labels,
        binary=source.binary,
    )


def _unfit(spec: TensorRecord, select: str, index: int, labels: Sequence[str]) -> str:
    """Why that cannot be selected of an output; "" if it can."""
    if select and index >= 0:
        return "found both index and select; expected one of the two"
    if not (select or index >= 0):
        return "found labels; expected them with select: label" if labels else ""
    if not spec.dims:
        return f"output {spec.name!r} is a single value; expected a vector to select of"
    if select and DATATYPES[spec.datatype].element not in (int, float):
        return f"output {spec.name!r} is {spec.datatype}; expected numbers, to find the largest"
    if select == "label" and not labels:
        return "found no labels; expected labels or labels_file with select: label"
    if select != "label" and labels:
        return "found labels; expected them with select: label"
    size = spec.dims[-1]
    if labels and size not in (-1, len(labels)):
        return f"found {len(labels)} labels; expected {size}, the elements of output {spec.name!r}"
    if index >= size != -1:
        return f"found index {index}; expected 0 to {size - 1}, the elements of output {spec.name!r}"
    return ""


def _labels(
    source: settings.OutputSource, folder: FilePath, document: Document, where: str
) -> tuple[str, ...] | None:
    """The labels of a field; None where they cannot be read."""
    if source.labels_file is UNSET:
        return () if source.labels is UNSET else tuple(source.labels)
    if source.labels is not UNSET:
        document.fault(where, "found both labels and labels_file; expected one of the two")
    path = folder / source.labels_file
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_LABELS_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        document.fault(f"{where}.labels_file", f"{path}: {why}; expected a file with a label a line")
        return None
    return tuple(lines)


def _names(text: str, document: Document, where: str) -> tuple[str, ...]:
    """The names of a field of the output, from the outside in."""
    path = _path(text, document, where)
    steps = path.steps if path is not None else ("?",)
    names = tuple(step for step in steps if isinstance(step, str))
    if len(names) != len(steps) or not names:
        document.fault(where, f"found {text!r}; expected names with dots between them")
    return names or ("?",)


def _check_paths(found: Sequence[OutputField], document: Document) -> None:
    seen: set[tuple[str, ...]] = set()
    for field in sorted(found, key=lambda field: field.path):
        above = [field.path[: depth + 1] for depth in range(len(field.path))]
        if clash := next((path for path in above if path in seen), None):
            text = "twice" if clash == field.path else f"beside {'.'.join(clash)}, which it would be in"
            document.fault("models", f"found output field {field.name} {text}; expected different fields")
        seen.add(field.path)


def setups(
    pipeline: ScoringPipeline,
    plans: Sequence[ModelPlan],
    found: Sequence[OutputField],
    registry: Registry | None,
) -> tuple[Setup, Setup]:
    """What the reader and the writer are made of."""
    file = pipeline.file
    source, output = settings.format_of(file.source.format), settings.format_of(file.output.format)
    keep = file.output.keep if isinstance(file.output.keep, str) else tuple(file.output.keep)
    # Those of models with a batch dimension come first: they tell how many rows a record has.
    ordered = sorted(plans, key=lambda plan: not plan.batched)
    used = {path.text: path for plan in ordered for item in plan.inputs for path in item.paths}
    verbatim = type(source) is type(output)
    tabular = isinstance(source, _TABLES)
    limits = [plan.max_batch_size for plan in plans if plan.max_batch_size]
    reading = Setup(
        format=source,
        folder=pipeline.folder,
        topic=pipeline.topics.sources[0],
        registry=registry,
        paths=tuple(used.values()),
        keep=keep,
        verbatim=verbatim,
        tabular=tabular,
        max_rows=min(limits, default=0),
        max_bytes=pipeline.limits.max_record_bytes,
    )
    writing = Setup(
        format=output,
        folder=pipeline.folder,
        topic=pipeline.topics.output,
        registry=registry,
        keep=keep,
        verbatim=verbatim,
        fields=tuple(found),
        tabular=tabular,
        max_bytes=pipeline.limits.max_record_bytes,
    )
    return reading, writing


def _nearest(name: str, names: Sequence[str]) -> str:
    if not names:
        return "none: it tells none"
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"{close[0]} (or another of {len(names)})" if close else f"one of {', '.join(names)}"
