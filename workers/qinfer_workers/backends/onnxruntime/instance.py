"""Runs batches on an ONNX Runtime session."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from qinfer.datatypes import Array
from qinfer.errors import InvalidRequest, QInferError
from qinfer_workers.backends.base import Batch, InstanceSpec, Member, Outputs

_ONNX_BFLOAT16 = 16
"""`TensorProto.BFLOAT16`."""


class OnnxRuntimeInstance:
    """One session. Everything that does not change between batches is looked up here, once."""

    def __init__(
        self, session: Any, spec: InstanceSpec, run_options: Any | None, bad_input: type[Exception]
    ) -> None:
        config = spec.config
        self._run: Callable[..., Sequence[Any]] = session.run
        self._run_options = run_options
        self._bad_input = bad_input
        self._outputs = [tensor.name for tensor in config.outputs]
        self._string_inputs = [tensor.name for tensor in config.inputs if tensor.datatype == "BYTES"]
        self._string_outputs = {tensor.name for tensor in config.outputs if tensor.datatype == "BYTES"}

    def execute(self, batch: Batch) -> Outputs | Sequence[Outputs | QInferError]:
        """Run one batch; only the wanted outputs are computed.

        Raises:
            InvalidRequest: shapes do not fit the model, or a string is not UTF-8.
        """
        names = list(batch.outputs) or self._outputs
        feeds = {
            # Views into a received message lie at any offset, and kernels may use aligned loads.
            name: array if array.flags.aligned else array.copy()
            for name, array in batch.inputs.items()
        }
        for name in self._string_inputs:
            try:
                feeds[name] = _decode(name, feeds[name])
            except InvalidRequest:
                if len(batch.members) == 1:
                    raise
                return self._execute_apart(names, batch.members)
        return self._execute(names, feeds)

    def close(self) -> None:
        """Free the session."""
        del self._run

    def _execute(self, names: Sequence[str], feeds: dict[str, Array]) -> dict[str, Array]:
        try:
            results = self._call(names, feeds)
        except self._bad_input as error:
            raise InvalidRequest(f"the model does not accept these inputs: {error}") from error
        outputs: dict[str, Array] = dict(zip(names, results, strict=True))
        for name in self._string_outputs.intersection(names):
            outputs[name] = _encode(outputs[name])
        return outputs

    def _call(self, names: Sequence[str], feeds: Mapping[str, Array]) -> Sequence[Array]:
        return self._run(names, feeds, self._run_options)

    def _execute_apart(self, names: Sequence[str], members: Sequence[Member]) -> list[Outputs | QInferError]:
        """Run the members whose strings can be decoded, and give the others their errors."""
        answers: list[Outputs | QInferError | None] = [None] * len(members)
        good: list[tuple[int, dict[str, Array]]] = []
        for index, member in enumerate(members):
            try:
                decoded = {name: _decode(name, member.inputs[name]) for name in self._string_inputs}
            except InvalidRequest as error:
                answers[index] = error
            else:
                good.append((index, {**member.inputs, **decoded}))
        if good:
            feeds = {name: np.concatenate([inputs[name] for _, inputs in good]) for name in good[0][1]}
            outputs = self._execute(names, feeds)
            start = 0
            for index, _ in good:
                end = start + members[index].rows
                answers[index] = {name: array[start:end] for name, array in outputs.items()}
                start = end
        return [answer for answer in answers if answer is not None]


class Bfloat16Instance(OnnxRuntimeInstance):
    """For models with BF16 tensors: numpy has no such dtype, so the library passes them as its own values."""

    def __init__(
        self,
        ort: Any,
        session: Any,
        spec: InstanceSpec,
        run_options: Any | None,
        bad_input: type[Exception],
    ) -> None:
        super().__init__(session, spec, run_options, bad_input)
        self._run = session.run_with_ort_values
        self._value = ort.OrtValue
        self._inputs = {tensor.name for tensor in spec.config.inputs if tensor.datatype == "BF16"}
        self._bits = {tensor.name for tensor in spec.config.outputs if tensor.datatype == "BF16"}

    def _call(self, names: Sequence[str], feeds: Mapping[str, Array]) -> Sequence[Array]:
        values = {name: self._wrap(name, np.ascontiguousarray(array)) for name, array in feeds.items()}
        results = self._run(names, values, self._run_options)
        return [
            _bits(value) if name in self._bits else value.numpy()
            for name, value in zip(names, results, strict=True)
        ]

    def _wrap(self, name: str, array: Array) -> Any:
        if name in self._inputs:
            return self._value.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
        return self._value.ortvalue_from_numpy(array)


def make_instance(ort: Any, session: Any, spec: InstanceSpec, run_options: Any | None) -> OnnxRuntimeInstance:
    """Choose the kind of instance by the model's datatypes."""
    bad_input: type[Exception] = ort.capi.onnxruntime_pybind11_state.InvalidArgument
    if any(tensor.datatype == "BF16" for tensor in (*spec.config.inputs, *spec.config.outputs)):
        return Bfloat16Instance(ort, session, spec, run_options, bad_input)
    return OnnxRuntimeInstance(session, spec, run_options, bad_input)


def _bits(value: Any) -> Array:
    """Copy a BF16 value on the CPU as its uint16 bit patterns."""
    shape = value.shape()
    memory = (ctypes.c_uint16 * prod(shape)).from_address(value.data_ptr())
    bits: Array = np.array(memory, dtype=np.uint16).reshape(shape)
    return bits


def _decode(name: str, array: Array) -> Array:
    """BYTES (bytes) to ONNX strings, which are UTF-8.

    Raises:
        InvalidRequest: an element is not UTF-8.
    """
    texts = np.empty(array.size, dtype=object)
    for index, element in enumerate(array.ravel().tolist()):
        try:
            texts[index] = element.decode() if isinstance(element, bytes) else str(element)
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"input {name!r}: element {index} is not UTF-8 ({error.reason} at byte {error.start});"
                " strings of ONNX models are UTF-8 text"
            ) from None
    return texts.reshape(array.shape)


def _encode(array: Array) -> Array:
    raw = np.empty(array.size, dtype=object)
    raw[:] = [text.encode() for text in array.ravel().tolist()]
    return raw.reshape(array.shape)
