"""Parts of a worker to test its other parts with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from qinfer.bus import Delivery
from qinfer.datatypes import Array
from qinfer.message import Request, RequestFrame, Tensor
from qinfer.repository import DynamicBatching, ModelConfig, TensorSpec
from qinfer.signature import Signature
from qinfer_workers.backends.base import Batch as BackendBatch
from qinfer_workers.backends.base import Outputs
from qinfer_workers.batch import Batch, HeldFrame, Member

T = TypeVar("T")

INFINITE = float("inf")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when a test says so (`advance`)."""

    now = 1000.0

    def time(self) -> float:
        return self.now


def on_virtual_time(test: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine on a `VirtualTimeLoop`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(test)


async def advance(seconds: float = 0.0) -> None:
    """Let time pass and everything that is due then happen."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.now += seconds
    for _ in range(4):
        await asyncio.sleep(0)


class StubDelivery(Delivery):
    """A frame whose end is noted instead of told to a broker."""

    def __init__(self, payload: bytes = b"", *, attempt: int = 1, stored_us: int = 0) -> None:
        self.payload = payload
        self.attempt = attempt
        self.pending = 0
        self.stored_us = stored_us
        self.end = ""

    def ack(self) -> None:
        self._end("ack")

    def nak(self, delay: float = 0.0) -> None:
        self._end("nak")

    def term(self) -> None:
        self._end("term")

    def in_progress(self) -> None:
        assert not self.end

    def _end(self, how: str) -> None:
        assert not self.end, f"{how} after {self.end}"
        self.end = how


class StubInstance:
    """An instance that computes with a function and remembers what it was given."""

    def __init__(self, execute: Callable[[BackendBatch], Any]) -> None:
        self._execute = execute
        self.executed: list[list[int]] = []
        self.closed = False

    def execute(self, batch: BackendBatch) -> Any:
        self.executed.append([member.request.id for member in batch.members])  # type: ignore[attr-defined]
        return self._execute(batch)

    def close(self) -> None:
        self.closed = True


def config_of(
    *,
    max_batch_size: int = 8,
    outputs: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
    delay_us: int = 0,
    preferred: Sequence[int] = (),
    dims: tuple[int, ...] = (2,),
) -> ModelConfig:
    """A model of input `x` and output `y`, both FP32, unless said otherwise."""
    return ModelConfig(
        name="stub",
        backend="stub",
        max_batch_size=max_batch_size,
        inputs=_specs(inputs or {"x": "FP32"}, dims),
        outputs=_specs({"y": "FP32"} if outputs is None else outputs, dims),
        dynamic_batching=DynamicBatching(max_queue_delay_us=delay_us, preferred_batch_sizes=tuple(preferred)),
    )


def _specs(names: Mapping[str, str], dims: tuple[int, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, datatype=datatype, dims=dims) for name, datatype in names.items())


def request_of(number: int, rows: int = 1, *, columns: int = 2, **more: Any) -> Request:
    """A request whose values tell its number and row."""
    array = np.full((rows, columns), number, dtype=np.float32)
    return Request(number, f"r{number}", [Tensor.from_numpy("x", array)], **more)


class Members:
    """Makes members of requests, as the service does."""

    def __init__(self, config: ModelConfig) -> None:
        self._signature = Signature(config.inputs, config.outputs, config.max_batch_size)

    def of(
        self, request: Request, *, deadline: float = INFINITE, arrived: float = 0.0, attempt: int = 1
    ) -> Member:
        plan, rows = self._signature.check(request)
        frame = RequestFrame(1, "_INBOX.a.r", "stub", "", 0, 0, [request])
        held = HeldFrame(StubDelivery(attempt=attempt), frame, 0, arrived)
        return Member(request, held, plan, rows, deadline)

    def batch(self, *requests: Request, batched: bool = True) -> Batch:
        return Batch([self.of(request) for request in requests], "full", batched=batched)


def double(batch: BackendBatch) -> Outputs:
    """A model that doubles `x`."""
    return {"y": batch.inputs["x"] * 2}


def answer(member: Member) -> list[tuple[str, str, Array]]:
    """Name, datatype and array of each output of a member that was answered."""
    assert member.response is not None
    assert member.response.error is None, member.response.error
    return [(tensor.name, tensor.datatype, tensor.numpy()) for tensor in member.response.outputs]


def error_of(member: Member) -> tuple[str, str]:
    """Reason and message of a member that was refused."""
    assert member.response is not None
    assert member.response.error is not None
    return member.response.error.reason, member.response.error.message
