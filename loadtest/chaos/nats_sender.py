"""Straight to the models' queues: what docs/protocol.md asks of a client, with nats-py and frames."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from loadtest.chaos.asks import Answer, Ask, Refusal, Sender, Settings, broken
from qinfer.errors import DeadlineExceeded, QInferError
from qinfer.message import (
    PROTOCOL_VERSION,
    Request,
    RequestFrame,
    Response,
    ResponseFrame,
    Tensor,
    decode_response_frame,
    encode,
)
from qinfer.naming import Names

_CONNECT_SECONDS = 10
_FULL = frozenset((10077, 10047, 10054))  # docs/protocol.md, "Publishing, and being refused"
_REMEMBERED = 4096  # answered requests whose further answers are still told from the first


@dataclass(slots=True)
class _Flight:
    """A request that waits for its answer, and the frame it went in."""

    ask: Ask
    future: asyncio.Future[Answer]


class NatsSender(Sender):
    """One connection and one inbox for all requests.

    What is in flight when the connection is lost is published again on the new one, with its `attempt`
    counted up: whether it was stored, or its answer sent into the void, nobody can tell.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._url = settings.nats
        self._names = Names(settings.namespace)
        self._client = Client()
        self._inbox = ""
        self._flights: dict[int, _Flight] = {}
        self._answered: dict[int, Ask] = {}

    async def start(self) -> None:
        self._client = await nats.connect(
            self._url,
            connect_timeout=_CONNECT_SECONDS,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,
            reconnected_cb=self._resend,
            error_cb=_ignore,
        )
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(f"{self._inbox}.>", cb=self._receive)

    async def close(self) -> None:
        await self._client.close()

    async def send(self, ask: Ask, lane: int, budget: float) -> Answer:  # noqa: ARG002 (it has no lanes)
        flight = _Flight(ask, asyncio.get_running_loop().create_future())
        self._flights[ask.id] = flight
        try:
            await self._publish(ask, budget)
            return await flight.future
        finally:
            del self._flights[ask.id]

    async def _publish(self, ask: Ask, budget: float) -> None:
        now = time.time_ns() // 1000
        request = Request(
            id=ask.id,
            request_id=str(ask.id),
            inputs=[Tensor.from_numpy("x", ask.x), Tensor.from_numpy("id", ask.ids)],
            deadline_us=now + int(budget * 1e6),
            attempt=ask.sends - 1,
        )
        frame = RequestFrame(
            PROTOCOL_VERSION, f"{self._inbox}.r", ask.model, "", now, len(self._flights), [request]
        )
        try:
            await self._client.publish(
                self._names.requests(ask.model), encode(frame), reply=f"{self._inbox}.p.{ask.id}"
            )
        except (nats.errors.Error, OSError) as error:
            # While it is away nats-py keeps some messages and refuses more; `_resend` sends all in any case.
            if self._client.is_closed:
                raise broken(error) from error

    async def _resend(self) -> None:
        now = asyncio.get_running_loop().time()
        for flight in list(self._flights.values()):
            flight.ask.sends += 1
            await self._publish(flight.ask, flight.ask.deadline - now)

    async def _receive(self, message: Msg) -> None:
        kind, _, number = message.subject[len(self._inbox) + 1 :].partition(".")
        if kind == "p":
            flight = self._flights.get(int(number))
            if flight is not None and (refusal := _refused(message)) is not None:
                _fail(flight, refusal)
            return
        try:
            frame = decode_response_frame(message.data)
        except QInferError as error:
            self._all(Refusal(error.reason, f"an answer cannot be read: {error}"))
            return
        if frame.error is not None:
            self._all(Refusal(frame.error.reason, frame.error.message))
        for response in frame.responses:
            self._answer(frame, response)

    def _answer(self, frame: ResponseFrame, response: Response) -> None:
        flight = self._flights.get(response.id)
        if flight is None or flight.future.done():
            self._further(frame, response)
            return
        if response.error is not None:
            error = response.error
            _fail(flight, Refusal(error.reason, error.message, pause=error.retry_after))
            return
        flight.future.set_result(_outputs(frame, response))
        self._remember(flight.ask)

    def _remember(self, ask: Ask) -> None:
        self._answered[ask.id] = ask
        if len(self._answered) > _REMEMBERED:
            del self._answered[next(iter(self._answered))]

    def _further(self, frame: ResponseFrame, response: Response) -> None:
        """The protocol allows further answers, of other attempts; they must not say otherwise."""
        ask = self._answered.get(response.id)
        if ask is None:
            return  # it ended without an answer
        if response.error is None:
            fault = _outputs(frame, response).fault(ask)
        else:
            # The one that was answered first had time left, and this one had not.
            fault = "" if response.error.reason == DeadlineExceeded.reason else response.error.message
        self.further.append((ask, fault))

    def _all(self, refusal: Refusal) -> None:
        for flight in self._flights.values():
            _fail(flight, refusal)


def _fail(flight: _Flight, refusal: Refusal) -> None:
    if not flight.future.done():
        flight.future.set_exception(refusal)


def _refused(message: Msg) -> Refusal | None:
    """What the broker says instead of having stored a frame; None when it has."""
    if message.headers:
        return Refusal("no_worker", "no queue exists for this model")
    document: dict[str, Any] = json.loads(message.data)
    error = document.get("error")
    if error is None:
        return None
    reason = "queue_full" if error.get("err_code") in _FULL else "bus_unavailable"
    return Refusal(reason, str(error.get("description", "")), status=int(error.get("code", 0)))


def _outputs(frame: ResponseFrame, response: Response) -> Answer:
    outputs = {tensor.name: tensor.numpy() for tensor in response.outputs}
    return Answer(y=outputs["y"], by=outputs["by"], model_version=frame.model_version)


async def _ignore(_: Exception) -> None:
    """Connections are lost on purpose here."""
