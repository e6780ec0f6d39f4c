"""What a configuration must keep to, beyond its syntax."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from math import prod

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from qinfer.proto import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
)
from qinfer.repository.document import Fault, join

MAX_QUEUE_DELAY_US = 60_000_000
"""Longest `max_queue_delay_microseconds`; above a minute, a unit was mistaken."""

MAX_INSTANCES = 1024
"""Most instances of one group on one device."""

_NOT_YET = "not supported yet; expected it to be left out"

_REFUSED = (
    "sequence_batching",
    "ensemble_scheduling",
    "model_operations",
    "model_repository_agents",
    "batch_input",
    "batch_output",
    "cc_model_filenames",
)
_REFUSED_PARTS = (
    "allow_ragged_batch",
    "is_shape_tensor",
    "is_non_linear_format_io",
    "passive",
    "secondary_devices",
)

WITHOUT_EFFECT = {
    "": ("model_warmup", "response_cache", "metric_tags", "model_metrics"),
    "dynamic_batching": (
        "preserve_ordering",
        "priority_levels",
        "default_priority_level",
        "default_queue_policy",
        "priority_queue_policy",
    ),
    "instance_group": ("rate_limiter", "host_policy", "profile"),
}
"""Fields that are accepted and do nothing yet, by the message they are in. They change when answers come, or
whether they do under overload, but not what they are."""


def without_effect(message: ModelConfig) -> list[str]:
    """The fields of a configuration that have no effect yet, for the log."""
    groups = [
        (f"instance_group[{index}]", "instance_group", group)
        for index, group in enumerate(message.instance_group)
    ]
    parts = [("", "", message), ("dynamic_batching", "dynamic_batching", message.dynamic_batching), *groups]
    found: list[str] = []
    for path, kind, part in parts:
        given = {field.name for field, _ in part.ListFields()}
        found += [join(path, name) for name in WITHOUT_EFFECT[kind] if name in given]
    return found


def check(message: ModelConfig, *, batch_size_known: bool = True) -> list[Fault]:
    """Everything that is wrong with a configuration whose `backend` is settled.

    Args:
        batch_size_known: False while `max_batch_size` may still come from the model file; what depends on it
            is then left for later.
    """
    unknown = [*_unknown_values(message, "")]
    if unknown:
        return unknown  # the checks below look values up by name
    return [
        *_unsupported(message),
        *_batching(message, batch_size_known),
        *_tensors("input", message.input),
        *_tensors("output", message.output),
        *_instance_groups(message.instance_group),
        *_versions(message),
    ]


def _unknown_values(message: Message, path: str) -> Iterator[Fault]:
    """Numbers given for an enum that it does not have; the text format lets any pass."""
    for field, value in message.ListFields():
        inner = join(path, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key, entry in value.items():
                    yield from _unknown_values(entry, f"{inner}[{key}]")
        elif field.is_repeated:
            for index, element in enumerate(value):
                yield from _unknown_value(field, element, f"{inner}[{index}]")
        else:
            yield from _unknown_value(field, value, inner)


def _unknown_value(field: FieldDescriptor, value: object, path: str) -> Iterator[Fault]:
    if isinstance(value, Message):
        yield from _unknown_values(value, path)
    elif field.enum_type is not None and value not in field.enum_type.values_by_number:
        yield Fault(path, f"found {value}; expected one of {', '.join(field.enum_type.values_by_name)}")


def _unsupported(message: ModelConfig) -> Iterator[Fault]:
    """Fields whose neglect would change answers."""
    given = {field.name for field, _ in message.ListFields()}
    yield from (Fault(name, _NOT_YET) for name in _REFUSED if name in given)
    if message.backend == "ensemble" and not message.HasField("ensemble_scheduling"):
        yield Fault("platform" if message.platform else "backend", f"found ensemble: {_NOT_YET}")
    if message.runtime not in ("", f"libtriton_{message.backend}.so"):
        yield Fault("runtime", f"found {message.runtime}: other runtimes of a backend are {_NOT_YET}")
    for part in ("input", "output", "instance_group"):
        for index, element in enumerate(getattr(message, part)):
            given = {field.name for field, _ in element.ListFields()}
            yield from (
                Fault(f"{part}[{index}].{name}", _NOT_YET) for name in _REFUSED_PARTS if name in given
            )


def _batching(message: ModelConfig, batch_size_known: bool) -> Iterator[Fault]:
    if message.max_batch_size < 0:
        yield Fault(
            "max_batch_size",
            f"found {message.max_batch_size}; expected 1 or more, or 0 for a model without batch dimension",
        )
    elif message.HasField("dynamic_batching"):
        batching = message.dynamic_batching
        limit = message.max_batch_size if batch_size_known or message.max_batch_size else None
        yield from _preferred_sizes(batching, limit)
        yield from _queueing(batching)


def _preferred_sizes(batching: ModelDynamicBatching, limit: int | None) -> Iterator[Fault]:
    for index, size in enumerate(batching.preferred_batch_size):
        if size < 1 or (limit is not None and size > limit):
            expected = "1 or more" if limit is None else f"1 to max_batch_size, which is {limit}"
            if limit == 0:
                expected = "none, because max_batch_size is 0"
            path = f"dynamic_batching.preferred_batch_size[{index}]"
            yield Fault(path, f"found {size}; expected {expected}")


def _queueing(batching: ModelDynamicBatching) -> Iterator[Fault]:
    delay, levels = batching.max_queue_delay_microseconds, batching.priority_levels
    if delay > MAX_QUEUE_DELAY_US:
        yield Fault(
            "dynamic_batching.max_queue_delay_microseconds",
            f"found {delay}; expected at most {MAX_QUEUE_DELAY_US} (one minute)",
        )
    default = batching.default_priority_level
    if levels and not 1 <= default <= levels:
        yield Fault(
            "dynamic_batching.default_priority_level",
            f"found {default}; expected 1 to priority_levels, which is {levels}",
        )
    elif default and not levels:
        yield Fault(
            "dynamic_batching.default_priority_level",
            f"found {default}; expected priority_levels beside it",
        )
    for level in sorted(batching.priority_queue_policy):
        if not 1 <= level <= levels:
            yield Fault(
                "dynamic_batching.priority_queue_policy",
                f"found level {level}; expected levels from 1 to priority_levels, which is {levels}",
            )


def _tensors(group: str, tensors: Sequence[ModelInput | ModelOutput]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for index, tensor in enumerate(tensors):
        path = f"{group}[{index}]"
        if not tensor.name:
            yield Fault(f"{path}.name", "found nothing; expected the tensor's name")
        elif first.setdefault(tensor.name, index) != index:
            yield Fault(
                f"{path}.name",
                f"found {tensor.name!r}, the name of {group}[{first[tensor.name]}] too; expected each once",
            )
        yield from _shape(path, tensor)
        if isinstance(tensor, ModelInput) and tensor.format and len(tensor.dims) != 3:
            name = ModelInput.Format.Name(tensor.format)
            yield Fault(f"{path}.format", f"{name} with {len(tensor.dims)} dims; expected 3 dims")


def _shape(path: str, tensor: ModelInput | ModelOutput) -> Iterator[Fault]:
    complete = f"; to have all of them taken from the model file, leave `{path.partition('[')[0]}` out"
    if not tensor.data_type:
        yield Fault(f"{path}.data_type", f"found none; expected one, for instance TYPE_FP32{complete}")
    if not tensor.dims:
        yield Fault(
            f"{path}.dims",
            "found none; expected one or more (a single number is `dims: [ 1 ]`, with `reshape` to an empty"
            f" `shape` if the model wants no dimension){complete}",
        )
    shape = tensor.reshape.shape
    wrong = [*_sizes(f"{path}.dims", tensor.dims), *_sizes(f"{path}.reshape.shape", shape)]
    yield from wrong
    comparable = tensor.HasField("reshape") and tensor.dims and not wrong
    if comparable and _chunks(tensor.dims) != _chunks(shape):
        yield Fault(
            f"{path}.reshape.shape",
            f"found {[*shape]}; expected as many elements as dims {[*tensor.dims]},"
            " before, between and after variable dimensions",
        )


def _sizes(path: str, dims: Iterable[int]) -> Iterator[Fault]:
    for index, size in enumerate(dims):
        if size < 1 and size != -1:
            yield Fault(f"{path}[{index}]", f"found {size}; expected 1 or more, or -1 for a variable size")


def _chunks(dims: Collection[int]) -> list[int]:
    """Elements before, between and after the variable dimensions; equal for shapes one can be reshaped to."""
    chunks: list[list[int]] = [[]]
    for size in dims:
        if size == -1:
            chunks.append([])
        else:
            chunks[-1].append(size)
    return [prod(chunk) for chunk in chunks]


def _instance_groups(groups: Sequence[ModelInstanceGroup]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for index, group in enumerate(groups):
        path = f"instance_group[{index}]"
        if group.name and first.setdefault(group.name, index) != index:
            yield Fault(
                f"{path}.name",
                f"found {group.name!r}, the name of instance_group[{first[group.name]}] too;"
                " expected each once",
            )
        # 0 is how an unset count reads, and counts as 1.
        if not 0 <= group.count <= MAX_INSTANCES:
            yield Fault(f"{path}.count", f"found {group.count}; expected 1 to {MAX_INSTANCES}")
        if group.gpus and group.kind not in (ModelInstanceGroup.KIND_GPU, ModelInstanceGroup.KIND_AUTO):
            kind = ModelInstanceGroup.Kind.Name(group.kind)
            yield Fault(f"{path}.gpus", f"given for {kind}; expected them only for KIND_GPU or KIND_AUTO")
        for place, gpu in enumerate(group.gpus):
            if gpu < 0:
                yield Fault(f"{path}.gpus[{place}]", f"found {gpu}; expected the index of a GPU, from 0")
            elif gpu in group.gpus[:place]:
                yield Fault(f"{path}.gpus[{place}]", f"found {gpu} again; expected each GPU once")


def _versions(message: ModelConfig) -> Iterator[Fault]:
    policy = message.version_policy
    if policy.HasField("latest") and policy.latest.num_versions < 1:
        yield Fault("version_policy.latest.num_versions", "found 0; expected 1 or more")
    if policy.HasField("specific"):
        versions = policy.specific.versions
        if not versions:
            yield Fault("version_policy.specific.versions", "found none; expected one or more")
        for index, version in enumerate(versions):
            if version < 1:
                path = f"version_policy.specific.versions[{index}]"
                yield Fault(path, f"found {version}; expected 1 or more")
