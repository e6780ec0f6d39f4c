"""The contract between the batcher and a backend.

A backend turns a model directory into instances; an instance runs batches. Both are called from the
instance's own thread, never from the event loop, and never by two threads at once. `docs/backends.md`
writes one in 30 lines.

Instances of a decoupled model (`model_transaction_policy { decoupled: true }`) give any number of responses
to a request: see `StreamingInstance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

from qinfer.datatypes import Array
from qinfer.errors import QInferError
from qinfer.repository import ModelConfig

Outputs: TypeAlias = Mapping[str, Array]
"""Output arrays by name; BYTES as object arrays of bytes, BF16 as uint16 bit patterns."""


class OutputsWithParameters(dict[str, Array]):
    """Outputs of one member together with values the model returns to the caller beside its tensors.

    Attributes:
        parameters: strings, numbers and booleans by name; they go into the response's parameters.
    """

    __slots__ = ("parameters",)

    def __init__(self, outputs: Outputs, *, parameters: Mapping[str, str | int | float | bool]) -> None:
        super().__init__(outputs)
        self.parameters = parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """What an instance is made of.

    Attributes:
        config: the model's configuration, complete and validated.
        directory: the model's directory in the repository.
        version: the version to load.
        name: unique name of the instance, for instance "mlp_0".
        kind: "CPU" or "GPU".
        device: index of the GPU; 0 on CPU.
    """

    config: ModelConfig
    directory: Path
    version: int
    name: str
    kind: str
    device: int

    @property
    def version_directory(self) -> Path:
        return self.directory / str(self.version)


class Member(Protocol):
    """One request of a batch."""

    @property
    def rows(self) -> int:
        """Rows this request contributes to the batch; 1 for a model without batch dimension."""

    @property
    def inputs(self) -> Mapping[str, Array]:
        """The request's own tensors, with the batch dimension where the model has one. Read-only views."""

    @property
    def input_datatypes(self) -> Mapping[str, str]:
        """Protocol datatypes of the inputs, by name."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the wanted outputs; empty for all."""

    @property
    def request_id(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...

    @property
    def priority(self) -> int: ...

    @property
    def deadline_us(self) -> int:
        """Absolute deadline, Unix microseconds of this host's clock; 0 for none."""

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more: the caller has gone, or the deadline passed.

        May become true while the batch runs: a long computation asks now and then.
        """


class Batch(Protocol):
    """What an instance executes at once."""

    @property
    def members(self) -> Sequence[Member]: ...

    @property
    def rows(self) -> int: ...

    @property
    def inputs(self) -> Mapping[str, Array]:
        """All members' tensors concatenated along the batch dimension, made on first use.

        For a model without batch dimension (max_batch_size 0) a batch has one member and these are its
        tensors.
        """

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs that at least one member wants; empty for all."""

    def is_cancelled(self) -> bool:
        """Whether this is so for every member: nothing of the batch is wanted any more."""


class Instance(Protocol):
    """A loaded copy of a model."""

    def execute(self, batch: Batch) -> Outputs | Sequence[Outputs | QInferError]:
        """Run one batch.

        Returns:
            Either the outputs of the whole batch, first dimension `batch.rows` where the model has a batch
            dimension, which the worker splits; or a sequence with one entry a member, in order: its own
            outputs or its own error.

        Raises:
            QInferError: the batch failed, with this error. Any other exception becomes `ModelFailed`.
        """

    def close(self) -> None:
        """Free what the instance holds. Called once, after its last batch."""


class Responder(Protocol):
    """Where a decoupled model's responses to one request go. Any thread may use it, also after `execute`."""

    def send(self, outputs: Outputs | QInferError | None, *, final: bool = False) -> None:
        """Give one response.

        Waits while the caller has not taken enough of the earlier ones, at most until the request's deadline.
        What is sent when nobody waits any more is dropped.

        Args:
            outputs: the response; an error, which is the last one; or None, with `final`, where the response
                before was the last, or there is none at all.
            final: nothing follows.

        Raises:
            ModelFailed: the last response was sent before.
            Cancelled: nobody has waited for a long while, and the model goes on as if it had not been told.
        """

    def has_room(self) -> bool:
        """Whether `send` would return at once."""

    def is_cancelled(self) -> bool:
        """Whether nobody waits for any (more) responses: the model is to stop."""

    def let_go(self) -> None:
        """Nothing will be sent any more. Without a last response before, that fails the request."""


class StreamingMember(Member, Protocol):
    """One request for a decoupled model."""

    @property
    def responder(self) -> Responder: ...


class StreamingBatch(Batch, Protocol):
    """What an instance of a decoupled model begins at once."""

    @property
    def members(self) -> Sequence[StreamingMember]: ...


Responses: TypeAlias = Iterator[Outputs | QInferError]
"""Responses to one request, made one by one as they are asked for. One that is a generator is closed when
nobody waits any more."""


class StreamingInstance(Protocol):
    """A loaded copy of a decoupled model."""

    def execute(self, batch: StreamingBatch) -> Sequence[Responses | QInferError] | None:
        """Begin to answer the requests of a batch.

        Returns:
            None where the responses go to the members' responders, now or later. Else one entry a member, in
            order: its error, or an iterator over its responses. Iterators are advanced in the instance's
            thread, in turn, each only when there is room for a response; further batches begin between
            two responses.

        Raises:
            QInferError: the batch failed. Members that have not been answered to their end are run again in
                smaller batches, to find the one that is the cause. Any other exception becomes `ModelFailed`.
        """

    def close(self) -> None:
        """Free what the instance holds. Called once, after its last batch."""


class Backend(Protocol):
    """Makes instances. Found by the entry point group `qinfer.backends`; the class takes no arguments."""

    name: ClassVar[str]
    """Value of `backend` in a model's configuration."""

    filename: ClassVar[str]
    """Default model file within a version directory, for instance "model.onnx"."""

    def check(self) -> None:
        """Raise `BackendUnavailable`, naming the extra to install, when the backend's library is missing."""

    def complete(self, config: ModelConfig, directory: Path, version: int) -> ModelConfig:
        """Fill in what the configuration leaves out (inputs, outputs, max_batch_size) from the model file.

        Returns the configuration unchanged where the file does not tell.

        Raises:
            ConfigError: the file contradicts the configuration or cannot be read.
        """

    def load(self, spec: InstanceSpec) -> Instance | StreamingInstance:
        """Load one instance: of a decoupled model a `StreamingInstance`, where the backend has such.

        A backend that has says so with a class attribute `streams = True`. With any other a decoupled model
        gives one response to each request.

        Raises:
            ConfigError: something in the model's configuration or files is wrong.
            BackendUnavailable: the instance needs something that is not installed.
        """
