"""What all clients have in common: deadlines, limits, retries and inputs. How requests travel is not here."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Literal, TypeVar

from qinfer.client.base import AsyncClient, Inputs, ModelInfo, Options, Result
from qinfer.client.limits import Gate, Tries
from qinfer.client.tracing import current_trace
from qinfer.client.values import to_tensor
from qinfer.errors import Cancelled, InvalidRequest, QInferError, SetupError, Unsupported
from qinfer.idempotency import check_key
from qinfer.jobs import JobOptions, JobRecord
from qinfer.message import Request, Tensor
from qinfer.signature import Signature

T = TypeVar("T")

_FOREVER = 1e9  # seconds; more have no place in a deadline
_RESERVED = ("timeout", "priority", "binary_data_output")
"""Parameters that HTTP requests have for what are options here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for all requests of a client; see `qinfer.client.connect`."""

    timeout: float = 30.0
    retries: int = 4
    max_in_flight: int = 1024
    when_full: Literal["wait", "raise"] = "wait"

    def __post_init__(self) -> None:
        if not 0 < self.timeout < _FOREVER:
            raise SetupError(f"timeout: found {self.timeout!r}; expected seconds above 0")
        if self.retries < 0 or self.max_in_flight < 1:
            raise SetupError(
                f"retries and max_in_flight: found {self.retries!r} and {self.max_in_flight!r}; expected at "
                "least 0 and at least 1"
            )
        if self.when_full not in ("wait", "raise"):
            raise SetupError(f"when_full: found {self.when_full!r}; expected 'wait' or 'raise'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request of a caller, on whatever way.

    Attributes:
        model: whom it asks.
        inputs: as they were given.
        options: with trace context.
        deadline: for all tries, of `time.monotonic`.
    """

    model: str
    inputs: Inputs
    options: Options
    deadline: float

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - monotonic()

    def request(
        self, info: ModelInfo, signature: Signature | None = None, *, streams: bool = False
    ) -> Request:
        """The message: a new one for each try, since what carries it may change it.

        Args:
            info: the model.
            signature: checks the inputs' shapes; None where somebody else does.
            streams: any number of responses will do.

        Raises:
            InvalidRequest: the inputs do not fit the model.
            Unsupported: the model may give more or less than one response, and that will not do.
        """
        if info.decoupled and not streams:
            raise Unsupported(
                f"model {self.model!r} is decoupled: it gives any number of responses to a request; expected "
                "stream()"
            )
        request = Request(
            0,
            self.options.request_id,
            read_inputs(self.inputs, info),
            list(self.options.outputs),
            parameters=dict(self.options.parameters),
            priority=self.options.priority,
            traceparent=self.options.traceparent,
            tracestate=self.options.tracestate,
        )
        if signature is not None:
            signature.check(request)
        return request


