"""The contract of every client; `tests/client/contract.py` is its executable form.

One interface whatever the way in: over HTTP through a gateway, or over the broker straight to the workers.
Arrays go in and come out; errors are those of `qinfer.errors`, the same on every way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from qinfer.datatypes import Array
from qinfer.jobs import JobOptions, JobRecord
from qinfer.message import Tensor
from qinfer.registry import TensorRecord

if TYPE_CHECKING:
    import pandas
    import torch

Inputs: TypeAlias = "Mapping[str, Any] | Sequence[Tensor]"
"""Input tensors by name: numpy arrays, torch tensors, pandas columns, or (nested) lists, which get the
datatype of the model's signature. Or tensors in their raw form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A model's answer, or one response of many.

    Attributes:
        model, version: what answered.
        tensors: the outputs in their raw form.
        parameters: what the model returned beside them.
        request_id: of the request.
    """

    model: str
    version: str
    tensors: Sequence[Tensor]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""

    @property
    def outputs(self) -> dict[str, Array]:
        """The outputs as arrays by name: views without a copy, but for BYTES, which are arrays of bytes."""
        return {tensor.name: tensor.numpy() for tensor in self.tensors}

    def __getitem__(self, name: str) -> Array:
        """One output as an array.

        Raises:
            KeyError: the answer has no output of that name.
        """
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor.numpy()
        raise KeyError(name)

    def to_torch(self) -> dict[str, torch.Tensor]:
        """The outputs as torch tensors by name, on the CPU and with memory of their own.

        Raises:
            InvalidRequest: an output is BYTES, which torch has no tensors of.
            BackendUnavailable: torch is not installed.
        """
        from qinfer.client.libraries import to_torch

        return to_torch(self.tensors)

    def to_pandas(self) -> pandas.DataFrame:
        """The outputs as one table: a row for each of their first dimension, which they have to agree about.

        An output of shape [n] or [n, 1] is a column of its name; one of shape [n, k] is k columns, NAME_0 and
        so on; one of more dimensions is a column of arrays. BYTES are text where they are UTF-8.

        Raises:
            InvalidRequest: the outputs have no rows, or differ in how many.
            BackendUnavailable: pandas is not installed.
        """
        from qinfer.client.libraries import to_pandas

        return to_pandas(self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model that can be asked for.

    Attributes:
        name, versions: which; versions that are served, ascending, or all known ones when none is.
        platform: for instance "onnxruntime_onnx".
        ready: whether a live worker serves it.
        inputs, outputs: its signature, `dims` without the batch dimension.
        max_batch_size: rows a request may have; 0 for a model without batch dimension, None where the way
            to it does not tell.
        decoupled: it gives any number of responses to a request, which `stream` reads.
    """

    name: str
    versions: Sequence[str]
    platform: str
    ready: bool
    inputs: Sequence[TensorRecord]
    outputs: Sequence[TensorRecord]
    max_batch_size: int | None = None
    decoupled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a request is to be handled.

    Attributes:
        version: of the model; "" for the newest.
        outputs: names of the wanted ones; empty for all.
        timeout: seconds from the call to its deadline, retries included; None for the client's.
        request_id: the caller's own name for it.
        priority: 0 for the model's default, 1 for the highest.
        parameters: free-form values for the model.
        idempotency_key: two requests with the same key are run once, and get the same answer.
        traceparent, tracestate: W3C trace context; "" for that of the current OpenTelemetry span, if there
            is one.
    """

    version: str = ""
    outputs: Sequence[str] = ()
    timeout: float | None = None
    request_id: str = ""
    priority: int = 0
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    idempotency_key: str = ""
    traceparent: str = ""
    tracestate: str = ""


class AsyncClient(ABC):
    """A way to the models. Made by `qinfer.client.connect`; used as an async context manager."""

    @abstractmethod
    async def start(self) -> None:
        """Connect.

        Raises:
            Unavailable: nobody answers.
        """

    @abstractmethod
    async def close(self) -> None:
        """Cancel what is in flight and disconnect. Idempotent."""

    @abstractmethod
    async def infer(self, model: str, inputs: Inputs, options: Options = Options()) -> Result:
        """Ask a model for one answer.

        Retried, within the deadline, only after errors that say that it is safe. A call that is cancelled
        cancels the request.

        Raises:
            QInferError: why there is no answer.
        """

    @abstractmethod
    def stream(self, model: str, inputs: Inputs, options: Options = Options()) -> AsyncIterator[Result]:
        """Ask a model for any number of responses, one after the other; leaving the iteration cancels it.

        Raises:
            QInferError: why there are no more.
        """

    @abstractmethod
    async def submit(
        self,
        model: str,
        inputs: Inputs,
        options: Options = Options(),
        job: JobOptions = JobOptions(),  # noqa: B008
    ) -> JobRecord:
        """Have a model asked later, durably: returns as soon as the job is stored."""

    @abstractmethod
    async def job(self, job_id: str, *, wait: float = 0.0) -> JobRecord:
        """How a job is doing.

        Args:
            job_id: of `submit`.
            wait: seconds to wait for its end.

        Raises:
            JobNotFound: there is no such job, or it ended so long ago that it is forgotten.
        """

    @abstractmethod
    async def result(self, job_id: str, *, timeout: float | None = None) -> Result:
        """A job's answer, once it has ended.

        Args:
            job_id: of `submit`.
            timeout: seconds to wait for that; None for the client's.

        Raises:
            DeadlineExceeded: it has not ended yet.
            JobNotFound: there is no such job.
            QInferError: why it failed.
        """

    @abstractmethod
    async def cancel(self, job_id: str) -> JobRecord:
        """Have a job not run, or stopped. One that has ended stays as it is."""

    @abstractmethod
    async def ready(self) -> bool:
        """Whether requests for every known model can be answered."""

    @abstractmethod
    async def models(self) -> list[ModelInfo]:
        """All known models."""

    @abstractmethod
    async def model(self, name: str, version: str = "") -> ModelInfo:
        """One model.

        Raises:
            ModelNotFound: no such model or version.
        """

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
