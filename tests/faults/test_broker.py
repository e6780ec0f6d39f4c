"""The broker is restarted, stalls, or loses what it had. (`tests/e2e/test_broker.py` kills it.)"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from qinfer.bus import QueueSpec, connect
from qinfer.embedded import EmbeddedServer
from qinfer.registry import Directory
from tests.faults.load import MODEL, Load, began, gated, number
from tests.helpers import http
from tests.helpers.served_models import GATED
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, Mailbox, eventually


def send(broker: EmbeddedServer, number_of_signal: signal.Signals) -> None:
    assert broker.pid
    os.kill(broker.pid, number_of_signal)


@contextmanager
def stopped(broker: EmbeddedServer) -> Iterator[None]:
    """The broker's process is there, its port is open, and nothing is answered."""
    send(broker, signal.SIGSTOP)
    try:
        yield
    finally:
        send(broker, signal.SIGCONT)


async def readiness(running: Fleet, path: str = "/v2/health/ready") -> http.Answer:
    async with http.connect(running.port) as connection:
        return await connection.ask(http.get(path))


async def restarted(broker: EmbeddedServer, number_of_signal: signal.Signals) -> None:
    restarts = broker.restarts
    send(broker, number_of_signal)
    await eventually(lambda: broker.restarts > restarts, "the broker is back")


@pytest.mark.parametrize("number_of_signal", [signal.SIGTERM, signal.SIGKILL])
async def test_what_the_broker_accepted_is_there_after_a_restart(
    namespace: str, number_of_signal: signal.Signals
) -> None:
    frames = [b"%d" % index for index in range(200)]
    async with EmbeddedServer() as broker:
        bus = connect(broker.url, namespace=namespace)
        await bus.start()
        await bus.declare("m", QueueSpec(storage="file"))
        await asyncio.gather(*(bus.enqueue("m", "", frame) for frame in frames))
        await restarted(broker, number_of_signal)
        await eventually(lambda: bus.connected, "the connection is back")
        inbox = Mailbox()
        (await bus.consume("m", "", inbox)).grant(2 * len(frames))
        delivered = await inbox.take(len(frames))
        assert sorted(delivery.payload for delivery in delivered) == sorted(frames)
        await bus.close()


async def test_a_broker_that_is_told_to_stop_costs_time_or_a_503(
    namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with (
        EmbeddedServer() as broker,
        fleet(broker.url, namespace, served_repository, request_timeout=10 * PATIENCE) as running,
    ):
        await running.add_worker(MODEL, GATED, storage="file", ack_wait=1.0)
        async with http.connect(running.port) as connection, Load(running.port) as load:
            connection.send(gated(gate))
            await eventually(lambda: began(gate), "a batch is in work")
            await load.more()
            await restarted(broker, signal.SIGTERM)
            await load.more()
            gate.touch()
            assert (await connection.answer()).outputs() == {"y": [str(os.getpid())]}
        assert running.in_flight == 0


async def test_a_broker_that_stalls_for_a_second_costs_a_second(
    namespace: str, served_repository: Path
) -> None:
    async with (
        EmbeddedServer() as broker,
        fleet(broker.url, namespace, served_repository, request_timeout=10 * PATIENCE) as running,
    ):
        await running.add_worker(MODEL, storage="file")
        async with Load(running.port) as load:
            await load.more()
            with stopped(broker):
                await asyncio.sleep(1)  # the fault itself
            await load.more()
        assert not load.refusals
        assert running.bus._connection.client.stats["reconnects"] == 0


async def test_a_broker_that_stalls_for_good_is_told_as_what_is_wrong(
    namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with (
        EmbeddedServer() as broker,
        fleet(
            broker.url,
            namespace,
            served_repository,
            request_timeout=10 * PATIENCE,
            broker_patience=0.5,
            grpc_port=0,
        ) as running,
    ):
        await running.add_worker(MODEL, GATED, storage="file", ack_wait=1.0)
        assert (await readiness(running)).json() == {"ready": True}
        async with http.connect(running.port) as waiting, http.connect(running.port) as new:
            waiting.send(gated(gate))
            await eventually(lambda: began(gate), "a batch is in work")
            with stopped(broker):
                # Long before its deadline, which lies beyond this test's patience.
                refused = await waiting.answer()
                assert (refused.status, refused.reason) == (503, "bus_unavailable")
                assert int(refused.headers["retry-after"]) >= 1
                refused = await new.ask(number(1))
                assert (refused.status, refused.reason) == (503, "bus_unavailable")
                for path in ("/v2/health/ready", f"/v2/models/{MODEL}/ready"):
                    answer = await readiness(running, path)
                    assert (answer.status, answer.reason) == (400, "bus_unavailable")
                    assert answer.json()["ready"] is False
                    assert answer.json()["reason"] == "the broker cannot be reached"
                assert (await readiness(running, "/v2/health/live")).status == 200
                assert await health(running) == health_pb2.HealthCheckResponse.NOT_SERVING
            await eventually(lambda: running.bus.connected, "the connection is back")
            assert (await readiness(running)).json() == {"ready": True}
            assert await health(running) == health_pb2.HealthCheckResponse.SERVING
            gate.touch()
            assert (await new.ask(number(2))).outputs() == {"y": [2]}


async def test_a_broker_that_lost_everything_is_told_everything_again(
    namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    async with (
        EmbeddedServer(tmp_path / "store") as broker,
        fleet(broker.url, namespace, served_repository, request_timeout=10 * PATIENCE) as running,
    ):
        worker = await running.add_worker(MODEL, storage="file")
        async with Load(running.port) as load:
            await load.more()
            assert broker.directory
            send(broker, signal.SIGSTOP)  # else it would start again before its files are gone
            shutil.rmtree(broker.directory / "jetstream")
            await restarted(broker, signal.SIGKILL)
            await load.more()
        newcomer = connect(broker.url, namespace=namespace)
        await newcomer.start()
        directory = Directory(newcomer)
        await directory.start()
        await eventually(
            lambda: worker.id in {record.id for record in directory.workers}, "the worker is known"
        )
        await eventually(lambda: directory.serving(MODEL) and directory.record(MODEL), "so is its model")
        await directory.close()
        await newcomer.close()


async def health(running: Fleet) -> int:
    """What `grpc.health.v1.Health` says."""
    assert running.gateway.grpc is not None
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.gateway.grpc.port}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        return int(answer.status)
