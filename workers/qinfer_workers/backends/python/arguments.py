"""What a Python model is told: the configuration as JSON and the arguments of `initialize`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict

from qinfer.proto import ModelConfig as ModelConfigMessage
from qinfer.repository import ModelConfig
from qinfer_workers.backends.base import InstanceSpec

_WIDE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def config_tree(config: ModelConfig) -> dict[str, Any]:
    """The configuration under the names of `config.pbtxt`, fields at their defaults included."""
    message = ModelConfigMessage.FromString(config.proto)
    message.name = config.name
    tree = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    _restore_integers(tree, ModelConfigMessage.DESCRIPTOR)
    return tree


def initialize_arguments(spec: InstanceSpec) -> dict[str, str]:
    """The argument of `initialize`: all values are strings.

    `model_repository` is the model's own directory, as in Triton.
    """
    return {
        "model_config": json.dumps(config_tree(spec.config)),
        "model_instance_kind": spec.kind,
        "model_instance_name": spec.name,
        "model_instance_device_id": str(spec.device),
        "model_repository": str(spec.directory),
        "model_version": str(spec.version),
        "model_name": spec.config.name,
    }


def _restore_integers(tree: dict[str, Any], descriptor: Any) -> None:
    """Protobuf's JSON writes 64-bit integers as strings; Triton's configurations have numbers there."""
    for field in descriptor.fields:
        if field.name not in tree:
            continue
        value = tree[field.name]
        if field.cpp_type in _WIDE:
            tree[field.name] = [int(item) for item in value] if isinstance(value, list) else int(value)
        elif field.message_type is not None:
            for child, kind in _children(field.message_type, value):
                _restore_integers(child, kind)


def _children(kind: Any, value: Any) -> list[tuple[dict[str, Any], Any]]:
    if kind.GetOptions().map_entry:
        inner = kind.fields_by_name["value"].message_type
        items: Mapping[str, Any] = value
        return [(item, inner) for item in items.values()] if inner is not None else []
    return [(item, kind) for item in (value if isinstance(value, list) else [value])]
