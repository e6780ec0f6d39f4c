"""Asking a model over the broker: one request, published to the model's queue, answered on an inbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from qinfer.bus import Bus, connect
from qinfer.cli.tensors import parse_inputs
from qinfer.cli.v2 import Answer
from qinfer.errors import DeadlineExceeded, ModelNotFound, NoWorker, QInferError
from qinfer.message import (
    KEPT,
    PROTOCOL_VERSION,
    Request,
    RequestFrame,
    Response,
    ResponseFrame,
    decode_response_frame,
    encode,
    redeem_claim,
)
from qinfer.registry import Directory, ModelRecord

_MICROSECONDS = 1_000_000
_GRACE = 1.0  # the worker's own answer to a passed deadline says more than ours


def infer_over_broker(
    url: str,
    namespace: str,
    model: str,
    version: str,
    inputs: Sequence[str],
    *,
    outputs: Sequence[str],
    timeout: float,
) -> Answer:
    """Run a model once, without a gateway.

    Args:
        url: the broker.
        namespace: the fleet's namespace.
        model, version: what to ask; version "" for the newest.
        inputs: `NAME=VALUE` arguments.
        outputs: names of the wanted outputs; empty for all.
        timeout: deadline in seconds.

    Raises:
        BusUnavailable: the broker does not answer.
        ModelNotFound: the fleet does not know the model.
        NoWorker: it does, but no live worker serves it.
        DeadlineExceeded: no answer came in time.
        QInferError: what the worker answered.
    """
    return asyncio.run(_infer(url, namespace, model, version, inputs, outputs, timeout))


async def _infer(
    url: str,
    namespace: str,
    model: str,
    version: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    timeout: float,
) -> Answer:
    deadline = time.time() + timeout
    async with AsyncExitStack() as stack:
        bus = connect(url, namespace=namespace, name="qinfer infer")
        await bus.start()
        stack.push_async_callback(bus.close)
        directory = Directory(bus)
        await directory.start()
        stack.push_async_callback(directory.close)
        record = find(directory, model, version)
        specs = [{"name": spec.name, "datatype": spec.datatype} for spec in record.inputs]
        request = Request(
            id=1,
            request_id="",
            inputs=parse_inputs(inputs, specs),
            outputs=list(outputs),
        )
        return await exchange(bus, model, version, request, deadline)


def find(directory: Directory, model: str, version: str) -> ModelRecord:
    """The record of a model that can be asked.

    Raises:
        ModelNotFound: the fleet does not know the model.
        NoWorker: it does, but no live worker serves it.
    """
    record = directory.record(model, version)
    if record is None:
        known = ", ".join(sorted(directory.models)) or "none"
        what = f"version {version} of model {model!r}" if version else f"model {model!r}"
        raise ModelNotFound(f"no {what}; the fleet has: {known}")
    if record.version not in directory.serving(model):
        raise NoWorker(f"no live worker serves model {model!r} version {record.version}")
    return record


async def exchange(bus: Bus, model: str, version: str, request: Request, deadline: float) -> Answer:
    """Publish a request and wait for its answer. One at a time on a bus, which is to answer nothing else.

    Args:
        bus: a started bus.
        model, version: whom to ask.
        request: its `deadline_us` is set here; no other of this bus has its `id`.
        deadline: Unix time.

    Raises:
        DeadlineExceeded: no answer came in time.
        QInferError: the request was refused, or what the worker answered.
    """
    request.deadline_us = int(deadline * _MICROSECONDS)
    started = time.perf_counter()
    frame, response = await _answer(bus, model, version, request, deadline)
    if response.claim:
        redeem_claim(response.outputs, await bus.get_blob(response.claim, limit=response.claim_bytes))
        if not response.flags & KEPT:
            await bus.delete_blob(response.claim)
    return Answer(
        model=model,
        version=frame.model_version,
        outputs=response.outputs,
        parameters=response.parameters,
        seconds=time.perf_counter() - started,
    )


async def _answer(
    bus: Bus, model: str, version: str, request: Request, deadline: float
) -> tuple[ResponseFrame, Response]:
    answered: asyncio.Future[tuple[ResponseFrame, Response]] = asyncio.get_running_loop().create_future()

    def refuse(error: QInferError) -> None:
        if not answered.done():
            answered.set_exception(error)

    def take(payload: bytes) -> None:
        try:
            answer = _read(payload, request.id)
        except QInferError as error:
            refuse(error)
            return
        if answer is not None and not answered.done():
            answered.set_result(answer)

    bus.on_reply(take)
    frame = RequestFrame(
        version=PROTOCOL_VERSION,
        reply_to=bus.reply_to,
        model=model,
        model_version=version,
        sent_us=int(time.time() * _MICROSECONDS),
        in_flight=1,
        requests=[request],
    )
    bus.publish(model, version, encode(frame), refuse)
    try:
        return await asyncio.wait_for(answered, max(0.0, deadline - time.time()) + _GRACE)
    except TimeoutError:
        raise DeadlineExceeded(f"model {model!r} did not answer in time") from None


def _read(payload: bytes, number: int) -> tuple[ResponseFrame, Response] | None:
    """The answer to a request, if this is it, and not a late one to an earlier request."""
    frame = decode_response_frame(payload)
    if frame.error is not None:
        raise frame.error.exception()
    for response in frame.responses:
        if response.id == number:
            if response.error is not None:
                raise response.error.exception()
            return frame, response
    return None
