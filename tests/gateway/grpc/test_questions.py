"""What the server tells of itself and its models, asked by an unmodified `tritonclient`."""

from __future__ import annotations

import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from grpc import StatusCode

from qinfer import __version__
from qinfer.proto import METHODS
from qinfer_gateway.front import EXTENSIONS
from tests.gateway.grpc.calls import Calls, fp32
from tests.helpers import served_models
from tests.helpers.system import System

ANSWERED = {
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig"),
    *("ModelStatistics", "ModelInfer", "ModelStreamInfer"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
}


def test_health(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(served_models.MLP)
    assert client.is_model_ready(served_models.VERSIONS, "2")
    assert not client.is_model_ready(served_models.VERSIONS, "3")
    assert not client.is_model_ready("nobody")


def test_server_metadata(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert (metadata.name, metadata.version) == ("qinfer", __version__)
    assert tuple(metadata.extensions) == EXTENSIONS


def test_model_metadata(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata(served_models.VERSIONS, as_json=True)
    assert metadata == {
        "name": served_models.VERSIONS,
        "versions": ["1", "2"],
        "platform": "python",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "-1"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "-1"]}],
    }
    assert list(client.get_model_metadata(served_models.VERSIONS, "2").versions) == ["2"]
    assert list(client.get_model_metadata(served_models.WHOLE).inputs[0].shape) == [2, 3]


def test_model_config(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config(served_models.MLP).config
    assert (config.name, config.backend) == (served_models.MLP, "onnxruntime")
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert [spec.name for spec in config.input] == ["x"]
    json = client.get_model_config(served_models.AUTO, as_json=True)["config"]
    assert [spec["name"] for spec in json["input"]] == ["x"], "completed from the model file"


def test_statistics(client: triton.InferenceServerClient) -> None:
    def counts() -> tuple[int, int]:
        (stats,) = client.get_inference_statistics(served_models.VERSIONS, "1").model_stats
        assert (stats.name, stats.version) == (served_models.VERSIONS, "1")
        return stats.inference_count, stats.inference_stats.success.count

    rows, requests = counts()
    client.infer(served_models.VERSIONS, fp32(3, 2), model_version="1")
    client.infer(served_models.VERSIONS, fp32(1, 2), model_version="2")
    assert counts() == (rows + 3, requests + 1)
    every = client.get_inference_statistics(as_json=True)["model_stats"]
    assert {served_models.MLP, served_models.VERSIONS} <= {stats["name"] for stats in every}


def test_statistics_are_whole(calls: Calls, client: triton.InferenceServerClient) -> None:
    client.infer(served_models.VERSIONS, fp32(1, 2))
    (stats,) = calls("ModelStatistics", name=served_models.VERSIONS, version="2").model_stats
    assert stats.last_inference > 0
    assert stats.inference_stats.compute_infer.ns > 0
    assert sum(batch.compute_infer.count for batch in stats.batch_stats) == stats.execution_count


async def test_asyncio_client(aio_client: triton_aio.InferenceServerClient) -> None:
    assert await aio_client.is_server_live()
    assert await aio_client.is_server_ready()
    assert await aio_client.is_model_ready(served_models.MLP)
    metadata = await aio_client.get_model_metadata(served_models.MLP)
    assert [(spec.name, list(spec.shape)) for spec in metadata.inputs] == [("x", [-1, 64])]
    assert (await aio_client.get_model_config(served_models.MLP)).config.max_batch_size > 0
    (stats,) = (await aio_client.get_inference_statistics(served_models.MLP)).model_stats
    assert stats.name == served_models.MLP


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize("version", ["", "9"])
def test_unknown_model(calls: Calls, method: str, version: str) -> None:
    name = served_models.MLP if version else "../nobody ä"
    failure = calls.fails(method, name=name, version=version)
    assert (failure.code, failure.reason) == (StatusCode.NOT_FOUND, "model_not_found")
    assert name in failure.message
    assert version in failure.message


@pytest.mark.parametrize("method", sorted(set(METHODS) - ANSWERED))
def test_what_is_not_supported_says_so(calls: Calls, method: str) -> None:
    failure = calls.fails(method)
    assert (failure.code, failure.reason) == (StatusCode.UNIMPLEMENTED, "unsupported")
    assert method in failure.message


@pytest.mark.parametrize("method", sorted(ANSWERED - {"ModelStreamInfer"}))
def test_bytes_that_are_no_message(calls: Calls, method: str) -> None:
    failure = calls.fails(method, b"\x0a\xffnonsense")
    assert (failure.code, failure.reason) == (StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert METHODS[method].request.DESCRIPTOR.full_name in failure.message


def test_answers_agree_with_http(client: triton.InferenceServerClient, system: System) -> None:
    metadata = client.get_model_metadata(served_models.VERSIONS, as_json=True)
    for tensor in metadata["inputs"] + metadata["outputs"]:
        tensor["shape"] = [int(dim) for dim in tensor["shape"]]
    with triton_http.InferenceServerClient(system.http) as http:
        assert metadata == http.get_model_metadata(served_models.VERSIONS)
