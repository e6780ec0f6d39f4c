"""A worker on the memory bus with decoupled models, and a client without a gateway."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qinfer.bus import connect
from qinfer.bus.memory import MemoryBus
from qinfer.message import (
    CancelFrame,
    Request,
    RequestFrame,
    Response,
    Tensor,
    decode_response_frame,
    encode,
)
from qinfer_workers.options import WorkerOptions
from qinfer_workers.service import ModelService
from qinfer_workers.worker import Worker
from tests.helpers.waiting import eventually
from tests.streams.models import COUNTS


def request_of(number: int, n: int, *, window: int = 0, **parameters: Any) -> Request:
    """A request to count to `n`."""
    tensor = Tensor.from_numpy("n", np.array([n], np.int32))
    return Request(number, f"r{number}", [tensor], window=window, parameters=parameters)


class Stage:
    """The client's end of the bus, and workers."""

    def __init__(self, namespace: str, repository: Path) -> None:
        self._connect = partial(connect, "memory://streams", namespace=namespace)
        self._repository = repository
        self.stack = AsyncExitStack()
        self.client = self._bus()
        self.responses: list[Response] = []

    def _bus(self) -> MemoryBus:
        bus = self._connect()
        assert isinstance(bus, MemoryBus)
        return bus

    async def start(self) -> None:
        await self.client.start()
        self.stack.push_async_callback(self.client.close)
        self.client.on_reply(lambda data: self.responses.extend(decode_response_frame(data).responses))

    async def serve(self, *models: str, **options: Any) -> Worker:
        bus = self._bus()
        await bus.start()
        self.stack.push_async_callback(bus.close)
        told = {"ack_wait": 30.0, "drain_timeout": 5.0, **options}
        worker = Worker(WorkerOptions(nats="", repositories=(self._repository,), models=models, **told), bus)
        self.stack.push_async_callback(worker.drain)
        await worker.start()
        assert not worker.problems
        return worker

    def send(self, *requests: Request, model: str = COUNTS, timeout: float = 0.0) -> None:
        now = time.time_ns() // 1000
        for request in requests:
            request.deadline_us = now + int(timeout * 1e6) if timeout else 0
        frame = RequestFrame(1, self.client.reply_to, model, "", now, len(requests), list(requests))
        self.client.publish(model, "", encode(frame), _refused)

    def taken(self, number: int, count: int, model: str = COUNTS) -> None:
        self.client.cancel(model, encode(CancelFrame(1, self.client.reply_to, [], [(number, count)])))

    def cancel(self, *numbers: int, model: str = COUNTS) -> None:
        self.client.cancel(model, encode(CancelFrame(1, self.client.reply_to, list(numbers))))

    def of(self, number: int) -> list[Response]:
        """Responses to a request so far."""
        return [response for response in self.responses if response.id == number]

    async def ended(self, number: int) -> list[Response]:
        """All responses to a request, once the last is there."""
        await eventually(lambda: any(response.flags & 1 for response in self.of(number)), "the stream ends")
        return self.of(number)


def values(responses: list[Response]) -> list[int]:
    """What a model has counted."""
    return [int(tensor.numpy()[0]) for r in responses for tensor in r.outputs if tensor.name == "i"]


async def nothing_held(service: ModelService) -> None:
    """Wait until a worker holds nothing of a model any more."""
    await eventually(lambda: not service._held and not service._streams, "nothing is held")
    await eventually(lambda: service._credit.held_rows == 0, "all credit is back")


def _refused(error: Exception) -> None:
    raise AssertionError(error)
