"""Checks requests against a model's signature, and tells which may share a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Protocol, TypeAlias

from qinfer.datatypes import DATATYPES
from qinfer.errors import InvalidRequest
from qinfer.message import Request, Tensor

_MAX_PLANS = 1024
_MAX_DIM = 2**63 - 1  # what a frame can carry; a tensor without elements may claim any size

Key: TypeAlias = tuple[tuple[str, str, tuple[int, ...]], ...]

Shapes: TypeAlias = tuple[Any, ...]


class TensorLike(Protocol):
    """What a signature needs to know of a tensor: `TensorSpec` and `TensorRecord` both tell it."""

    @property
    def name(self) -> str: ...

    @property
    def datatype(self) -> str: ...

    @property
    def dims(self) -> tuple[int, ...]: ...

    @property
    def optional(self) -> bool: ...


class Plan:
    """What all requests with the same inputs, datatypes and row shapes have in common.

    Requests of one plan can be concatenated along the batch dimension.

    Attributes:
        key: names, datatypes and shapes of one row, in the order the first request had them.
        row_bytes: bytes of one row of each input; 0 for BYTES, whose rows differ in size.
    """

    __slots__ = ("key", "row_bytes")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.row_bytes = tuple(prod(dims) * DATATYPES[datatype].itemsize for _, datatype, dims in key)


_Known: TypeAlias = tuple[Plan, int, tuple[int, ...]]
"""What follows from a request's exact shapes: its plan, its rows, and the bytes each input must have (-1 for
BYTES, whose sizes no shape tells)."""


class Signature:
    """The checks one model version asks of its requests, at the gateway and again at the worker.

    Args:
        inputs, outputs: the model's tensors, `dims` without the batch dimension.
        max_batch_size: rows a request may have; 0 when the model has no batch dimension.
    """

    def __init__(
        self, inputs: Iterable[TensorLike], outputs: Iterable[TensorLike], max_batch_size: int
    ) -> None:
        self.max_batch_size = max_batch_size
        self._inputs = {spec.name: spec for spec in inputs}
        self._required = [name for name, spec in self._inputs.items() if not spec.optional]
        self._outputs = {spec.name for spec in outputs}
        self._plans: dict[Key, Plan] = {}
        self._known: dict[Shapes, _Known] = {}

    def check(self, request: Request) -> tuple[Plan, int]:
        """The request's plan and its number of rows.

        Raises:
            InvalidRequest: the request does not fit the signature, or is larger than a batch may be.
        """
        inputs = request.inputs
        if len(inputs) == 1:
            tensor = inputs[0]
            shapes: Shapes = (tensor.name, tensor.datatype, *tensor.shape)
        else:
            shapes = tuple([(t.name, t.datatype, *t.shape) for t in inputs])
        plan, rows, sizes = self._known.get(shapes) or self._learn(shapes, inputs)
        for tensor, size in zip(inputs, sizes, strict=True):
            if size >= 0 and len(tensor.data) != size:
                raise InvalidRequest(
                    f"input {tensor.name!r}: {tensor.datatype} of shape {tensor.shape} needs "
                    f"{size} bytes; got {len(tensor.data)}"
                )
        if request.outputs:
            self._check_outputs(request.outputs)
        return plan, rows

    def _learn(self, shapes: Shapes, inputs: Sequence[Tensor]) -> _Known:
        """Check shapes not seen before and remember what follows from them."""
        batched = 1 if self.max_batch_size else 0
        key = tuple([(t.name, t.datatype, tuple(t.shape[batched:])) for t in inputs])
        plan = self._plans.get(key) or self._plan(key, inputs)
        rows = self._rows(inputs) if batched else 1
        sizes = tuple(
            [
                -1 if datatype == "BYTES" else rows * size
                for (_, datatype, _), size in zip(key, plan.row_bytes, strict=True)
            ]
        )
        if len(self._known) >= _MAX_PLANS:  # shapes come from clients: do not keep every one ever seen
            self._known.clear()
        known = self._known[shapes] = (plan, rows, sizes)
        return known

    def _check_outputs(self, names: Sequence[str]) -> None:
        for name in names:
            if self._outputs and name not in self._outputs:
                raise InvalidRequest(f"output {name!r} is not one of {', '.join(sorted(self._outputs))}")

    def _rows(self, inputs: Sequence[Tensor]) -> int:
        first = inputs[0]
        rows = first.shape[0] if first.shape else 0
        for tensor in inputs:
            if not tensor.shape:  # its plan may be known: () and (n,) have rows of the same shape
                raise InvalidRequest(f"input {tensor.name!r}: shape [] has no batch dimension")
            if tensor.shape[0] != rows:
                raise InvalidRequest(
                    f"inputs disagree about the batch size: {first.name!r} has {rows} rows, "
                    f"{tensor.name!r} has {tensor.shape[0]}"
                )
        if not 1 <= rows <= self.max_batch_size:
            raise InvalidRequest(
                f"batch of {rows} rows; expected 1 to {self.max_batch_size} (the model's max_batch_size)"
            )
        return rows

    def _plan(self, key: Key, inputs: Sequence[Tensor]) -> Plan:
        """Check what a new combination of inputs looks like and remember it."""
        names = [tensor.name for tensor in inputs]
        if not names and (self._inputs or self.max_batch_size):
            raise InvalidRequest(f"the request has no inputs; expected {', '.join(self._inputs) or 'some'}")
        missing = [name for name in self._required if name not in names]
        if missing:
            raise InvalidRequest(f"input {missing[0]!r} is missing; expected {', '.join(self._required)}")
        if len(set(names)) != len(names):
            raise InvalidRequest(f"an input is given twice: {', '.join(names)}")
        for tensor in inputs:
            self._check_tensor(tensor)
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        plan = self._plans[key] = Plan(key)
        return plan

    def _check_tensor(self, tensor: Tensor) -> None:
        spec = self._inputs.get(tensor.name)
        if spec is None:
            raise InvalidRequest(f"input {tensor.name!r} is not one of {', '.join(self._inputs)}")
        if tensor.datatype != spec.datatype:
            raise InvalidRequest(
                f"input {tensor.name!r}: datatype {tensor.datatype}; expected {spec.datatype}"
            )
        if self.max_batch_size and not tensor.shape:
            raise InvalidRequest(f"input {tensor.name!r}: shape [] has no batch dimension")
        dims = tensor.shape[1:] if self.max_batch_size else tensor.shape
        fits = len(dims) == len(spec.dims) and all(
            0 <= got <= _MAX_DIM and want in (-1, got) for got, want in zip(dims, spec.dims, strict=True)
        )
        if not fits:
            raise InvalidRequest(
                f"input {tensor.name!r}: shape {tensor.shape}; expected {self._expected(spec)}"
            )

    def _expected(self, spec: TensorLike) -> list[int]:
        return [-1, *spec.dims] if self.max_batch_size else list(spec.dims)
