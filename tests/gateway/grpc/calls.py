"""Calls of the service without a client library, and what its tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
from google.protobuf.message import Message

from qinfer.datatypes import DATATYPES
from qinfer.proto import METHODS, ModelInferRequest
from tests.helpers.waiting import PATIENCE, eventually

CHANNEL = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
"""Options of every client channel: one connection each, and straight to the server."""


class Calls:
    """The service's unary methods on a channel: `calls("ModelReady", name="mlp")`."""

    def __init__(self, address: str, options: Sequence[tuple[str, int]] = ()) -> None:
        self.channel = grpc.insecure_channel(address, options=[*CHANNEL, *options])

    def __call__(self, method: str, request: Any = None, *, metadata: Any = None, **fields: Any) -> Any:
        kind = METHODS[method]
        if request is None:
            request = kind.request(**fields)
        stub = self.channel.unary_unary(
            kind.path,
            request_serializer=lambda message: (
                message if isinstance(message, bytes) else message.SerializeToString()
            ),
            response_deserializer=kind.response.FromString,
        )
        return stub(request, timeout=PATIENCE, metadata=metadata)

    def fails(self, method: str, request: Any = None, **given: Any) -> Failure:
        """Make a call that must fail."""
        try:
            answer = self(method, request, **given)
        except grpc.RpcError as error:
            return Failure(error)
        raise AssertionError(f"{method} answered {answer}; expected an error")


def serialised(request: Message | bytes) -> bytes:
    """Tests send bytes where no message would do."""
    return request if isinstance(request, bytes) else request.SerializeToString()


class Failure:
    """How a call ended."""

    def __init__(self, error: Any) -> None:
        metadata: Mapping[str, str] = dict(error.trailing_metadata() or ())
        self.metadata = {name: value for name, value in metadata.items() if isinstance(value, str)}
        self.code: grpc.StatusCode = error.code()
        self.message: str = error.details()
        self.reason = metadata.get("x-qinfer-reason", "")
        self.retry_after = metadata.get("retry-after", "")

    def __repr__(self) -> str:
        return f"{self.code.name}, {self.reason}: {self.message}"


def triton_input(array: np.ndarray, datatype: str, name: str = "x") -> triton.InferInput:
    """An input for `tritonclient`."""
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def fp32(*shape: int) -> list[triton.InferInput]:
    """The inputs of an FP32 model: one, "x"."""
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return [triton_input(array, "FP32")]


def typed(model: str, datatype: str, shape: Sequence[int], **contents: Any) -> ModelInferRequest:
    """A request whose only input, "x", has typed contents."""
    request = ModelInferRequest(model_name=model)
    given = request.inputs.add(name="x", datatype=datatype, shape=shape)
    given.contents.SetInParent()
    for field, values in contents.items():
        getattr(given.contents, field).extend(values)
    return request


def raw(model: str, datatype: str, shape: Sequence[int], *data: bytes) -> ModelInferRequest:
    """A request whose only input, "x", has raw contents."""
    request = ModelInferRequest(model_name=model, raw_input_contents=data)
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return request


def sample(datatype: str) -> np.ndarray:
    """An array of shape [2, 3] with the extremes of a datatype."""
    dtype = DATATYPES[datatype].dtype
    if datatype == "BYTES":
        return np.array([[b"", b"a\x00b", "ä€😀".encode()], [b"\xff\xfe", b"x" * 300, b"1"]], dtype=object)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype == "BF16":
        return np.array([[1.5, -0.0, np.inf], [2.0**-126, -3.0, 65536.0]], dtype=ml_dtypes.bfloat16)
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        return np.array([[limits.max, limits.tiny, -0.0], [np.inf, -np.inf, 1.25]], dtype=dtype)
    numbers = np.iinfo(dtype)
    return np.array([[numbers.min, numbers.max, 0], [1, 2, 3]], dtype=dtype)


class Gate:
    """Holds up a request of the model `GATED` until it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def row(self) -> np.ndarray:
        return np.array([[str(self._path).encode()]], dtype=object)

    @property
    def inputs(self) -> list[triton.InferInput]:
        return [triton_input(self.row, "BYTES")]

    async def begun(self) -> None:
        """Wait until the model runs the request."""
        journal = self._path.with_name(self._path.name + ".began")
        await eventually(journal.exists, "the model has begun")

    def open(self) -> None:
        self._path.touch()
