"""One request, any number of responses: server-sent events of `generate_stream`.

Source: Triton's generate extension, whose bodies are JSON: an output is flat there, and has its shape back by
the model's signature.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from math import prod
from typing import Any

import aiohttp
import msgspec
import numpy as np

from qinfer.client.base import ModelInfo, Result
from qinfer.client.http.session import Session
from qinfer.client.http.wire import model_path, read_json
from qinfer.client.transport import Question
from qinfer.datatypes import Array, datatype
from qinfer.errors import InternalError, Unsupported, from_reason
from qinfer.message import Request, Tensor
from qinfer.registry import TensorRecord

_MICROSECONDS = 1_000_000
_MAX_EVENT = 256 << 20  # bytes of one event
_DATA = b"data:"

_encode = msgspec.json.Encoder().encode


class Streams:
    """Asks models for any number of responses.

    Args:
        session: a started session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def ask(
        self, question: Question, request: Request, info: ModelInfo
    ) -> AsyncGenerator[Result, None]:
        """Send a request and give its responses; leaving the iteration ends the connection.

        Raises:
            Unsupported: an input or output has no form in JSON.
            QInferError: why there are no more.
        """
        response = await self._session.open(
            "POST",
            f"{model_path(question.model, question.options.version)}/generate_stream",
            deadline=question.deadline,
            body=[_body(request, question.left)],
            headers=_headers(request),
        )
        try:
            async for event in self._events(response, question.deadline):
                yield _result(event, request, info)
        finally:
            response.close()

    async def _events(self, response: aiohttp.ClientResponse, deadline: float) -> AsyncIterator[Any]:
        held = bytearray()
        while piece := await self._session.read(response, deadline):
            held += piece
            *events, held = held.split(b"\n\n")
            for event in events:
                data = b"".join(
                    line.removeprefix(_DATA) for line in event.splitlines() if line.startswith(_DATA)
                )
                if data:
                    yield read_json(data)
            if len(held) > _MAX_EVENT:
                raise InternalError(f"a response of more than {_MAX_EVENT} bytes; expected less")


def _headers(request: Request) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if request.traceparent:
        headers |= {"traceparent": request.traceparent, "tracestate": request.tracestate}
    return headers


def _body(request: Request, timeout: float) -> bytes:
    parameters = {**request.parameters, "timeout": max(1, int(timeout * _MICROSECONDS))}
    if request.priority:
        parameters["priority"] = request.priority
    body: dict[str, Any] = {tensor.name: _nested(tensor) for tensor in request.inputs}
    clash = body.keys() & {"id", "parameters"}
    if clash:
        raise Unsupported(f"input {clash.pop()!r}: streams over HTTP have another use for the name")
    return _encode({**body, "id": request.request_id, "parameters": parameters})


def _nested(tensor: Tensor) -> Any:
    """A tensor as (nested) lists."""
    if not datatype(tensor.datatype).json:
        raise Unsupported(f"input {tensor.name!r} is {tensor.datatype}, which has no form in JSON")
    array = tensor.numpy()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unsupported(f"input {tensor.name!r} has NaN or infinite values, which have no form in JSON")
    if tensor.datatype == "BYTES":
        try:
            array.reshape(-1)[:] = [element.decode() for element in array.reshape(-1)]
        except UnicodeDecodeError:
            raise Unsupported(
                f"input {tensor.name!r} is not UTF-8; other bytes have no form in JSON"
            ) from None
    return array.tolist()


def _result(event: Any, request: Request, info: ModelInfo) -> Result:
    try:
        if "model_name" not in event:
            raise from_reason(str(event.get("reason", "")), str(event["error"]))
        outputs = {spec.name: spec for spec in info.outputs}
        wanted = request.outputs or list(outputs)
        known = {"model_name", "model_version", "id", *outputs}
        return Result(
            model=str(event["model_name"]),
            version=str(event.get("model_version", "")),
            tensors=[
                _tensor(outputs[name], event[name], batched=bool(info.max_batch_size))
                for name in wanted
                if name in event
            ],
            parameters={name: value for name, value in event.items() if name not in known},
            request_id=request.request_id,
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InternalError(f"the server's answer is no response of a stream: {error!r}") from None


def _tensor(spec: TensorRecord, value: Any, *, batched: bool) -> Tensor:
    kind = datatype(spec.datatype)
    values = value if isinstance(value, list) else [value]
    if kind.itemsize:
        array: Array = np.array([np.nan if each is None else each for each in values], kind.dtype)
    else:
        array = np.array(values, dtype=object)
    return Tensor.from_numpy(spec.name, array.reshape(_shape(spec, len(values), batched=batched)), kind.name)


def _shape(spec: TensorRecord, count: int, *, batched: bool) -> list[int]:
    """The shape of a flat list: what is fixed is known, and one dimension that is not follows."""
    free = [place for place, dim in enumerate(spec.dims) if dim == -1]
    if len(free) > 1:
        raise Unsupported(
            f"output {spec.name!r} has several variable dimensions: {list(spec.dims)}; over HTTP streams do "
            "not tell them, over NATS and gRPC they do"
        )
    fixed = prod(dim for dim in spec.dims if dim != -1)
    dims = [count // fixed if dim == -1 and fixed else dim for dim in spec.dims]
    if not batched:
        return dims
    return [1 if free or not fixed else count // fixed, *dims]
