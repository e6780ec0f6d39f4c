"""The client that talks to the broker itself, without a gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from qinfer.bus import Bus
from qinfer.claims import Claims
from qinfer.client.base import ModelInfo, Result
from qinfer.client.nats.call import Answer
from qinfer.client.nats.exchange import Exchange
from qinfer.client.nats.inference import Inference
from qinfer.client.nats.jobs import NatsJobs
from qinfer.client.nats.keyed import Keyed
from qinfer.client.nats.models import Models, Target
from qinfer.client.nats.streams import Responses, Streams
from qinfer.client.transport import Question, Settings, Transport
from qinfer.errors import QInferError, SetupError
from qinfer.idempotency import name_of
from qinfer.jobs import JobOptions, JobRecord
from qinfer.message import Request, Response, ResponseFrame

_PATIENCE = 10.0  # seconds that requests wait for a broker that is away


class NatsClient(Transport):
    """Puts requests into the models' queues, and gets the answers from the workers.

    Args:
        bus: not started; the client starts and closes it.
        settings: for all requests.
        max_claim_bytes: bytes held at once of tensors that are too large for a message.
    """

    def __init__(self, bus: Bus, settings: Settings, *, max_claim_bytes: int = 512 << 20) -> None:
        super().__init__(settings)
        self._bus = bus
        self._max_claim_bytes = max_claim_bytes

    async def start(self) -> None:
        if self._state != "new":
            raise SetupError(f"this client is {self._state}; expected a new one")
        try:
            await self._bus.start()
            claims = Claims(self._bus, max_bytes=self._max_claim_bytes, limit="max_claim_bytes")
            self._exchange = Exchange(self._bus, claims, patience=_PATIENCE)
            self._inference = Inference(self._bus, self._exchange, claims)
            self._keyed = Keyed(self._bus, self._exchange, self._inference)
            self._streams = Streams(self._bus, self._exchange, self._inference)
            self._jobs = NatsJobs(self._bus)
            self._models = Models(self._bus)
            await self._models.start()
        except BaseException:
            self._state = "closed"
            await self._bus.close()
            raise
        self._state = "open"

    async def close(self) -> None:
        was, self._state = self._state, "closed"
        if was != "open":
            return
        self._exchange.close()
        await self._inference.close()
        await self._models.close()
        await self._bus.close()

    # Requests

    async def _ask(self, question: Question) -> Result:
        target, request = await self._prepared(question)
        call = Answer(target, request, question.deadline)
        if question.options.idempotency_key:
            request.idempotency = name_of(
                request.tenant, target.model, target.version, question.options.idempotency_key
            )
            return _result(call.target, request, *await self._keyed.ask(call))
        return _result(call.target, request, *await self._inference.ask(call))

    async def exchange(self, model: str, version: str, request: Request, deadline: float) -> Result:
        """Send a request as it is, once.

        Args:
            model, version: whom to ask; version "" for the newest.
            request: its correlation number and deadline are set here.
            deadline: of `time.monotonic`.

        Raises:
            QInferError: why there is no answer.
        """
        self._check_open()
        await self._exchange.connection(deadline)
        target = self._models.find(model, version)
        return _result(target, request, *await self._inference.ask(Answer(target, request, deadline)))

    async def _responses(self, question: Question) -> AsyncGenerator[Result, None]:
        target, request = await self._prepared(question, streams=True)
        call = Responses(target, request, question.deadline, self._exchange)
        async with aclosing(self._streams.ask(call)) as responses:
            async for frame, response in responses:
                yield _result(target, request, frame, response)

    async def _prepared(self, question: Question, *, streams: bool = False) -> tuple[Target, Request]:
        await self._exchange.connection(question.deadline)
        target = self._models.find(question.model, question.options.version)
        return target, question.request(target.info, streams=streams)  # a call checks by the signature itself

    # Jobs

    async def _submit(self, question: Question, job: JobOptions) -> JobRecord:
        await self._exchange.connection(question.deadline)
        # Jobs wait for workers: the model has to be known, not served.
        info = self._models.info(question.model, question.options.version)
        request = question.request(info, self._models.signature(info))
        return await self._jobs.submit(question, request, job)

    async def _job(self, job_id: str, give_up: float) -> JobRecord:
        return await self._jobs.get(job_id, give_up)

    async def _result(self, job_id: str, give_up: float) -> Result | QInferError:
        return await self._jobs.result(job_id, give_up)

    async def _cancel(self, job_id: str) -> JobRecord:
        return await self._jobs.cancel(job_id)

    # Models

    async def ready(self) -> bool:
        self._check_open()
        return self._bus.connected and self._models.all_ready

    async def _list(self) -> list[ModelInfo]:
        return self._models.all()

    async def _look(self, name: str, version: str) -> ModelInfo:
        return self._models.info(name, version)


def _result(target: Target, request: Request, frame: ResponseFrame, response: Response) -> Result:
    return Result(
        model=target.model,
        version=frame.model_version,
        tensors=response.outputs,
        parameters=response.parameters,
        request_id=request.request_id,
    )
