"""Typed view of a model's configuration.

The configuration itself is the protobuf message `inference.ModelConfig` (`qinfer.proto`), so that nothing a
`config.pbtxt` says is lost; the dataclasses here are what the rest of qinfer reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from qinfer import proto
from qinfer.repository import platforms
from qinfer.repository.document import config_error
from qinfer.repository.validate import check

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

_Tensor = TypeVar("_Tensor", proto.ModelInput, proto.ModelOutput)


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
class QueuePolicy:
    """What becomes of requests that wait; `ModelQueuePolicy` of the configuration.

    Attributes:
        timeout_action: "REJECT" or "DELAY" (behind all others) when the timeout has passed.
        default_timeout_us: microseconds a request may wait; 0 for no limit of the queue's own.
        allow_timeout_override: a request may shorten its timeout.
        max_queue_size: requests that may wait; 0 for no limit of the model's own.
    """

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_us: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicBatching:
    """`dynamic_batching` of the configuration.

    Attributes:
        max_queue_delay_us: microseconds a batch may be held open for company.
        preferred_batch_sizes: rows at which a batch is closed at once, ascending.
        preserve_ordering: responses leave in the order of their requests.
        priority_levels: levels there are, 1 the most urgent; 0 when all requests are equal.
        default_priority_level: level of requests that ask for none.
        default_queue_policy: policy of levels without one of their own.
        queue_policies: policies by level.
    """

    max_queue_delay_us: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = field(default_factory=QueuePolicy)
    queue_policies: Mapping[int, QueuePolicy] = field(default_factory=dict)


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
        max_batch_size_given: `max_batch_size` was written down, even if it is 0, and is not for a backend to
            choose.
        source: the file it was read from, as error messages call it.
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
    max_batch_size_given: bool = True
    source: str = ""


def from_message(
    message: proto.ModelConfig,
    *,
    source: str = "",
    max_batch_size_given: bool = True,
    labels: Mapping[str, tuple[str, ...]] | None = None,
) -> ModelConfig:
    """The typed view of a configuration that is known to be right and whose `backend` is settled.

    Args:
        message: not changed; the view's own `proto` has the defaults filled in that qinfer acts on.
        source: the file it was read from.
        max_batch_size_given: it says `max_batch_size`, even if 0.
        labels: class labels by output.
    """
    message = _with_defaults(message)
    batching = message.dynamic_batching if message.HasField("dynamic_batching") else None
    backend = platforms.backend(message.backend)
    return ModelConfig(
        name=message.name,
        backend=backend,
        platform=message.platform or backend,
        max_batch_size=message.max_batch_size,
        inputs=tuple(_tensor(tensor, {}) for tensor in message.input),
        outputs=tuple(_tensor(tensor, labels or {}) for tensor in message.output),
        dynamic_batching=None if batching is None else _dynamic_batching(batching),
        instance_groups=tuple(_instance_group(group) for group in message.instance_group),
        version_policy=_version_policy(message.version_policy),
        parameters={key: value.string_value for key, value in sorted(message.parameters.items())},
        default_model_filename=message.default_model_filename,
        decoupled=message.model_transaction_policy.decoupled,
        proto=message.SerializeToString(deterministic=True),
        max_batch_size_given=max_batch_size_given,
        source=source,
    )


def to_message(config: ModelConfig) -> proto.ModelConfig:
    """The whole configuration: `config.proto`, with every field that the view has set to the view's value."""
    message = proto.ModelConfig.FromString(config.proto)
    message.name = config.name
    if platforms.backend(message.backend) != config.backend:
        message.backend = platforms.triton_backend(config.backend)
    message.platform = config.platform if config.platform != config.backend else ""
    message.max_batch_size = config.max_batch_size
    _put_tensors(message.input, config.inputs)
    _put_tensors(message.output, config.outputs)
    if config.dynamic_batching is not None:
        _put_dynamic_batching(message.dynamic_batching, config.dynamic_batching)
    else:
        message.ClearField("dynamic_batching")
    _put_instance_groups(message.instance_group, config.instance_groups)
    _put_version_policy(message.version_policy, config.version_policy)
    message.ClearField("parameters")
    for key, value in config.parameters.items():
        message.parameters[key].string_value = value
    message.default_model_filename = config.default_model_filename
    if config.decoupled or message.HasField("model_transaction_policy"):
        message.model_transaction_policy.decoupled = config.decoupled
    return message


def complete(
    config: ModelConfig,
    *,
    inputs: Sequence[TensorSpec] | None = None,
    outputs: Sequence[TensorSpec] | None = None,
    max_batch_size: int | None = None,
    backend: str | None = None,
) -> ModelConfig:
    """The configuration with what is given here filled in, in the view and in `proto` alike.

    What `proto` says of a tensor beyond its `TensorSpec` is kept, by the tensor's name, and so are labels. A
    tensor without dims becomes one of dims `[1]`, reshaped to no dimension for the backend, because a
    configuration cannot express it otherwise.

    Args:
        inputs, outputs: the whole signature.
        max_batch_size: rows a batch may have, 0 for none.
        backend: qinfer's name of the backend.

    Raises:
        ConfigError: the result is not a valid configuration.
    """
    if backend is not None and backend != config.backend:
        config = replace(config, backend=backend, platform=platforms.legacy_platform(backend))
    labels = {spec.name: spec.labels for spec in (*config.outputs, *(outputs or ())) if spec.labels}
    config = replace(
        config,
        inputs=_reshaped(config.inputs if inputs is None else inputs),
        outputs=_reshaped(config.outputs if outputs is None else outputs),
        max_batch_size=config.max_batch_size if max_batch_size is None else max_batch_size,
        max_batch_size_given=config.max_batch_size_given or max_batch_size is not None,
    )
    message = to_message(config)
    if faults := check(message, batch_size_known=config.max_batch_size_given):
        raise config_error(config.source or f"configuration of model {config.name}", faults)
    return from_message(
        message, source=config.source, max_batch_size_given=config.max_batch_size_given, labels=labels
    )


