"""`reshape` of the configuration: the shapes clients use are not always those the model wants.

Backends see only the model's shapes. An instance of a model that reshapes nothing is used as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from qinfer.datatypes import Array
from qinfer.errors import ModelFailed, QInferError
from qinfer.repository import ModelConfig
from qinfer_workers.backends.base import (
    Batch,
    Instance,
    Member,
    Outputs,
    OutputsWithParameters,
    Responder,
    Responses,
    StreamingBatch,
    StreamingInstance,
    StreamingMember,
)


def reshaping(config: ModelConfig, instance: Instance) -> Instance:
    """The instance, between the client's shapes and the model's where the configuration has any `reshape`."""
    if all(spec.reshape is None for spec in (*config.inputs, *config.outputs)):
        return instance
    return ReshapingInstance(config, instance)


def reshaping_streams(config: ModelConfig, instance: StreamingInstance) -> StreamingInstance:
    """The same for an instance of a decoupled model."""
    if all(spec.reshape is None for spec in (*config.inputs, *config.outputs)):
        return instance
    return ReshapingStreams(config, instance)


class _Shapes:
    """The shapes of a model's `reshape`s."""

    def __init__(self, config: ModelConfig) -> None:
        batched = config.max_batch_size > 0
        self._name = config.name
        self._inputs = {
            spec.name: _Reshape(spec.dims, spec.reshape, batched=batched)
            for spec in config.inputs
            if spec.reshape is not None
        }
        self._outputs = {
            spec.name: _Reshape(spec.reshape, spec.dims, batched=batched)
            for spec in config.outputs
            if spec.reshape is not None
        }

    def back(self, answer: Outputs | QInferError) -> Outputs | QInferError:
        """A response in the shapes clients use, or what is wrong with it."""
        if isinstance(answer, QInferError):
            return answer
        try:
            outputs = self._shaped(answer)
        except ModelFailed as error:
            return error
        if isinstance(answer, OutputsWithParameters):
            return OutputsWithParameters(outputs, parameters=answer.parameters)
        return outputs

    def _shaped(self, outputs: Outputs) -> Outputs:
        shaped = dict(outputs)
        for name, reshape in self._outputs.items():
            if name in shaped:
                try:
                    shaped[name] = reshape.apply(shaped[name])
                except ValueError as error:
                    raise ModelFailed(
                        f"model {self._name}: output {name!r}: found shape {list(shaped[name].shape)};"
                        " expected"
                        f" {list(reshape.source)} after the batch dimension: {error}"
                    ) from None
        return shaped


class ReshapingInstance(_Shapes):
    """Shows another instance its inputs in the shapes of `reshape`, and takes its outputs back to `dims`."""

    def __init__(self, config: ModelConfig, instance: Instance) -> None:
        super().__init__(config)
        self._instance = instance

    def execute(self, batch: Batch) -> Outputs | Sequence[Outputs | QInferError]:
        """See `Instance.execute`.

        Raises:
            ModelFailed: an output does not have the shape the configuration promises.
        """
        result = self._instance.execute(_ReshapedBatch(batch, self._inputs))
        if isinstance(result, Mapping):
            return self._shaped(result)
        return [self.back(answer) for answer in result]

    def close(self) -> None:
        """Close the instance."""
        self._instance.close()


class ReshapingStreams(_Shapes):
    """Does the same for an instance that gives many responses to a request."""

    def __init__(self, config: ModelConfig, instance: StreamingInstance) -> None:
        super().__init__(config)
        self._instance = instance

    def execute(self, batch: StreamingBatch) -> Sequence[Responses | QInferError] | None:
        """See `StreamingInstance.execute`."""
        result = self._instance.execute(_ReshapedStreams(batch, self._inputs, self))
        if result is None:
            return None
        return [given if isinstance(given, QInferError) else self._responses(given) for given in result]

    def close(self) -> None:
        """Close the instance."""
        self._instance.close()

    def _responses(self, given: Responses) -> Responses:
        try:
            for response in given:
                yield self.back(response)
        finally:
            close = getattr(given, "close", None)
            if close is not None:
                close()


