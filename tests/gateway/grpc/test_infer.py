"""Inference over gRPC, by unmodified `tritonclient` and by bare calls."""

from __future__ import annotations

import asyncio
import json
import queue
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc import StatusCode

from qinfer.datatypes import DATATYPES, encode_bytes
from qinfer.proto import ModelInferRequest
from qinfer_gateway.grpc.inference import OFF_LOOP_BYTES
from tests.gateway.grpc.calls import Calls, fp32, raw, sample, triton_input, typed
from tests.helpers import served_models
from tests.helpers.served_models import (
    IDENTITY,
    MLP_PATIENT,
    ONNX_IDENTITY,
    SAYS_ALL,
    SCALAR,
    VERSIONS,
    WHOLE,
)

TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False, True]),
    "INT8": ("int_contents", [-128, 127, 0]),
    "INT16": ("int_contents", [-(1 << 15), (1 << 15) - 1, 0]),
    "INT32": ("int_contents", [-(1 << 31), (1 << 31) - 1, 0]),
    "INT64": ("int64_contents", [-(1 << 63), (1 << 63) - 1, 0]),
    "UINT8": ("uint_contents", [255, 128, 0]),
    "UINT16": ("uint_contents", [(1 << 16) - 1, 1 << 15, 0]),
    "UINT32": ("uint_contents", [(1 << 32) - 1, 1 << 31, 0]),
    "UINT64": ("uint64_contents", [(1 << 64) - 1, 1 << 63, 0]),
    "FP32": ("fp32_contents", [1.5, -0.0, float("inf")]),
    "FP64": ("fp64_contents", [0.1, -0.0, float("-inf")]),
    "BYTES": ("bytes_contents", [b"", b"\x00\xff", "ä".encode()]),
}


@pytest.mark.parametrize("model", [*IDENTITY.items(), *ONNX_IDENTITY.items()], ids=lambda model: model[1])
def test_every_datatype(client: triton.InferenceServerClient, model: tuple[str, str]) -> None:
    datatype, name = model
    array = sample(datatype)
    if datatype == "BYTES" and name in ONNX_IDENTITY.values():
        array = np.array([[b"", b"abc", "ä€😀".encode()]], dtype=object)
    result = client.infer(name, [triton_input(array, datatype)])
    assert result.get_output("y").datatype == datatype
    answer = result.as_numpy("y")
    assert answer.shape == array.shape
    assert answer.tobytes() == array.tobytes() if datatype != "BYTES" else answer.tolist() == array.tolist()


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents(calls: Calls, datatype: str) -> None:
    field, values = TYPED[datatype]
    answer = calls("ModelInfer", typed(IDENTITY[datatype], datatype, [1, 3], **{field: values}))
    if datatype == "BYTES":
        expected = encode_bytes(values)
    else:
        expected = np.array(values, DATATYPES[datatype].dtype).tobytes()
    assert list(answer.raw_output_contents) == [expected]
    assert [(y.name, y.datatype, list(y.shape)) for y in answer.outputs] == [("y", datatype, [1, 3])]
    assert not answer.outputs[0].HasField("contents")


