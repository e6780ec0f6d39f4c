"""What clients make of a broker, a worker or a connection that goes while they wait; over both ways."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qinfer.client import AsyncClient, Options, connect
from qinfer.embedded import EmbeddedServer
from qinfer.errors import QueueFull, Unavailable
from tests.client.contract import FP32, gated, overheard
from tests.faults.load import began
from tests.helpers.proxy import Proxy
from tests.helpers.served_models import GATED
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, eventually
from tests.streams.models import GENERATES, build

LONG = 3 * PATIENCE


@asynccontextmanager
async def clients(
    running: Fleet, *, retries: tuple[int, int] = (4, 4)
) -> AsyncIterator[tuple[AsyncClient, AsyncClient]]:
    """One over the broker, one over HTTP."""
    direct, through_gateway = (
        connect(running.nats, namespace=running.namespace, timeout=LONG, retries=retries[0]),
        connect(f"http://127.0.0.1:{running.port}", timeout=LONG, retries=retries[1]),
    )
    async with direct, through_gateway:
        yield direct, through_gateway


async def test_a_broker_that_is_killed_costs_only_time(
    namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gates = [tmp_path / "nats", tmp_path / "http"]
    once = Options(idempotency_key="over http it is not known whether it was run")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedServer())
        running = await stack.enter_async_context(
            fleet(broker.url, namespace, served_repository, request_timeout=LONG)
        )
        await running.add_worker(FP32, GATED, storage="file", ack_wait=1.0)
        both = await stack.enter_async_context(clients(running, retries=(0, 20)))
        waiting = [
            asyncio.create_task(client.infer(GATED, gated(gate)))
            for client, gate in zip(both, gates, strict=True)
        ]
        direct: Any = both[0]
        await eventually(lambda: direct._exchange._calls and running.in_flight == 1, "both are on their way")
        await eventually(lambda: began(gates[0]) or began(gates[1]), "a batch is in work")
        restarts = broker.restarts
        assert broker.pid
        os.kill(broker.pid, signal.SIGKILL)
        await eventually(lambda: not direct._bus.connected, "the client knows")
        during = [
            asyncio.create_task(client.infer(FP32, {"x": [[1]]}, options))
            for client, options in zip(both, (Options(), once), strict=True)
        ]
        await eventually(lambda: broker.restarts > restarts, "the broker is back")
        for gate in gates:
            gate.touch()
        for result in await asyncio.gather(*waiting):
            assert result["y"].tolist() == [[str(os.getpid()).encode()]]
        for result in await asyncio.gather(*during):
            assert result["y"].tolist() == [[1.0]]


async def test_a_worker_that_is_killed_costs_only_time(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gates = [tmp_path / "nats", tmp_path / "http"]
    async with fleet(nats_url, namespace, served_repository, request_timeout=LONG) as running:
        victim = await running.add_worker_process(GATED, **{"ack-wait": "1"})
        async with clients(running) as both:
            waiting = [
                asyncio.create_task(client.infer(GATED, gated(gate)))
                for client, gate in zip(both, gates, strict=True)
            ]
            await eventually(lambda: began(gates[0]) or began(gates[1]), "a batch is in work")
            await running.add_worker(GATED, ack_wait=1.0)
            victim.kill()
            for gate in gates:
                gate.touch()
            for result in await asyncio.gather(*waiting):
                assert result["y"].tolist() == [[str(os.getpid()).encode()]]


async def test_a_worker_that_is_killed_in_the_middle_of_a_stream(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    """Another one begins anew, and nothing comes twice."""
    gate, total = tmp_path / "gate", 200
    options = Options(parameters={"stop_at": 100, "gate": str(gate)})
    repository = build(tmp_path / "models")
    async with fleet(nats_url, namespace, repository, request_timeout=LONG) as running:
        victim = await running.add_worker_process(GENERATES, **{"ack-wait": "1"})
        async with clients(running) as both:
            found: tuple[list[int], list[int]] = ([], [])

            async def read(client: AsyncClient, into: list[int]) -> None:
                async for result in client.stream(GENERATES, {"n": [total]}, options):
                    into.append(int(result["i"][0]))  # noqa: PERF401 (others look at what is there so far)

            reading = [
                asyncio.create_task(read(client, into)) for client, into in zip(both, found, strict=True)
            ]
            await eventually(lambda: found[0] or found[1], "a stream is in work")
            await running.add_worker(GENERATES, ack_wait=1.0)
            victim.kill()
            gate.touch()
            await asyncio.gather(*reading)
        assert found == (list(range(total)), list(range(total)))


async def test_a_full_queue_is_tried_again(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(GATED, max_queue_messages=1)
        async with (
            clients(running, retries=(0, 0)) as impatient,
            clients(running, retries=(20, 20)) as patient,
        ):
            waiting = [asyncio.create_task(patient[0].infer(GATED, gated(gate)))]
            await eventually(lambda: began(gate), "a batch is in work")
            for client in impatient:
                with pytest.raises(QueueFull):
                    await client.infer(GATED, gated(gate))
            waiting += [asyncio.create_task(client.infer(GATED, gated(gate))) for client in patient]
            gate.touch()
            await asyncio.gather(*waiting)


async def test_what_a_cut_connection_may_have_swallowed_is_sent_again(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    port = int(nats_url.rpartition(":")[2])
    async with (
        fleet(nats_url, namespace, served_repository) as running,
        Proxy(port) as link,
    ):
        await running.add_worker(GATED, FP32)
        far = nats_url.replace(f":{port}", f":{link.port}")
        async with (
            connect(far, namespace=namespace, timeout=LONG, retries=0) as client,
            overheard(running, GATED) as heard,
        ):
            asked = asyncio.create_task(client.infer(GATED, gated(gate)))
            await eventually(lambda: began(gate), "the batch is in work")
            bus: Any = client._bus  # type: ignore[attr-defined]
            link.cut()
            await eventually(lambda: not bus.connected, "the client knows that it is cut off")
            gate.touch()  # the answer reaches nobody
            client._exchange._patience = 0.1  # type: ignore[attr-defined]
            with pytest.raises(Unavailable, match="away for"):
                await client.infer(FP32, {"x": [[1]]}, Options(timeout=LONG))
            link.restore()
            assert (await asked)["y"].tolist() == [[str(os.getpid()).encode()]]
            assert [request.attempt for request in heard] == [0, 1]


async def test_nobody_answers() -> None:
    for url in ("http://127.0.0.1:1", "https://127.0.0.1:1"):
        with pytest.raises(Unavailable, match="no server answers"):
            await connect(url).start()