class Transport(AsyncClient):
    """A client, but for how a request travels.

    Args:
        settings: for all requests.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._gate = Gate(settings.max_in_flight, waits=settings.when_full == "wait")
        self._state: Literal["new", "open", "closed"] = "new"

    # How a request travels

    @abstractmethod
    async def _ask(self, question: Question) -> Result:
        """Try once."""

    @abstractmethod
    def _responses(self, question: Question) -> AsyncGenerator[Result, None]:
        """Try once; leaving the iteration cancels the request."""

    @abstractmethod
    async def _submit(self, question: Question, job: JobOptions) -> JobRecord:
        """Try once to submit a job."""

    @abstractmethod
    async def _job(self, job_id: str, give_up: float) -> JobRecord:
        """A job at its end, or as it is then, of `time.monotonic`."""

    @abstractmethod
    async def _result(self, job_id: str, give_up: float) -> Result | QInferError:
        """A job's answer, or what it failed with; raises `DeadlineExceeded` where it has not ended."""

    @abstractmethod
    async def _cancel(self, job_id: str) -> JobRecord:
        """Try once to cancel a job."""

    @abstractmethod
    async def _list(self) -> list[ModelInfo]:
        """Try once to list the models."""

    @abstractmethod
    async def _look(self, name: str, version: str) -> ModelInfo:
        """Try once to look at a model."""

    # What is the same on every way

    async def infer(self, model: str, inputs: Inputs, options: Options = Options()) -> Result:  # noqa: B008
        question = self._question(model, inputs, options)
        await self._gate.enter(question.deadline)
        try:
            return await self._retried(self._tries(question), lambda: self._ask(question))
        finally:
            self._gate.leave()

    async def stream(
        self,
        model: str,
        inputs: Inputs,
        options: Options = Options(),  # noqa: B008
    ) -> AsyncIterator[Result]:
        question = self._question(model, inputs, options)
        if options.idempotency_key:
            raise InvalidRequest("Options.idempotency_key: found one; expected none, streams are not kept")
        tries = self._tries(question)
        await self._gate.enter(question.deadline)
        try:
            while True:
                begun = False
                try:
                    async with aclosing(self._responses(question)) as responses:
                        async for response in responses:
                            begun = True
                            yield response
                    return
                except QInferError as error:
                    if begun:
                        raise
                    pause = self._pause(tries, error)
                await asyncio.sleep(pause)
        finally:
            self._gate.leave()

    async def submit(
        self,
        model: str,
        inputs: Inputs,
        options: Options = Options(),  # noqa: B008
        job: JobOptions = JobOptions(),  # noqa: B008
    ) -> JobRecord:
        question = self._question(model, inputs, options)
        await self._gate.enter(question.deadline)
        try:
            return await self._retried(self._tries(question), lambda: self._submit(question, job))
        finally:
            self._gate.leave()

    async def job(self, job_id: str, *, wait: float = 0.0) -> JobRecord:
        give_up = monotonic() + wait
        return await self._looked_up(give_up, lambda: self._job(job_id, give_up))

    async def result(self, job_id: str, *, timeout: float | None = None) -> Result:
        give_up = monotonic() + (self.settings.timeout if timeout is None else timeout)
        found = await self._looked_up(give_up, lambda: self._result(job_id, give_up), extra=0.0)
        if isinstance(found, QInferError):  # asking again would not change it
            raise found
        return found

    async def cancel(self, job_id: str) -> JobRecord:
        return await self._looked_up(monotonic(), lambda: self._cancel(job_id))

    async def models(self) -> list[ModelInfo]:
        return await self._looked_up(monotonic(), self._list)

    async def model(self, name: str, version: str = "") -> ModelInfo:
        return await self._looked_up(monotonic(), lambda: self._look(name, version))

    async def _looked_up(
        self, give_up: float, ask: Callable[[], Awaitable[T]], *, extra: float | None = None
    ) -> T:
        """Do what may be done any number of times; again for as long as the client's timeout, or `extra`."""
        self._check_open()
        deadline = give_up + (self.settings.timeout if extra is None else extra)
        return await self._retried(Tries(self.settings.retries, deadline, once=True), ask)

    async def _retried(self, tries: Tries, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except QInferError as error:
                pause = self._pause(tries, error)
            await asyncio.sleep(pause)

    def _question(self, model: str, inputs: Inputs, options: Options) -> Question:
        self._check_open()
        timeout = self.settings.timeout if options.timeout is None else options.timeout
        if not 0 < timeout < _FOREVER:
            raise InvalidRequest(f"Options.timeout: found {timeout!r}; expected seconds above 0")
        if options.priority < 0:
            raise InvalidRequest(f"Options.priority: found {options.priority!r}; expected 0 or above")
        if options.idempotency_key:
            check_key(options.idempotency_key)
        if options.parameters:
            _check_parameters(options.parameters)
        if not options.traceparent:
            parent, state = current_trace()
            if parent:
                options = replace(options, traceparent=parent, tracestate=state)
        return Question(model=model, inputs=inputs, options=options, deadline=monotonic() + timeout)

    def _tries(self, question: Question) -> Tries:
        return Tries(self.settings.retries, question.deadline, once=bool(question.options.idempotency_key))

    def _pause(self, tries: Tries, error: QInferError) -> float:
        """Seconds until the next try; raises the error where there is none."""
        pause = None if self._state == "closed" else tries.pause(error)
        if pause is None:
            raise error
        return pause

    def _check_open(self) -> None:
        if self._state == "new":
            raise SetupError("this client is not connected; expected `async with`, or start() before")
        if self._state == "closed":
            raise Cancelled("this client was closed")


def read_inputs(inputs: Inputs, info: ModelInfo) -> list[Tensor]:
    """Input tensors as the model takes them.

    Raises:
        InvalidRequest: there is no such input, or a value does not convert to its datatype.
    """
    if not isinstance(inputs, Mapping):
        if hasattr(inputs, "columns"):  # a data frame of pandas: each column is an input
            inputs = {str(name): inputs[name] for name in inputs.columns}
        else:
            return [_copied(each) for each in inputs]
    specs = {spec.name: spec for spec in info.inputs}
    batched = bool(info.max_batch_size)
    tensors = []
    for name, value in inputs.items():
        if name not in specs:
            raise InvalidRequest(f"input {name!r} is not one of {', '.join(specs)}")
        tensors.append(to_tensor(value, specs[name], batched=batched))
    return tensors


def _copied(tensor: Any) -> Tensor:
    """A tensor with the same data, which whatever carries it may take out."""
    if not isinstance(tensor, Tensor):
        raise InvalidRequest(
            f"inputs: found a {type(tensor).__name__} among them; expected a mapping of names to values"
        )
    return Tensor(tensor.name, tensor.datatype, list(tensor.shape), tensor.data)


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        if name in _RESERVED or name.startswith("triton_"):
            raise InvalidRequest(f"Options.parameters[{name!r}]: the name is reserved")
        if not isinstance(value, bool | int | float | str):
            raise InvalidRequest(
                f"Options.parameters[{name!r}]: found a {type(value).__name__}; expected a string, number or "
                "boolean"
            )
