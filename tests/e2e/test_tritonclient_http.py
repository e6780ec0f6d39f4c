"""An unmodified `tritonclient` over HTTP: synchronous and asyncio."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from loadtest.mlp import example_rows, reference
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from qinfer import __version__
from qinfer.datatypes import DATATYPES, Array
from qinfer_gateway.front import EXTENSIONS
from tests.helpers import http, served_models
from tests.helpers.served_models import AUTO, IDENTITY, MLP, ONNX_IDENTITY, SAYS_ALL, VERSIONS, WHOLE
from tests.helpers.system import System


@pytest.fixture
def client(system: System) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(system.http, concurrency=4) as made:
        yield made


@pytest_asyncio.fixture
async def aio(system: System) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(system.http) as made:
        yield made


def sample(datatype: str, rows: int = 2) -> Array:
    """Values from one end of the datatype to the other, [rows, 3]."""
    kind = triton_to_np_dtype(datatype)
    if datatype == "BYTES":
        words = [b"", "größe".encode(), b"x" * 300]
        return np.array([words] * rows, dtype=np.object_)
    if datatype == "BOOL":
        return np.array([[True, False, True]] * rows)
    if datatype == "BF16":
        return np.array([[-1.5, 0.0, 3.0e38]] * rows, dtype=np.float32).astype(kind)
    info: Any = np.iinfo(kind) if np.issubdtype(kind, np.integer) else np.finfo(kind)
    return np.array([[info.min, 1, info.max]] * rows, dtype=kind)


def given(array: Array, datatype: str, *, binary: bool, name: str = "x") -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def wanted(*, binary: bool, name: str = "y") -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary)]


def forms() -> Iterator[tuple[str, str, bool, bool]]:
    """Model, datatype, and whether inputs and outputs are binary."""
    for models in (IDENTITY, ONNX_IDENTITY):
        for datatype, model in models.items():
            for binary_in, binary_out in product((True, False), repeat=2):
                if DATATYPES[datatype].json or (binary_in and binary_out):
                    yield model, datatype, binary_in, binary_out


@pytest.mark.parametrize(("model", "datatype", "binary_in", "binary_out"), list(forms()))
def test_every_datatype(
    client: triton.InferenceServerClient, model: str, datatype: str, binary_in: bool, binary_out: bool
) -> None:
    array = sample(datatype)
    result = client.infer(
        model, [given(array, datatype, binary=binary_in)], outputs=wanted(binary=binary_out)
    )
    answer = result.as_numpy("y")
    assert answer.shape == (2, 3)
    assert result.get_output("y")["datatype"] == datatype
    if datatype == "BYTES" and not binary_out:  # the client leaves JSON strings as they are
        answer = np.char.encode(answer.astype(str), "utf-8").astype(np.object_)
    np.testing.assert_array_equal(answer, array)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_have_no_json_form(client: triton.InferenceServerClient, datatype: str) -> None:
    inputs = [given(sample(datatype), datatype, binary=True)]
    with pytest.raises(InferenceServerException, match=f"{datatype} has no JSON form"):
        client.infer(IDENTITY[datatype], inputs, outputs=wanted(binary=False))


@pytest.mark.parametrize("answer_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression(
    client: triton.InferenceServerClient, request_coding: str, answer_coding: str, binary: bool
) -> None:
    array = np.arange(4 * 5000, dtype=np.float32).reshape(4, 5000)
    result = client.infer(
        IDENTITY["FP32"],
        [given(array, "FP32", binary=binary)],
        outputs=wanted(binary=binary),
        request_compression_algorithm=request_coding,
        response_compression_algorithm=answer_coding,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_server(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata() == {
        "name": "qinfer",
        "version": __version__,
        "extensions": list(EXTENSIONS),
    }


def test_model_metadata(client: triton.InferenceServerClient) -> None:
    assert client.get_model_metadata(MLP) == {
        "name": MLP,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 16]}],
    }
    whole = client.get_model_metadata(WHOLE, "1")
    assert whole["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [2, 3]}]
    assert client.get_model_metadata(VERSIONS)["versions"] == ["1", "2"]


def test_a_model_without_configuration_is_completed(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config(AUTO)
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] > 0
    assert [entry["name"] for entry in config["input"] + config["output"]] == ["x", "y"]
    array = np.ones((3, 2), np.float32)
    result = client.infer(AUTO, [given(array, "FP32", binary=True)])
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_model_config(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config(served_models.MLP_PATIENT)
    assert config["name"] == served_models.MLP_PATIENT
    assert config["max_batch_size"] == 64
    assert int(config["dynamic_batching"]["max_queue_delay_microseconds"]) == served_models.PATIENCE_US
    assert config["input"][0]["data_type"] == "TYPE_FP32"


def test_model_readiness(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready(MLP)
    assert client.is_model_ready(VERSIONS, "2")
    assert not client.is_model_ready(VERSIONS, "3")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("broken_import")


async def test_what_could_not_be_loaded_is_listed_with_the_reason(system: System) -> None:
    async with http.connect(system.http_port) as connection:
        answer = await connection.ask(http.get("/v2/models"))
    rows = {row["name"]: row for row in answer.json()["models"]}
    for name, part in served_models.BROKEN.items():
        assert rows[name]["state"] == "UNAVAILABLE"
        assert part in rows[name]["reason"]
    assert rows[MLP]["state"] == "READY"


def test_statistics(client: triton.InferenceServerClient) -> None:
    def read() -> dict[str, Any]:
        (one,) = client.get_inference_statistics(WHOLE)["model_stats"]
        return dict(one)

    before = read()
    array = np.zeros((2, 3), np.float32)
    for _ in range(3):
        client.infer(WHOLE, [given(array, "FP32", binary=True)])
    after = read()
    assert after["name"] == WHOLE
    assert after["version"] == "1"
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 3
    assert after["last_inference"] >= before["last_inference"] > -1
    success = after["inference_stats"]["success"]
    assert success["count"] - before["inference_stats"]["success"]["count"] == 3
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(after["inference_stats"][part]["ns"] for part in parts) <= success["ns"]
    names = {stats["name"] for stats in client.get_inference_statistics()["model_stats"]}
    assert {WHOLE, MLP, VERSIONS} <= names
    assert len(client.get_inference_statistics(VERSIONS)["model_stats"]) == 2
    assert len(client.get_inference_statistics(VERSIONS, "1")["model_stats"]) == 1


def test_the_mlp_computes_what_onnxruntime_computes(
    client: triton.InferenceServerClient, system: System
) -> None:
    rows = example_rows(8)
    expected = reference(system.repository / MLP / "1" / "model.onnx", rows)
    result = client.infer(MLP, [given(rows, "FP32", binary=True)])
    np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-4, atol=1e-5)


def test_versions(client: triton.InferenceServerClient) -> None:
    array = np.ones((1, 1), np.float32)
    for version, factor in (("1", 1), ("2", 2), ("", 2)):
        result = client.infer(VERSIONS, [given(array, "FP32", binary=True)], model_version=version)
        assert result.as_numpy("y") == [[factor]]
        assert result.get_response()["model_version"] == str(factor)


def test_a_model_without_batch_dimension(client: triton.InferenceServerClient) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = client.infer(WHOLE, [given(array, "FP32", binary=True)])
    np.testing.assert_array_equal(result.as_numpy("y"), array + 1)


def test_what_a_request_says_beside_its_tensors(client: triton.InferenceServerClient) -> None:
    result = client.infer(
        SAYS_ALL,
        [given(np.zeros((1, 1), np.int32), "INT32", binary=True)],
        request_id="my own id",
        priority=3,
        timeout=5_000_000,
        sequence_id=7,
        sequence_start=True,
        parameters={"text": "a", "whole": 1, "real": 0.5, "yes": True},
    )
    told = json.loads(result.as_numpy("y")[0, 0])
    assert told["id"] == result.get_response()["id"] == "my own id"
    assert told["priority"] == 3
    assert told["has_timeout"] is True
    assert told["parameters"] == {
        "text": "a",
        "whole": 1,
        "real": 0.5,
        "yes": True,
        "sequence_id": 7,
        "sequence_start": True,
        "sequence_end": False,
    }
    assert result.get_response()["parameters"] == {"said": True, "count": 3}


def test_only_the_wanted_outputs(client: triton.InferenceServerClient) -> None:
    inputs = [given(sample("FP32"), "FP32", binary=True)]
    names = [output["name"] for output in client.infer(IDENTITY["FP32"], inputs).get_response()["outputs"]]
    assert names == ["y"]
    with pytest.raises(InferenceServerException, match="output 'z'"):
        client.infer(IDENTITY["FP32"], inputs, outputs=wanted(binary=True, name="z"))


def test_a_timeout_that_cannot_be_kept(client: triton.InferenceServerClient) -> None:
    inputs = [given(sample("FP32"), "FP32", binary=True)]
    with pytest.raises(InferenceServerException, match="deadline") as raised:
        client.infer(IDENTITY["FP32"], inputs, timeout=1)
    assert raised.value.status() == "504"


def test_classification_is_refused_in_words(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("y", class_count=2)]
    with pytest.raises(InferenceServerException, match="classification") as raised:
        client.infer(IDENTITY["FP32"], [given(sample("FP32"), "FP32", binary=True)], outputs=outputs)
    assert raised.value.status() == "501"


async def test_asyncio(aio: triton_aio.InferenceServerClient) -> None:
    assert await aio.is_server_live()
    assert await aio.is_server_ready()
    assert await aio.is_model_ready(MLP)
    assert (await aio.get_server_metadata())["name"] == "qinfer"
    assert (await aio.get_model_metadata(MLP))["name"] == MLP
    assert (await aio.get_model_config(MLP))["max_batch_size"] == 64
    assert (await aio.get_inference_statistics(MLP))["model_stats"][0]["name"] == MLP
    for datatype, model in IDENTITY.items():
        array = sample(datatype)
        result = await aio.infer(
            model,
            [given(array, datatype, binary=True)],
            request_compression_algorithm="gzip",
            response_compression_algorithm="gzip",
        )
        np.testing.assert_array_equal(result.as_numpy("y"), array)
    with pytest.raises(InferenceServerException, match="does not exist"):
        await aio.infer("nobody", [given(sample("FP32"), "FP32", binary=True)])


def test_many_at_once_from_the_pool_of_one_client(client: triton.InferenceServerClient) -> None:
    rows = example_rows(32)
    pending = [client.async_infer(MLP, [given(row[None], "FP32", binary=True)]) for row in rows]
    together = client.infer(MLP, [given(rows, "FP32", binary=True)]).as_numpy("y")
    for one, expected in zip(pending, together, strict=True):
        np.testing.assert_allclose(one.get_result().as_numpy("y")[0], expected, rtol=1e-4, atol=1e-5)
