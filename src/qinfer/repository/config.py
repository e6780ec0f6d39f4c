"""Typed view of a model's configuration.

The configuration itself is the protobuf message `inference.ModelConfig` (`qinfer.proto`), so that nothing a
`config.pbtxt` says is lost; the dataclasses here are what the rest of qinfer reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Signature of one input or output.

    Attributes:
        name: tensor name.
        datatype: protocol name, for instance "FP32" (not the configuration's "TYPE_FP32").
        dims: shape without the batch dimension; -1 for a variable dimension.
        reshape: shape the backend wants instead of `dims`, if it differs.
        optional: the input may be left out.
        labels: class labels of the output (from `label_filename`), in order.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicBatching:
    """`dynamic_batching` of the configuration."""

    max_queue_delay_us: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceGroup:
    """`instance_group`: `count` instances on each device. `kind` is "AUTO", "CPU", "GPU" or "MODEL"."""

    name: str = ""
    kind: str = "AUTO"
    count: int = 1
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which versions are served: the `latest` N, the `specific` ones, or all (both empty)."""

    latest: int | None = 1
    specific: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What qinfer reads of a model's configuration.

    Attributes:
        name: model name (the directory's).
        backend: backend name, for instance "onnxruntime".
        platform: what model metadata reports, for instance "onnxruntime_onnx".
        max_batch_size: rows a batch may have; 0 when the model has no batch dimension.
        inputs, outputs: the signature, by position.
        dynamic_batching: None when batches are never held open for company.
        instance_groups: at least one.
        version_policy: which versions to serve.
        parameters: string parameters by key.
        default_model_filename: file name within the version directory; empty for the backend's default.
        decoupled: the model may send 0..n responses to a request.
        proto: the whole `inference.ModelConfig`, serialised.
    """

    name: str
    backend: str
    platform: str = ""
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    instance_groups: tuple[InstanceGroup, ...] = (InstanceGroup(),)
    version_policy: VersionPolicy = field(default_factory=VersionPolicy)
    parameters: Mapping[str, str] = field(default_factory=dict)
    default_model_filename: str = ""
    decoupled: bool = False
    proto: bytes = b""