class _Reshape:
    """From one shape to another; the variable dimensions of both correspond in their order."""

    __slots__ = ("_lead", "source", "target")

    def __init__(self, source: Sequence[int], target: Sequence[int], *, batched: bool) -> None:
        self.source = source
        self.target = target
        self._lead = 1 if batched else 0

    def apply(self, array: Array) -> Array:
        """A view of the array in the other shape.

        Raises:
            ValueError: the array is not of the first shape.
        """
        lead, rest = array.shape[: self._lead], array.shape[self._lead :]
        sizes = iter([size for size, dim in zip(rest, self.source, strict=True) if dim == -1])
        return array.reshape((*lead, *(next(sizes) if dim == -1 else dim for dim in self.target)))


def _shaped(inputs: Mapping[str, Array], reshapes: Mapping[str, _Reshape]) -> Mapping[str, Array]:
    return {
        name: reshapes[name].apply(array) if name in reshapes else array for name, array in inputs.items()
    }


class _ReshapedMember:
    def __init__(self, member: Member, reshapes: Mapping[str, _Reshape]) -> None:
        self._member = member
        self._reshapes = reshapes

    @cached_property
    def inputs(self) -> Mapping[str, Array]:
        return _shaped(self._member.inputs, self._reshapes)

    @property
    def rows(self) -> int:
        return self._member.rows

    @property
    def input_datatypes(self) -> Mapping[str, str]:
        return self._member.input_datatypes

    @property
    def outputs(self) -> Sequence[str]:
        return self._member.outputs

    @property
    def request_id(self) -> str:
        return self._member.request_id

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self._member.parameters

    @property
    def priority(self) -> int:
        return self._member.priority

    @property
    def deadline_us(self) -> int:
        return self._member.deadline_us

    def is_cancelled(self) -> bool:
        return self._member.is_cancelled()


class _ReshapedBatch:
    def __init__(self, batch: Batch, reshapes: Mapping[str, _Reshape]) -> None:
        self._batch = batch
        self._reshapes = reshapes

    @cached_property
    def members(self) -> Sequence[Member]:
        return [_ReshapedMember(member, self._reshapes) for member in self._batch.members]

    @property
    def rows(self) -> int:
        return self._batch.rows

    @cached_property
    def inputs(self) -> Mapping[str, Array]:
        return _shaped(self._batch.inputs, self._reshapes)

    @property
    def outputs(self) -> Sequence[str]:
        return self._batch.outputs

    def is_cancelled(self) -> bool:
        return self._batch.is_cancelled()


class _ReshapedStream(_ReshapedMember):
    def __init__(self, member: StreamingMember, reshapes: Mapping[str, _Reshape], shapes: _Shapes) -> None:
        super().__init__(member, reshapes)
        self.responder: Responder = _ReshapedResponder(member.responder, shapes)


class _ReshapedStreams(_ReshapedBatch):
    def __init__(self, batch: StreamingBatch, reshapes: Mapping[str, _Reshape], shapes: _Shapes) -> None:
        super().__init__(batch, reshapes)
        self._shapes = shapes
        self._streaming = batch

    @cached_property
    def members(self) -> Sequence[StreamingMember]:
        return [_ReshapedStream(member, self._reshapes, self._shapes) for member in self._streaming.members]


class _ReshapedResponder:
    def __init__(self, responder: Responder, shapes: _Shapes) -> None:
        self._responder = responder
        self._shapes = shapes
        self.has_room = responder.has_room
        self.is_cancelled = responder.is_cancelled
        self.let_go = responder.let_go

    def send(self, outputs: Outputs | QInferError | None, *, final: bool = False) -> None:
        given = None if outputs is None else self._shapes.back(outputs)
        self._responder.send(given, final=final)