def test_large_typed_contents(calls: Calls) -> None:
    values = np.arange(OFF_LOOP_BYTES // 4 + 1, dtype=np.float32)
    request = typed(IDENTITY["FP32"], "FP32", [1, values.size], fp32_contents=values.tolist())
    assert request.ByteSize() > OFF_LOOP_BYTES
    assert calls("ModelInfer", request).raw_output_contents[0] == values.tobytes()


def test_large_raw_contents(client: triton.InferenceServerClient) -> None:
    array = np.random.default_rng(7).random((16, 6000), dtype=np.float32)
    result = client.infer(IDENTITY["FP32"], [triton_input(array, "FP32")])
    assert np.array_equal(result.as_numpy("y"), array)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_raw_only(calls: Calls, datatype: str) -> None:
    failure = calls.fails("ModelInfer", typed(IDENTITY[datatype], datatype, [1, 1], fp32_contents=[1.0]))
    assert failure.code == StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents" in failure.message
    data = struct.pack("<H", 0x3F80)
    answer = calls("ModelInfer", raw(IDENTITY[datatype], datatype, [1, 1], data))
    assert list(answer.raw_output_contents) == [data]


@pytest.mark.parametrize("request_of", [lambda *given: raw(*given, b""), typed], ids=["raw", "typed"])
def test_no_elements(calls: Calls, request_of: Any) -> None:
    answer = calls("ModelInfer", request_of(IDENTITY["FP32"], "FP32", [2, 0]))
    assert list(answer.outputs[0].shape) == [2, 0]
    assert list(answer.raw_output_contents) == [b""]


def test_model_without_batch_dimension(client: triton.InferenceServerClient) -> None:
    array = np.ones((2, 3), np.float32)
    assert np.array_equal(client.infer(WHOLE, [triton_input(array, "FP32")]).as_numpy("y"), array + 1)
    numbers = np.arange(6).reshape(3, 2)
    assert np.array_equal(client.infer(SCALAR, [triton_input(numbers, "INT64")]).as_numpy("y"), numbers)


@pytest.mark.parametrize(("version", "answers"), [("", "2"), ("1", "1"), ("2", "2")])
def test_versions(client: triton.InferenceServerClient, version: str, answers: str) -> None:
    result = client.infer(VERSIONS, fp32(1, 3), model_version=version)
    assert result.get_response().model_version == answers
    assert result.as_numpy("y").tolist() == [[0.0, float(answers), 2.0 * float(answers)]]


def test_identifier_and_names_come_back(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("y")]
    response = client.infer(VERSIONS, fp32(1, 1), outputs=wanted, request_id="id ä").get_response()
    assert (response.id, response.model_name) == ("id ä", VERSIONS)
    assert [output.name for output in response.outputs] == ["y"]
    assert client.infer(VERSIONS, fp32(1, 1)).get_response().id == ""


def test_what_the_model_is_told(calls: Calls) -> None:
    request = raw(SAYS_ALL, "INT32", [1, 1], bytes(4))
    request.id = "seventeen"
    parameters = request.parameters
    parameters["flag"].bool_param = False
    parameters["whole"].int64_param = -(1 << 62)
    parameters["wide"].uint64_param = (1 << 64) - 1
    parameters["real"].double_param = 0.5
    parameters["text"].string_param = "ä"
    parameters["priority"].uint64_param = 2
    parameters["timeout"].int64_param = 20_000_000
    answer = calls("ModelInfer", request)
    (size,) = struct.unpack_from("<I", answer.raw_output_contents[0])
    told = json.loads(answer.raw_output_contents[0][4 : 4 + size])
    given = {"flag": False, "whole": -(1 << 62), "wide": (1 << 64) - 1, "real": 0.5, "text": "ä"}
    assert told["parameters"] == given
    assert (told["id"], told["priority"], told["has_timeout"]) == ("seventeen", 2, True)


def test_a_timeout_that_never_comes(client: triton.InferenceServerClient) -> None:
    result = client.infer(VERSIONS, fp32(1, 1), timeout=(1 << 63) - 1)
    assert result.as_numpy("y").tolist() == [[0.0]]


def test_what_the_model_returns_beside_its_tensors(calls: Calls) -> None:
    answer = calls("ModelInfer", raw(SAYS_ALL, "INT32", [1, 1], bytes(4)))
    assert answer.parameters["said"].bool_param is True
    assert answer.parameters["count"].int64_param == 3


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: triton.InferenceServerClient, algorithm: str) -> None:
    array = np.tile(np.arange(8, dtype=np.float32), (4, 400))
    given = [triton_input(array, "FP32")]
    result = client.infer(IDENTITY["FP32"], given, compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("y"), array)


def test_callbacks(client: triton.InferenceServerClient) -> None:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def callback(result: Any, error: Any) -> None:
        results.put((result, error))

    client.async_infer(VERSIONS, fp32(1, 1), callback=callback)
    client.async_infer("nobody", fp32(1, 1), callback=callback)
    outcomes = [results.get(timeout=20) for _ in range(2)]
    (result,) = [result for result, error in outcomes if error is None]
    (error,) = [error for result, error in outcomes if error is not None]
    assert result.as_numpy("y").tolist() == [[0.0]]
    assert error.status() == "StatusCode.NOT_FOUND"


async def test_load_makes_batches(aio_client: triton_aio.InferenceServerClient) -> None:
    """64 callers at once, on a model that holds batches open for company."""
    callers, rounds = 64, 4

    async def counts() -> tuple[int, int]:
        (stats,) = (await aio_client.get_inference_statistics(MLP_PATIENT)).model_stats
        return stats.inference_count, stats.execution_count

    async def caller(number: int) -> None:
        array = np.full((1, 64), number, np.float32)
        answers = [
            (await aio_client.infer(MLP_PATIENT, [triton_input(array, "FP32")])).as_numpy("y")
            for _ in range(rounds)
        ]
        for answer in answers:
            np.testing.assert_allclose(answer, alone[number], rtol=1e-4, atol=1e-5)

    alone = []
    for number in range(callers):
        array = np.full((1, 64), number, np.float32)
        alone.append((await aio_client.infer(served_models.MLP, [triton_input(array, "FP32")])).as_numpy("y"))
    rows, batches = await counts()
    await asyncio.gather(*map(caller, range(callers)))
    rows_after, batches_after = await counts()
    assert rows_after - rows == callers * rounds
    assert (rows_after - rows) / (batches_after - batches) > 1


def test_fields_of_a_later_protocol_are_ignored(calls: Calls) -> None:
    request = raw(IDENTITY["INT8"], "INT8", [1, 1], b"\x05").SerializeToString() + b"\xf8\x3f\x01"
    assert ModelInferRequest.FromString(request).inputs[0].name == "x"
    assert list(calls("ModelInfer", request).raw_output_contents) == [b"\x05"]
