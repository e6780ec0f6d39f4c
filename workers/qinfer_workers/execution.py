"""Runs one batch on one instance and turns the outcome into a response for each member.

Called from the instance's thread. A batch that fails is split and retried by halves until the culprit stands
alone, so that one bad request does not fail its batch-mates.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from qinfer.datatypes import Array, encode_bytes, to_raw
from qinfer.errors import Cancelled, ModelFailed, QInferError
from qinfer.message import Response, Tensor, WireError
from qinfer.repository import ModelConfig
from qinfer_workers.backends.base import Instance, Outputs, OutputsWithParameters
from qinfer_workers.batch import Batch, Member

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Timing:
    """Nanoseconds a batch spent in each step, retries included, and how often the model ran."""

    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    executions: int = 0


class Executor:
    """Executes batches of one model version on one instance."""

    def __init__(self, config: ModelConfig, instance: Instance) -> None:
        self._name = config.name
        self._instance = instance
        self._datatypes = {spec.name: spec.datatype for spec in config.outputs}

    def execute(self, batch: Batch) -> Timing:
        """Run the batch and set every member's `response`."""
        timing = Timing()
        self._run(batch, timing)
        return timing

    def close(self) -> None:
        self._instance.close()

    def _run(self, batch: Batch, timing: Timing) -> None:
        start = prepared = perf_counter_ns()
        try:
            batch.inputs  # noqa: B018 (stacked here, so that the time is counted as input)
            prepared = perf_counter_ns()
            result = self._instance.execute(batch)
            done = perf_counter_ns()
            timing.executions += 1
            if isinstance(result, Mapping):
                self._split(batch, result)
            else:
                self._assign(batch, result)
        except BaseException as error:  # noqa: BLE001 (model code may even exit; every member is answered)
            timing.input_ns += prepared - start
            timing.infer_ns += perf_counter_ns() - prepared
            self._failed(batch, error, timing)
            return
        timing.input_ns += prepared - start
        timing.infer_ns += done - prepared
        timing.output_ns += perf_counter_ns() - done

    def _failed(self, batch: Batch, error: BaseException, timing: Timing) -> None:
        if batch.is_cancelled():  # a model that stops because nobody waits any more raises, mostly
            self._abandon(batch)
            return
        if len(batch.members) > 1:
            for half in batch.halves():
                if half.is_cancelled():
                    self._abandon(half)
                else:
                    self._run(half, timing)
            return
        if isinstance(error, QInferError):
            failure = error
        else:
            logger.warning("model %s failed", self._name, exc_info=error)
            failure = ModelFailed(f"model {self._name!r}: {describe(error)}")
        batch.members[0].response = _failure(batch.members[0], failure)

    def _abandon(self, batch: Batch) -> None:
        gone = Cancelled(f"model {self._name!r}: stopped, nobody waits for the answer any more")
        for member in batch.members:
            member.response = _failure(member, gone)

    def _split(self, batch: Batch, outputs: Outputs) -> None:
        """Give each member its rows of the batch's outputs."""
        columns = [self._column(name, array, batch) for name, array in outputs.items()]
        offset = 0
        for member in batch.members:
            end = offset + member.rows
            wanted = member.request.outputs
            tensors = [column.rows(offset, end) for column in columns if not wanted or column.name in wanted]
            member.response = _success(member, tensors)
            offset = end

    def _column(self, name: str, array: Array, batch: Batch) -> _Column:
        if batch.batched and (array.ndim == 0 or array.shape[0] != batch.rows):
            raise ModelFailed(
                f"model {self._name!r}: output {name!r} has shape {list(array.shape)}; "
                f"expected {batch.rows} rows in its first dimension"
            )
        datatype = self._datatypes.get(name)
        return _Column(name, array, datatype, whole=not batch.batched)

    def _assign(self, batch: Batch, results: Sequence[Outputs | QInferError]) -> None:
        """Give each member its own result."""
        if len(results) != len(batch.members):
            raise ModelFailed(
                f"model {self._name!r} gave {len(results)} results for {len(batch.members)} requests"
            )
        for member, result in zip(batch.members, results, strict=True):
            if isinstance(result, QInferError):
                member.response = _failure(member, result)
                continue
            try:
                wanted = member.request.outputs
                tensors = [
                    Tensor.from_numpy(name, array, self._datatypes.get(name))
                    for name, array in result.items()
                    if not wanted or name in wanted
                ]
            except QInferError as error:
                member.response = _failure(member, ModelFailed(f"model {self._name!r}: {error}"))
            else:
                member.response = _success(member, tensors)
                if isinstance(result, OutputsWithParameters):
                    member.response.parameters = dict(result.parameters)


class _Column:
    """One output of a batch, ready to be cut into rows without copying."""

    __slots__ = ("_array", "_raw", "_row_bytes", "_shape", "_whole", "datatype", "name")

    def __init__(self, name: str, array: Array, datatype: str | None, *, whole: bool) -> None:
        tensor_type = datatype or Tensor.from_numpy(name, array).datatype
        self.name = name
        self.datatype = tensor_type
        self._whole = whole
        self._shape = list(array.shape if whole else array.shape[1:])
        self._array: Array | None = None
        if tensor_type == "BYTES":
            self._array = array
        else:
            self._raw = memoryview(to_raw(tensor_type, array))
            self._row_bytes = len(self._raw) // max(1, 1 if whole else array.shape[0])

    def rows(self, start: int, end: int) -> Tensor:
        shape = self._shape if self._whole else [end - start, *self._shape]
        if self._array is not None:
            part = self._array if self._whole else self._array[start:end]
            return Tensor(self.name, self.datatype, shape, encode_bytes(np.ravel(part).tolist()))
        return Tensor(
            self.name, self.datatype, shape, self._raw[start * self._row_bytes : end * self._row_bytes]
        )


def describe(error: BaseException) -> str:
    """An exception's type and message, whatever model code made of it."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 (an exception of model code that cannot be printed)
        return type(error).__name__


def _success(member: Member, tensors: list[Tensor]) -> Response:
    return Response(member.request.id, member.request.attempt + member.frame.delivery.attempt, None, tensors)


def _failure(member: Member, error: QInferError) -> Response:
    return Response(
        member.request.id, member.request.attempt + member.frame.delivery.attempt, WireError.of(error)
    )


def failure(member: Member, error: QInferError) -> Response:
    """The response for a member that never reached the model."""
    return _failure(member, error)
