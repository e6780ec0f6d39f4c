"""Runs batches on a Python model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qinfer.datatypes import Array
from qinfer.errors import ModelFailed, QInferError
from qinfer.repository import TensorSpec
from qinfer_workers.backends.base import Batch, InstanceSpec, Member, Outputs, OutputsWithParameters
from qinfer_workers.backends.python.failures import describe
from qinfer_workers.backends.python.scope import Scope
from qinfer_workers.backends.python.triton import InferenceRequest, InferenceResponse, Tensor

logger = logging.getLogger(__name__)


class PythonModel:
    """What instances of all `TritonPythonModel`s have in common."""

    def __init__(self, model: Any, scope: Scope, spec: InstanceSpec, path: Path, *, read_only: bool) -> None:
        self._model = model
        self._run: Callable[[list[InferenceRequest]], Any] = model.execute
        self._scope = scope
        self._name = spec.config.name
        self._version = spec.version
        self._where = f"{spec.config.name}/{spec.version}/{path.name}"
        self._path = path
        self._read_only = read_only
        self._batched = spec.config.max_batch_size > 0
        self._outputs = {tensor.name: tensor for tensor in spec.config.outputs}

    def close(self) -> None:
        """Call the model's `finalize`; what it raises is logged: it must not keep a worker from stopping."""
        finalize = getattr(self._model, "finalize", None)
        if finalize is not None:
            try:
                with self._scope.active():
                    finalize()
            except (Exception, SystemExit):
                logger.exception("%s: finalize raised", self._where)
        del self._model, self._run
        self._scope.close()

    def _answer(self, member: Member, response: Any, *, whole: bool = True) -> Outputs | QInferError:
        """A response as the worker wants it.

        Args:
            member: the request.
            response: what the model gave.
            whole: it is the only one: it has every wanted output, and the request's rows.
        """
        if not isinstance(response, InferenceResponse):
            return ModelFailed(
                f"{self._where}: execute returned {type(response).__name__} for a request; expected"
                " InferenceResponse"
            )
        error = response.error()
        if error is not None:
            return error.to_qinfer()
        tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
        outputs: dict[str, Array] = {}
        try:
            for name in member.outputs or self._outputs:
                if whole or name in tensors:
                    rows = member.rows if whole else -1
                    outputs[name] = self._output(name, tensors.get(name), rows)
        except ModelFailed as failure:
            return failure
        parameters = response.parameter_values()
        return OutputsWithParameters(outputs, parameters=parameters) if parameters else outputs

    def _output(self, name: str, tensor: Tensor | None, rows: int) -> Array:
        """Check one output against the configuration: its clients were promised that."""
        spec = self._outputs[name]
        if tensor is None:
            raise ModelFailed(
                f"{self._where}: output {name!r} is missing from the response; expected {_text(spec)}"
            )
        if tensor.datatype() != spec.datatype:
            raise ModelFailed(
                f"{self._where}: output {name!r}: data_type: found {tensor.datatype()}; expected"
                f" {spec.datatype}"
                " by the configuration"
            )
        array = tensor.raw()
        dims = spec.dims if spec.reshape is None else spec.reshape
        expected = (rows, *dims) if self._batched else dims
        shape = array.shape
        if len(shape) != len(expected) or any(
            want not in (-1, have) for have, want in zip(shape, expected, strict=True)
        ):
            raise ModelFailed(
                f"{self._where}: output {name!r}: shape: found {list(shape)}; expected {list(expected)}"
                f"{' (rows first)' if self._batched else ''} by the configuration"
            )
        return _bytes_of(array) if spec.datatype == "BYTES" else array


class PythonInstance(PythonModel):
    """One `TritonPythonModel` that gives one response to each request."""

    def execute(self, batch: Batch) -> Sequence[Outputs | QInferError]:
        """Run one batch; each member gets its own outputs or its own error.

        Raises:
            ModelFailed: the model raised, or did not return one response for each request.
        """
        members = batch.members
        requests = [
            InferenceRequest(member, self._name, self._version, read_only=self._read_only)
            for member in members
        ]
        try:
            with self._scope.active():
                responses = self._run(requests)
        except QInferError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelFailed(f"{self._where}: execute raised {describe(error, self._path)}") from error
        if not isinstance(responses, list | tuple) or len(responses) != len(members):
            found = f"{len(responses)} of them" if isinstance(responses, list | tuple) else repr(responses)
            raise ModelFailed(
                f"{self._where}: execute returned {found}; expected a list of {len(members)}"
                " InferenceResponse,"
                " one for each request"
            )
        return [self._answer(member, response) for member, response in zip(members, responses, strict=True)]


def _text(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.dims)}"


def _bytes_of(array: Array) -> Array:
    """String tensors as objects of bytes, whatever the model made them of."""
    raw = np.empty(array.size, dtype=object)
    raw[:] = [
        element if isinstance(element, bytes) else str(element).encode() for element in array.ravel().tolist()
    ]
    return raw.reshape(array.shape)
