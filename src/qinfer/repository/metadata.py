"""What a server tells of a model: its metadata and its configuration, as Triton gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypedDict

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from qinfer.proto import ModelConfig
from qinfer.repository.document import type_of

_WIDE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


class TensorMetadata(TypedDict):
    """One input or output; `shape` includes the batch dimension, as -1, where the model has one."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    """Answer to `GET /v2/models/NAME`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Tensor(Protocol):
    """A tensor's signature, of a configuration or of the registry."""

    @property
    def name(self) -> str: ...

    @property
    def datatype(self) -> str: ...

    @property
    def dims(self) -> Sequence[int]: ...


class Model(Protocol):
    """What metadata is made of: a `ModelConfig`, or the record of a model in the registry."""

    @property
    def name(self) -> str: ...

    @property
    def platform(self) -> str: ...

    @property
    def max_batch_size(self) -> int: ...

    @property
    def inputs(self) -> Sequence[Tensor]: ...

    @property
    def outputs(self) -> Sequence[Tensor]: ...


def model_metadata(model: Model, versions: Iterable[int | str]) -> ModelMetadata:
    """The metadata of a model that is served in `versions`."""
    batch = [-1] if model.max_batch_size > 0 else []

    def tensors(specs: Iterable[Tensor]) -> list[TensorMetadata]:
        return [
            {"name": spec.name, "datatype": spec.datatype, "shape": [*batch, *spec.dims]} for spec in specs
        ]

    return {
        "name": model.name,
        "versions": [str(version) for version in versions],
        "platform": model.platform,
        "inputs": tensors(model.inputs),
        "outputs": tensors(model.outputs),
    }


def config_json(config: bytes) -> dict[str, Any]:
    """A serialised `inference.ModelConfig` as JSON: every field, unset ones with their default.

    Protobuf's own JSON has 64-bit integers as strings; here, as in Triton's, they are numbers.
    """
    message = ModelConfig.FromString(config)
    json = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _numbers(json, type_of(message))
    return json


def _numbers(json: dict[str, Any], message: Descriptor) -> None:
    for name, value in json.items():
        field = message.fields_by_name[name]
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            inner = kind.fields_by_name["value"].message_type
            if inner is not None:
                for entry in value.values():
                    _numbers(entry, inner)
        elif kind is not None:
            for element in value if field.is_repeated else [value]:
                _numbers(element, kind)
        elif field.cpp_type in _WIDE:
            json[name] = [int(number) for number in value] if field.is_repeated else int(value)