def _with_defaults(message: proto.ModelConfig) -> proto.ModelConfig:
    """A copy in which what is left out, and is acted on nevertheless, is written down."""
    full = proto.ModelConfig()
    full.CopyFrom(message)
    if full.version_policy.WhichOneof("policy_choice") is None:
        full.version_policy.latest.num_versions = 1
    if not full.instance_group:
        full.instance_group.add()
    kinds = proto.ModelInstanceGroup
    for index, group in enumerate(full.instance_group):
        group.name = group.name or f"{full.name}_{index}"
        group.count = group.count or 1
        if group.gpus and group.kind == kinds.KIND_AUTO:
            group.kind = kinds.KIND_GPU
    return full


def _tensor(
    tensor: proto.ModelInput | proto.ModelOutput, labels: Mapping[str, tuple[str, ...]]
) -> TensorSpec:
    name = proto.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return TensorSpec(
        name=tensor.name,
        datatype="BYTES" if name == "STRING" else name,
        dims=tuple(tensor.dims),
        reshape=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        optional=tensor.optional if isinstance(tensor, proto.ModelInput) else False,
        labels=labels.get(tensor.name, ()),
    )


def _reshaped(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(spec if spec.dims else replace(spec, dims=(1,), reshape=()) for spec in specs)


def _put_tensors(tensors: RepeatedCompositeFieldContainer[_Tensor], specs: Iterable[TensorSpec]) -> None:
    known = {tensor.name: tensor for tensor in tensors}
    del tensors[:]
    for spec in specs:
        if spec.name in known:
            tensors.append(known[spec.name])
        tensor = tensors[-1] if spec.name in known else tensors.add()
        datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
        tensor.name = spec.name
        tensor.data_type = proto.DataType.Value(f"TYPE_{datatype}")  # type: ignore[assignment]
        tensor.dims[:] = spec.dims
        tensor.ClearField("reshape")
        if spec.reshape is not None:
            tensor.reshape.SetInParent()
            tensor.reshape.shape[:] = spec.reshape
        if isinstance(tensor, proto.ModelInput):
            tensor.optional = spec.optional


def _dynamic_batching(batching: proto.ModelDynamicBatching) -> DynamicBatching:
    return DynamicBatching(
        max_queue_delay_us=batching.max_queue_delay_microseconds,
        preferred_batch_sizes=tuple(sorted(set(batching.preferred_batch_size))),
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        default_queue_policy=_queue_policy(batching.default_queue_policy),
        queue_policies={
            level: _queue_policy(policy) for level, policy in sorted(batching.priority_queue_policy.items())
        },
    )


def _put_dynamic_batching(message: proto.ModelDynamicBatching, batching: DynamicBatching) -> None:
    message.Clear()
    message.SetInParent()
    message.preferred_batch_size[:] = batching.preferred_batch_sizes
    message.max_queue_delay_microseconds = batching.max_queue_delay_us
    message.preserve_ordering = batching.preserve_ordering
    message.priority_levels = batching.priority_levels
    message.default_priority_level = batching.default_priority_level
    if batching.default_queue_policy != QueuePolicy():
        _put_queue_policy(message.default_queue_policy, batching.default_queue_policy)
    for level, policy in batching.queue_policies.items():
        _put_queue_policy(message.priority_queue_policy[level], policy)


def _queue_policy(policy: proto.ModelQueuePolicy) -> QueuePolicy:
    delay = policy.timeout_action == proto.ModelQueuePolicy.DELAY
    return QueuePolicy(
        timeout_action="DELAY" if delay else "REJECT",
        default_timeout_us=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _put_queue_policy(message: proto.ModelQueuePolicy, policy: QueuePolicy) -> None:
    action = proto.ModelQueuePolicy.TimeoutAction.Value(policy.timeout_action)
    message.timeout_action = action  # type: ignore[assignment]
    message.default_timeout_microseconds = policy.default_timeout_us
    message.allow_timeout_override = policy.allow_timeout_override
    message.max_queue_size = policy.max_queue_size


def _instance_group(group: proto.ModelInstanceGroup) -> InstanceGroup:
    return InstanceGroup(
        name=group.name,
        kind=proto.ModelInstanceGroup.Kind.Name(group.kind).removeprefix("KIND_"),
        count=group.count,
        gpus=tuple(group.gpus),
    )


def _put_instance_groups(
    messages: RepeatedCompositeFieldContainer[proto.ModelInstanceGroup], groups: Sequence[InstanceGroup]
) -> None:
    del messages[len(groups) :]
    for index, group in enumerate(groups):
        message = messages[index] if index < len(messages) else messages.add()
        message.name = group.name
        message.kind = proto.ModelInstanceGroup.Kind.Value(f"KIND_{group.kind}")  # type: ignore[assignment]
        message.count = group.count
        message.gpus[:] = group.gpus


def _version_policy(policy: proto.ModelVersionPolicy) -> VersionPolicy:
    if policy.HasField("specific"):
        return VersionPolicy(latest=None, specific=tuple(policy.specific.versions))
    return VersionPolicy(latest=policy.latest.num_versions if policy.HasField("latest") else None)


def _put_version_policy(message: proto.ModelVersionPolicy, policy: VersionPolicy) -> None:
    message.Clear()
    if policy.specific:
        message.specific.versions[:] = policy.specific
    elif policy.latest is not None:
        message.latest.num_versions = policy.latest
    else:
        message.all.SetInParent()
