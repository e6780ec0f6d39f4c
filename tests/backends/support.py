"""A batch as the worker makes it, and configurations as the repository reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qinfer.datatypes import Array, datatype_of, to_numpy, to_raw
from qinfer.proto import ModelConfig as ModelConfigMessage
from qinfer.repository import InstanceGroup, ModelConfig, TensorSpec
from qinfer_workers.backends.base import InstanceSpec


def received(array: Array, datatype: str | None = None) -> Array:
    """The array as it comes out of a message: a read-only view."""
    name = datatype or datatype_of(array)
    return to_numpy(name, array.shape, bytes(to_raw(name, array)))


@dataclass(kw_only=True)
class Member:
    inputs: Mapping[str, Array]
    rows: int = 1
    outputs: Sequence[str] = ()
    input_datatypes: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    deadline_us: int = 0
    cancelled: bool = False

    def is_cancelled(self) -> bool:
        return self.cancelled


@dataclass(kw_only=True)
class Batch:
    members: Sequence[Member]
    batched: bool = True

    @property
    def rows(self) -> int:
        return sum(member.rows for member in self.members)

    @cached_property
    def inputs(self) -> Mapping[str, Array]:
        if len(self.members) == 1:
            return self.members[0].inputs
        names = self.members[0].inputs
        stacked = {name: np.concatenate([member.inputs[name] for member in self.members]) for name in names}
        for array in stacked.values():
            array.flags.writeable = False
        return stacked

    @property
    def outputs(self) -> Sequence[str]:
        if any(not member.outputs for member in self.members):
            return ()
        return tuple({name for member in self.members for name in member.outputs})


def batch_of(
    *requests: Mapping[str, Array], outputs: Sequence[str] = (), batched: bool = True, **tells: Any
) -> Batch:
    """A batch of one member for each mapping of inputs; BF16 inputs as `(bits, "BF16")`."""
    members = []
    for request in requests:
        pairs = {
            name: value if isinstance(value, tuple) else (value, datatype_of(value))
            for name, value in request.items()
        }
        members.append(
            Member(
                inputs={name: received(array, kind) for name, (array, kind) in pairs.items()},
                input_datatypes={name: kind for name, (_, kind) in pairs.items()},
                rows=len(next(iter(pairs.values()))[0]) if batched else 1,
                outputs=outputs,
                **tells,
            )
        )
    return Batch(members=members, batched=batched)


def tensor(name: str, datatype: str, *dims: int, **more: Any) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, dims=dims, **more)


def config_of(
    backend: str,
    *,
    name: str = "model",
    inputs: Sequence[TensorSpec] = (),
    outputs: Sequence[TensorSpec] = (),
    max_batch_size: int | None = None,
    parameters: Mapping[str, str] | None = None,
    text: Mapping[str, Any] | None = None,
    **more: Any,
) -> ModelConfig:
    """A configuration and its protobuf form; `text` is merged into the latter."""
    message = ModelConfigMessage(
        name=name, backend=backend, max_batch_size=max_batch_size or 0, **(text or {})
    )
    for group, specs in ((message.input, inputs), (message.output, outputs)):
        for spec in specs:
            kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
            added = group.add(name=spec.name, data_type=f"TYPE_{kind}", dims=spec.dims)
            if spec.reshape is not None:
                added.reshape.SetInParent()
                added.reshape.shape[:] = spec.reshape
    for key, value in (parameters or {}).items():
        message.parameters[key].string_value = value
    return ModelConfig(
        name=name,
        backend=backend,
        max_batch_size=max_batch_size or 0,
        max_batch_size_given=max_batch_size is not None,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        instance_groups=(InstanceGroup(kind="CPU"),),
        parameters=dict(parameters or {}),
        proto=message.SerializeToString(),
        **more,
    )


def spec_of(config: ModelConfig, directory: Path, *, kind: str = "CPU", name: str = "") -> InstanceSpec:
    return InstanceSpec(
        config=config, directory=directory, version=1, name=name or f"{config.name}_0", kind=kind, device=0
    )
