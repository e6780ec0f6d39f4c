"""Runs batches on a PyTorch program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from qinfer.errors import ModelFailed, Unsupported
from qinfer_workers.backends.base import Batch, InstanceSpec, Outputs
from qinfer_workers.backends.parameters import complain, where
from qinfer_workers.backends.torch.options import Options
from qinfer_workers.backends.torch.program import Program
from qinfer_workers.backends.torch.signature import datatypes, map_inputs, map_outputs
from qinfer_workers.backends.torch.tensors import to_array, to_tensor


class TorchInstance:
    """One program on one device.

    Raises:
        ConfigError: the configuration has no tensors, or they do not map to `forward`.
        Unsupported: a tensor is BYTES.
    """

    def __init__(
        self, torch: Any, program: Program, spec: InstanceSpec, options: Options, device: Any
    ) -> None:
        config = spec.config
        _check_datatypes(spec)
        self._torch = torch
        self._program: Program | None = program
        self._path = f"{config.name}/{spec.version}"
        self._device = device
        self._on_cpu = device.type == "cpu"
        # A tensor that is copied to a GPU is only read on the way.
        self._may_write = program.mutates and self._on_cpu
        self._input_datatypes = {tensor.name: tensor.datatype for tensor in config.inputs}
        self._output_datatypes = {tensor.name: tensor.datatype for tensor in config.outputs}
        self._arguments = {} if program.takes_dict else map_inputs(config, program.arguments)
        self._positions = map_outputs(config)
        self._names = datatypes(torch)
        self._contexts = _contexts(torch, options)
        self._clean_cache = options.clean_cache and not self._on_cpu

    def execute(self, batch: Batch) -> Outputs:
        """Run one batch.

        Raises:
            ModelFailed: the result does not fit the configured outputs.
        """
        program = self._program
        assert program is not None
        tensors = {name: self._tensor(name, batch) for name in batch.inputs}
        if program.takes_dict:
            arguments: Mapping[str, Any] = {program.arguments[0]: tensors}
        else:
            arguments = {self._arguments[name]: tensor for name, tensor in tensors.items()}
        with ExitStack() as stack:
            for context in self._contexts:
                stack.enter_context(context())
            result = program.run(arguments)
            wanted = batch.outputs or self._positions
            outputs = {name: to_array(self._torch, self._pick(name, result)) for name in wanted}
        if self._clean_cache:
            self._torch.cuda.empty_cache()
        return outputs

    def close(self) -> None:
        """Free the program and, on a GPU, give its memory back."""
        self._program = None
        if not self._on_cpu:
            self._torch.cuda.empty_cache()

    def _tensor(self, name: str, batch: Batch) -> Any:
        tensor = to_tensor(
            self._torch, batch.inputs[name], self._input_datatypes[name], may_write=self._may_write
        )
        return tensor if self._on_cpu else tensor.to(self._device, non_blocking=True)

    def _pick(self, name: str, result: Any) -> Any:
        """Find one output in whatever `forward` returned."""
        torch = self._torch
        position = self._positions[name]
        if isinstance(result, torch.Tensor):
            result = (result,)
        if isinstance(result, Mapping):
            value = result.get(name)
            found = f"a dict with {', '.join(map(str, result))}"
        elif isinstance(result, tuple | list):
            value = result[position] if position < len(result) else None
            found = f"{len(result)} values"
        else:
            value, found = None, type(result).__name__
        if not isinstance(value, torch.Tensor):
            found = found if value is None else type(value).__name__
            raise ModelFailed(
                f"{self._path}: output {name!r}: forward returned {found}; expected a tensor"
                f" {'of that name' if isinstance(result, Mapping) else f'at position {position}'}"
            )
        expected = self._output_datatypes[name]
        if self._names.get(value.dtype) != expected:
            raise ModelFailed(
                f"{self._path}: output {name!r}: forward returned {value.dtype}; expected {expected} by the"
                " configuration"
            )
        return value


def _contexts(torch: Any, options: Options) -> Sequence[Callable[[], AbstractContextManager[object]]]:
    contexts: list[Callable[[], AbstractContextManager[object]]] = [
        torch.inference_mode if options.inference_mode else torch.no_grad
    ]
    if not options.optimized_execution:
        contexts.append(lambda: torch.jit.optimized_execution(False))
    return contexts


def _check_datatypes(spec: InstanceSpec) -> None:
    config = spec.config
    for role, tensors in (("input", config.inputs), ("output", config.outputs)):
        if not tensors:
            raise complain(
                config, role, "found none", f"at least one {role}: TorchScript files do not tell them"
            )
        for tensor in tensors:
            if tensor.datatype == "BYTES":
                raise Unsupported(
                    f"{where(config)}: {role} {tensor.name!r}: data_type: found BYTES; expected a"
                    " numeric"
                    " type: the torch backend passes tensors only"
                )
