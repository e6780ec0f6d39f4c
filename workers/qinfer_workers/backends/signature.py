"""Fit what a model file says of its tensors to what the configuration says.

A model file is the better witness: what the configuration leaves out is taken from it, and where the two
disagree the model is refused when it is loaded rather than at its first request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qinfer.errors import ConfigError
from qinfer.repository import ModelConfig, TensorSpec
from qinfer.repository.config import complete
from qinfer_workers.backends.parameters import where

DEFAULT_MAX_BATCH_SIZE = 4
"""Given to models that can batch and whose configuration does not say how far; the same as Triton's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """An input or output as the model file declares it.

    Attributes:
        name: tensor name.
        datatype: protocol datatype; "" where the file does not tell.
        shape: whole shape, -1 for a variable dimension; None where the file does not tell.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None

    @property
    def can_batch(self) -> bool:
        return self.shape is None or self.shape[:1] == (-1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSignature:
    """All of a model file's tensors, in its order.

    Attributes:
        path: the file as messages name it, for instance "mlp/1/model.onnx".
        inputs, outputs: its tensors.
    """

    path: str
    inputs: Sequence[FileTensor]
    outputs: Sequence[FileTensor]


def fit(config: ModelConfig, file: FileSignature) -> ModelConfig:
    """Complete the configuration from the file's signature.

    The batch dimension: a model can batch when the first dimension of all its inputs and outputs is
    variable. A configuration that gives neither tensors nor `max_batch_size`, 0 included, then gets
    `DEFAULT_MAX_BATCH_SIZE`. One that gives tensors decides by their rank: dims as long as the file's
    shapes have no batch dimension.

    Raises:
        ConfigError: the two contradict each other. The message names the tensor, what was found in the
            configuration, and what the file makes expected.
    """
    rows = _max_batch_size(config, file)
    inputs = tuple(
        _fit_group(config, "input", config.inputs, file.inputs, rows, file.path, complete_list=True)
    )
    outputs = tuple(
        _fit_group(config, "output", config.outputs, file.outputs, rows, file.path, complete_list=False)
    )
    if inputs == config.inputs and outputs == config.outputs and rows == config.max_batch_size:
        return config
    return complete(
        config,
        inputs=inputs if inputs != config.inputs else None,
        outputs=outputs if outputs != config.outputs else None,
        max_batch_size=rows if rows != config.max_batch_size else None,
    )


def _max_batch_size(config: ModelConfig, file: FileSignature) -> int:
    tensors = [*file.inputs, *file.outputs]
    fixed = next((tensor for tensor in tensors if not tensor.can_batch), None)
    if config.max_batch_size > 0:
        if fixed is not None:
            raise ConfigError(
                f"{where(config)}: max_batch_size: found {config.max_batch_size}; expected 0, because"
                f" tensor {fixed.name!r} of {file.path} has shape {_text(fixed.shape)}: its first dimension"
                " is"
                " not variable, so requests cannot share a batch"
            )
        return config.max_batch_size
    given = config.max_batch_size_given or config.inputs or config.outputs
    if fixed is not None or given or not tensors:
        return 0
    # A shape the file does not tell may be a batch's, but nothing says so: never batch on a guess.
    return DEFAULT_MAX_BATCH_SIZE if all(tensor.shape for tensor in tensors) else 0


def _fit_group(
    config: ModelConfig,
    role: str,
    specs: Sequence[TensorSpec],
    tensors: Sequence[FileTensor],
    rows: int,
    path: str,
    *,
    complete_list: bool,
) -> list[TensorSpec]:
    """Inputs must all be configured (a model cannot run without one); outputs may be a selection."""
    if not specs:
        return [_new(config, role, tensor, rows, path) for tensor in tensors]
    by_name = {tensor.name: tensor for tensor in tensors}
    fitted = []
    for spec in specs:
        tensor = by_name.pop(spec.name, None)
        if tensor is None:
            names = ", ".join(repr(tensor.name) for tensor in tensors)
            raise ConfigError(
                f"{where(config)}: {role}: found tensor {spec.name!r}; expected one of those of"
                f" {path}: {names}"
            )
        fitted.append(_fit_tensor(config, role, spec, tensor, rows, path))
    if complete_list and by_name:
        missing = ", ".join(repr(name) for name in by_name)
        raise ConfigError(f"{where(config)}: {role}: missing {missing}; expected all {role}s of {path}")
    return fitted


def _new(config: ModelConfig, role: str, tensor: FileTensor, rows: int, path: str) -> TensorSpec:
    if not tensor.datatype or tensor.shape is None:
        raise ConfigError(
            f"{where(config)}: {role}: {tensor.name!r} is missing; expected its data_type and dims,"
            f" because {path} does not tell them"
        )
    return TensorSpec(name=tensor.name, datatype=tensor.datatype, dims=tensor.shape[1 if rows else 0 :])


def _fit_tensor(
    config: ModelConfig, role: str, spec: TensorSpec, tensor: FileTensor, rows: int, path: str
) -> TensorSpec:
    place = f"{where(config)}: {role} {spec.name!r}"
    if tensor.datatype and spec.datatype != tensor.datatype:
        if spec.datatype not in ("", "INVALID"):
            raise ConfigError(
                f"{place}: data_type: found {spec.datatype}; expected {tensor.datatype} as in {path}"
            )
        spec = replace(spec, datatype=tensor.datatype)
    if tensor.shape is None:
        return spec
    expected = tensor.shape[1 if rows else 0 :]
    dims = spec.dims if spec.reshape is None else spec.reshape
    if len(dims) == len(expected) and all(
        want in (-1, have) for have, want in zip(dims, expected, strict=True)
    ):
        return spec
    field = "dims" if spec.reshape is None else "reshape"
    hint = (
        "" if rows or not tensor.can_batch else "; or set max_batch_size, if the first dimension is the batch"
    )
    raise ConfigError(
        f"{place}: {field}: found {list(dims)}; expected {_text(expected)} as in {path}"
        f"{' without the batch dimension' if rows else ''}{hint}"
    )


def _text(shape: Sequence[int] | None) -> str:
    return "unknown" if shape is None else str(list(shape))
