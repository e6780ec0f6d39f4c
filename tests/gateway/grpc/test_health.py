"""`grpc.health.v1.Health`, asked with the stubs of grpcio-health-checking."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qinfer.proto import SERVICE
from tests.gateway.grpc.calls import CHANNEL
from tests.gateway.grpc.conftest import MakeFleet, address
from tests.helpers.served_models import VERSIONS
from tests.helpers.waiting import PATIENCE

Status = health_pb2.HealthCheckResponse


async def test_check_and_watch_follow_readiness(make_fleet: MakeFleet) -> None:
    async with make_fleet() as fleet, grpc.aio.insecure_channel(address(fleet), CHANNEL) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            request = health_pb2.HealthCheckRequest(service=service)
            return (await health.Check(request, timeout=PATIENCE)).status

        watches = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", SERVICE)]

        async def all_watches_say(expected: int) -> None:
            async with asyncio.timeout(PATIENCE):
                for watch in watches:
                    assert (await watch.read()).status == expected

        assert [await status(""), await status(SERVICE)] == [Status.NOT_SERVING] * 2
        await all_watches_say(Status.NOT_SERVING)
        worker = await fleet.add_worker(VERSIONS)
        assert [await status(""), await status(SERVICE)] == [Status.SERVING] * 2
        await all_watches_say(Status.SERVING)
        await worker.drain()
        await all_watches_say(Status.NOT_SERVING)
        assert [await status(""), await status(SERVICE)] == [Status.NOT_SERVING] * 2


async def test_watches_end_with_the_server(make_fleet: MakeFleet) -> None:
    async with make_fleet(VERSIONS) as fleet, grpc.aio.insecure_channel(address(fleet), CHANNEL) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == Status.SERVING
        async with asyncio.timeout(
            PATIENCE / 2
        ):  # a watch that held the server up would take all its patience
            await fleet.gateway.stop()
        assert (await watch.read()).status == Status.NOT_SERVING
        assert await watch.read() == grpc.aio.EOF


async def test_unknown_service(make_fleet: MakeFleet) -> None:
    async with make_fleet() as fleet, grpc.aio.insecure_channel(address(fleet), CHANNEL) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="nobody")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(request, timeout=PATIENCE)
        assert caught.value.code() == StatusCode.NOT_FOUND
        watch = health.Watch(request)
        assert (await watch.read()).status == Status.SERVICE_UNKNOWN
        watch.cancel()
