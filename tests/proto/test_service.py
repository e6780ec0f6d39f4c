"""A server made of the method table answers the unmodified client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from qinfer.proto import (
    METHODS,
    SERVICE,
    DataType,
    ModelConfig,
    ModelConfigRequest,
    ModelConfigResponse,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
    ServerLiveRequest,
    ServerLiveResponse,
)


def live(request: ServerLiveRequest, context: grpc.ServicerContext) -> ServerLiveResponse:
    return ServerLiveResponse(live=True)


def config(request: ModelConfigRequest, context: grpc.ServicerContext) -> ModelConfigResponse:
    message = ModelConfig(name=request.name, backend="python", max_batch_size=8)
    message.input.add(name="x", data_type="TYPE_FP32", dims=[-1, 3])
    return ModelConfigResponse(config=message)


def echo(request: ModelInferRequest, context: grpc.ServicerContext) -> ModelInferResponse:
    response = ModelInferResponse(model_name=request.model_name, id=request.id)
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.extend(request.raw_input_contents)
    return response


def stream(
    requests: Iterator[ModelInferRequest], context: grpc.ServicerContext
) -> Iterator[ModelStreamInferResponse]:
    for request in requests:
        yield ModelStreamInferResponse(infer_response=echo(request, context))


BEHAVIOURS: dict[str, Callable[..., Any]] = {
    "ServerLive": live,
    "ModelConfig": config,
    "ModelInfer": echo,
    "ModelStreamInfer": stream,
}


@pytest.fixture
def client() -> Iterator[InferenceServerClient]:
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    handlers = {
        name: kinds[METHODS[name].client_streaming, METHODS[name].server_streaming](
            behaviour,
            request_deserializer=METHODS[name].request.FromString,
            response_serializer=METHODS[name].response.SerializeToString,
        )
        for name, behaviour in BEHAVIOURS.items()
    }
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with InferenceServerClient(f"127.0.0.1:{port}") as connected:
            yield connected
    finally:
        server.stop(None).wait(10)


@pytest.fixture
def tensor() -> InferInput:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    return InferInput("x", [2, 3], "FP32").set_data_from_numpy(values)


def test_health_and_configuration(client: InferenceServerClient) -> None:
    assert client.is_server_live(client_timeout=10)
    told = client.get_model_config("m", client_timeout=10).config
    assert (told.name, told.backend, told.max_batch_size) == ("m", "python", 8)
    assert told.input[0].data_type == DataType.Value("TYPE_FP32")
    assert list(told.input[0].dims) == [-1, 3]


def test_inference(client: InferenceServerClient, tensor: InferInput) -> None:
    result = client.infer("m", [tensor], request_id="7", client_timeout=10)
    assert result.get_response().id == "7"
    np.testing.assert_array_equal(result.as_numpy("x"), np.arange(6, dtype=np.float32).reshape(2, 3))


def test_stream(client: InferenceServerClient, tensor: InferInput) -> None:
    answers: Queue[tuple[Any, Any]] = Queue(maxsize=4)
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer("m", [tensor], request_id="1")
    client.async_stream_infer("m", [tensor], request_id="2")
    received = [answers.get(timeout=10) for _ in range(2)]
    client.stop_stream()
    assert [error for _, error in received] == [None, None]
    assert [result.get_response().id for result, _ in received] == ["1", "2"]
