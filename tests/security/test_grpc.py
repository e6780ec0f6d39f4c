"""Who may ask for what, over gRPC: the same as over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qinfer.proto import METHODS, ModelInferRequest
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import Fleet
from tests.helpers.waiting import eventually
from tests.security.conftest import MakeFleet
from tests.security.credentials import key_of, write_keys

MODEL, OTHER = IDENTITY["FP32"], IDENTITY["INT32"]
CODES = grpc.StatusCode


@pytest_asyncio.fixture
async def guarded(make_fleet: MakeFleet, tmp_path: Path) -> AsyncIterator[Fleet]:
    keys = write_keys(
        tmp_path / "keys.yaml",
        alice={"models": ["identity_*"], "tenant": "wonderland", "priority_ceiling": 4},
        bob={"models": [OTHER]},
        operator={"models": ["*"], "permissions": ["management"]},
        slow={"models": ["*"], "rate": 0.001, "burst": 1},
    )
    async with make_fleet(MODEL, OTHER, keys_file=keys, grpc_port=0) as made:
        yield made


@pytest_asyncio.fixture
async def channel(guarded: Fleet) -> AsyncIterator[grpc.aio.Channel]:
    assert guarded.gateway.grpc is not None
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.gateway.grpc.port}") as made:
        yield made


def shown(who: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key_of(who)}"),)


def request(model: str = MODEL, priority: int = 0) -> bytes:
    message = ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    message.raw_input_contents.append(np.float32(1.5).tobytes())
    if priority:
        message.parameters["priority"].int64_param = priority
    return message.SerializeToString()


async def call(
    channel: grpc.aio.Channel, rpc_name: str, metadata: Any, /, **fields: Any
) -> tuple[CODES, str]:
    """Status and reason of a unary RPC."""
    method = METHODS[rpc_name]
    rpc = channel.unary_unary(method.path)
    body = request(fields.get("model_name", MODEL)) if rpc_name == "ModelInfer" else None
    done = rpc(body if body is not None else method.request(**fields).SerializeToString(), metadata=metadata)
    try:
        await done
    except grpc.aio.AioRpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        return error.code(), str(trailing.get("x-qinfer-reason", ""))
    return await done.code(), ""


async def test_both_kinds_of_metadata_carry_a_key(channel: grpc.aio.Channel) -> None:
    key = key_of("alice")
    for metadata in (shown("alice"), (("x-api-key", key),), (("authorization", f"bearer {key}"),)):
        assert await call(channel, "ModelInfer", metadata) == (CODES.OK, "")


@pytest.mark.parametrize(
    "metadata", [(), shown("nobody"), (("x-api-key", ""),), (("authorization", key_of("alice")),)]
)
async def test_without_good_credentials_nothing_is_told(channel: grpc.aio.Channel, metadata: Any) -> None:
    asked: list[tuple[str, dict[str, str]]] = [
        ("ModelInfer", {}),
        ("ServerMetadata", {}),
        ("ModelReady", {"name": MODEL}),
        ("ModelMetadata", {"name": MODEL}),
        ("ModelConfig", {"name": "nobody"}),
        ("ModelStatistics", {}),
    ]
    for name, fields in asked:
        assert await call(channel, name, metadata, **fields) == (CODES.UNAUTHENTICATED, "unauthenticated")


async def test_health_is_open(channel: grpc.aio.Channel) -> None:
    for name in ("ServerLive", "ServerReady"):
        assert await call(channel, name, ()) == (CODES.OK, "")
    health = health_pb2_grpc.HealthStub(channel)
    assert (
        await health.Check(health_pb2.HealthCheckRequest())
    ).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_model_is_forbidden_whether_it_is_there_or_not(channel: grpc.aio.Channel) -> None:
    refused = (CODES.PERMISSION_DENIED, "forbidden")
    for model in (MODEL, "nobody"):
        assert await call(channel, "ModelInfer", shown("bob"), model_name=model) == refused
        for name in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
            assert await call(channel, name, shown("bob"), name=model) == refused
    assert await call(channel, "ModelMetadata", shown("bob"), name=OTHER) == (CODES.OK, "")


async def test_statistics_are_of_the_models_a_key_may_use(guarded: Fleet) -> None:
    assert guarded.gateway.grpc is not None
    async with triton.InferenceServerClient(f"127.0.0.1:{guarded.gateway.grpc.port}") as client:
        for who, models in (("alice", {MODEL, OTHER}), ("bob", {OTHER})):
            told = await client.get_inference_statistics(headers=dict(shown(who)))
            assert {stats.name for stats in told.model_stats} == models


async def test_permissions_are_apart(channel: grpc.aio.Channel) -> None:
    forbidden = (CODES.PERMISSION_DENIED, "forbidden")
    assert await call(channel, "ModelInfer", shown("operator")) == forbidden
    assert await call(channel, "ServerMetadata", shown("operator")) == forbidden
    assert await call(channel, "RepositoryIndex", shown("alice")) == forbidden
    assert await call(channel, "RepositoryModelUnload", shown("alice"), model_name=MODEL) == forbidden
    assert await call(channel, "RepositoryModelUnload", (), model_name=MODEL) == (
        CODES.UNAUTHENTICATED,
        "unauthenticated",
    )


async def test_a_rate_is_kept(channel: grpc.aio.Channel) -> None:
    assert await call(channel, "ModelInfer", shown("slow")) == (CODES.OK, "")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(METHODS["ModelInfer"].path)(request(), metadata=shown("slow"))
    assert refused.value.code() == CODES.RESOURCE_EXHAUSTED
    trailing = dict(refused.value.trailing_metadata() or ())
    assert trailing["x-qinfer-reason"] == "rate_limited"
    assert 900 <= int(trailing["retry-after"]) <= 1000


async def test_a_stream_without_credentials_is_not_opened(channel: grpc.aio.Channel) -> None:
    stream = channel.stream_stream(METHODS["ModelStreamInfer"].path)(metadata=shown("nobody"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(stream.read(), 20)  # nothing was written
    assert refused.value.code() == CODES.UNAUTHENTICATED


async def test_a_key_that_is_revoked_is_refused_within_a_stream(
    guarded: Fleet, channel: grpc.aio.Channel
) -> None:
    metadata = (*shown("alice"), ("triton_grpc_error", "true"))
    stream = channel.stream_stream(METHODS["ModelStreamInfer"].path)(metadata=metadata)
    await stream.write(request())
    assert await asyncio.wait_for(stream.read(), 20)
    access = guarded.front.access
    assert access is not None
    access.use_keys(())
    await stream.write(request())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(stream.read(), 20)
    assert refused.value.code() == CODES.UNAUTHENTICATED


async def test_the_worker_learns_tenant_and_priority(
    guarded: Fleet, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    dispatcher = guarded.gateway.grpc._inference._dispatcher  # type: ignore[union-attr]
    submit = dispatcher.submit

    def spy(call: Any, target: Any, message: Any, **more: Any) -> Any:
        seen.append((message.tenant, message.priority))
        return submit(call, target, message, **more)

    monkeypatch.setattr(dispatcher, "submit", spy)
    for priority in (0, 1, 4, 9):
        rpc = channel.unary_unary(METHODS["ModelInfer"].path)
        await rpc(request(priority=priority), metadata=shown("alice"))
    assert seen == [("wonderland", 0), ("wonderland", 4), ("wonderland", 4), ("wonderland", 9)]
    await eventually(lambda: guarded.in_flight == 0)
