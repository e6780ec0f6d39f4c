"""Requests with an idempotency key run once, whatever becomes of gateways, workers and callers."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from qinfer.cli.serve.ports import free_port
from qinfer_gateway.options import GatewayOptions
from qinfer_gateway.server import Gateway
from tests.e2e.test_faults import began, gated
from tests.helpers import http
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.proxy import Proxy
from tests.helpers.served_models import GATED, IDENTITY, PICKY, RAISES
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, eventually

NUMBERS = IDENTITY["INT64"]
LARGE = IDENTITY["UINT8"]

KILLS_ITSELF = """
import os, signal
from qinfer.cli.app import main
from qinfer_workers.replies import Replies

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

{point} = die
main()
"""
"""A worker that dies at a point of its own code, as `python -c`."""


def keyed(request: bytes, key: str) -> bytes:
    """The request with an Idempotency-Key."""
    head, body = request.split(b"\r\n\r\n", 1)
    return b"%s\r\nidempotency-key: %s\r\n\r\n%s" % (head, key.encode(), body)


def gate_asked(gate: Path, key: str) -> bytes:
    return keyed(gated(gate), key)


async def ask(port: int, request: bytes) -> Answer:
    async with http.connect(port) as connection:
        return await connection.ask(request)


async def queue_has(running: Fleet, messages: int) -> None:
    """Wait until the broker has so many messages for the gated model, those at workers included."""
    async with asyncio.timeout(PATIENCE):
        while await running.queued(GATED) != messages:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway_process(running: Fleet) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A gateway in a process of its own that is ready, and its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "qinfer", "gateway", f"--http-port={port}", "--grpc-port=-1"),
        f"--namespace={running.namespace}",
        env={**os.environ, "QINFER_NATS": running.nats},
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(60):
            while not await _is_ready(port):
                assert process.returncode is None
                await asyncio.sleep(0.02)
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _is_ready(port: int) -> bool:
    try:
        return (await ask(port, http.get("/v2/health/ready"))).status == 200
    except (OSError, http.Closed):
        return False


@asynccontextmanager
async def second_gateway(running: Fleet, **options: object) -> AsyncIterator[int]:
    """Another gateway of the fleet, in this process; its port."""
    told = {"http_port": 0, "grpc_port": -1, **options}
    gateway = Gateway(GatewayOptions(nats=running.nats, namespace=running.namespace, **told))  # type: ignore[arg-type]
    try:
        await gateway.start()
        assert gateway.http is not None
        yield gateway.http.port
    finally:
        await gateway.stop()


async def worker_dying_at(point: str, running: Fleet, model: str) -> asyncio.subprocess.Process:
    """A worker process that kills itself where `point` of its code is called."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLS_ITSELF.format(point=point), "worker", str(running.repository)),
        *(f"--model={model}", "--ack-wait=1", "--storage=memory", f"--namespace={running.namespace}"),
        env={**os.environ, "QINFER_NATS": running.nats},
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    await eventually(lambda: running.front.catalog.is_ready(model) or process.returncode is not None)
    assert process.returncode is None
    return process


@pytest.mark.parametrize("answered_first", [False, True], ids=["still running", "answered to nobody"])
async def test_a_gateway_that_is_killed_costs_no_second_execution(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path, answered_first: bool
) -> None:
    gate = tmp_path / "gate"
    async with fleet(nats_url, namespace, served_repository) as running:
        worker = await running.add_worker_process(GATED)
        async with gateway_process(running) as (gateway, port), http.connect(port) as connection:
            connection.send(gate_asked(gate, "once"))
            await eventually(lambda: began(gate), "it runs")
            gateway.kill()
            assert await connection.ended() == b""
        if answered_first:
            gate.touch()
            await queue_has(running, 0)
        retry = asyncio.create_task(ask(running.port, gate_asked(gate, "once")))
        await eventually(lambda: running.in_flight or retry.done(), "it is asked again")
        gate.touch()
        assert (await retry).outputs() == {"y": [str(worker.pid)]}
        assert (await ask(running.port, gate_asked(gate, "once"))).outputs() == {"y": [str(worker.pid)]}
        assert began(gate) == [worker.pid]


async def test_duplicates_at_two_gateways_share_one_execution(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with fleet(nats_url, namespace, served_repository) as running, second_gateway(running) as other:
        await running.add_worker(GATED)
        await running.add_worker(GATED)
        ports = [running.port, other, running.port, other]
        asked = [asyncio.create_task(ask(port, gate_asked(gate, "both"))) for port in ports]
        await eventually(lambda: began(gate), "it runs")
        gate.touch()
        answers = [await task for task in asked]
        assert [answer.outputs() for answer in answers] == [{"y": [str(os.getpid())]}] * 4
        assert len(began(gate)) == 1
        assert (await ask(other, gate_asked(gate, "other"))).status == 200
        assert len(began(gate)) == 2, "another key is another request"


async def test_a_key_that_comes_with_another_request_is_422(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    def number(value: int) -> bytes:
        return infer(NUMBERS, {"inputs": [tensor([value], "INT64", [1, 1])]})

    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(NUMBERS, GATED)
        async with http.connect(running.port) as connection:
            assert (await connection.ask(keyed(number(1), "k"))).outputs() == {"y": [1]}
            answer = await connection.ask(keyed(number(2), "k"))
            assert (answer.status, answer.reason) == (422, "key_reused")
            assert "another request" in answer.error
            assert (await connection.ask(keyed(number(1), "k"))).outputs() == {"y": [1]}
            assert (await connection.ask(keyed(gated(""), "k"))).status == 200, "of another model"


async def test_a_key_is_taken_while_its_request_still_runs(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate, other = tmp_path / "gate", tmp_path / "other"
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(GATED)
        first = asyncio.create_task(ask(running.port, gate_asked(gate, "k")))
        await eventually(lambda: began(gate), "it runs")
        second = asyncio.create_task(ask(running.port, gate_asked(other, "k")))
        await eventually(lambda: running.in_flight == 2, "both are in flight")
        gate.touch()
        assert (await first).status == 200
        answer = await second
        assert (answer.status, answer.reason) == (422, "key_reused")
        assert not began(other)


@pytest.mark.parametrize(
    "key", ["", "x" * 256, "umläut", "tab\there"], ids=["empty", "long", "latin-1", "tab"]
)
async def test_what_can_be_no_key_is_400(
    nats_url: str, namespace: str, served_repository: Path, key: str
) -> None:
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(NUMBERS)
        request = infer(NUMBERS, {"inputs": [tensor([1], "INT64", [1, 1])]})
        answer = await ask(
            running.port, request.replace(b"\r\n", b"\r\nidempotency-key: %s\r\n" % key.encode(), 1)
        )
        assert (answer.status, answer.reason) == (400, "invalid_request")
        assert "Idempotency-Key" in answer.error


@pytest.mark.parametrize("when", ["while it still waits", "after it was dropped"])
async def test_a_request_whose_time_was_over_in_the_queue_can_be_sent_again(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path, when: str
) -> None:
    blocker, gate = tmp_path / "blocker", tmp_path / "gate"
    gate.touch()
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(GATED)
        blocking = asyncio.create_task(ask(running.port, gated(blocker)))
        await eventually(lambda: began(blocker), "the model is busy")
        hasty = gate_asked(gate, "again").replace(b"\r\n", b"\r\nx-qinfer-timeout-ms: 100\r\n", 1)
        answer = await ask(running.port, hasty)
        assert (answer.status, answer.reason) == (504, "deadline_exceeded")
        if when == "after it was dropped":
            blocker.touch()
            assert (await blocking).status == 200
            await eventually(lambda: running.in_flight == 0)
        retry = asyncio.create_task(ask(running.port, gate_asked(gate, "again")))
        await eventually(lambda: running.in_flight or retry.done(), "it is asked again")
        blocker.touch()
        assert (await retry).status == 200
        assert (await ask(running.port, gate_asked(gate, "again"))).status == 200
        assert len(began(gate)) == 1
        await blocking


async def test_a_worker_that_dies_between_storing_and_acking_costs_no_second_execution(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    async with fleet(nats_url, namespace, served_repository) as running:
        first = await worker_dying_at("Replies.tell", running, GATED)
        try:
            asked = asyncio.create_task(ask(running.port, gate_asked(gate, "once")))
            async with asyncio.timeout(20):
                await first.wait()
        finally:
            if first.returncode is None:
                first.kill()
        await running.add_worker_process(GATED, **{"ack-wait": "1"})
        assert (await asked).outputs() == {"y": [str(first.pid)]}, "the first one's answer"
        assert began(gate) == [first.pid]


async def test_it_is_run_although_its_caller_hangs_up(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    blocker, gate = tmp_path / "blocker", tmp_path / "gate"
    gate.touch()
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(GATED)
        blocking = asyncio.create_task(ask(running.port, gated(blocker)))
        await eventually(lambda: began(blocker), "the model is busy")
        async with http.connect(running.port) as connection:
            connection.send(gate_asked(gate, "on"))
            await queue_has(running, 2)
        await eventually(lambda: running.in_flight == 1, "its caller has gone")
        blocker.touch()
        assert (await blocking).status == 200
        await eventually(lambda: began(gate), "it is run")
        assert (await ask(running.port, gate_asked(gate, "on"))).status == 200
        assert len(began(gate)) == 1


async def test_the_identifier_of_a_request_may_be_its_key(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    request = infer(GATED, {"id": "42", "inputs": [tensor([str(gate)], "BYTES", [1, 1])]})
    async with (
        fleet(nats_url, namespace, served_repository) as running,
        second_gateway(running, idempotent_request_ids=True) as keyed_by_id,
    ):
        await running.add_worker(GATED)
        for _ in range(2):
            assert (await ask(running.port, request)).status == 200
        assert len(began(gate)) == 2, "not unless told so"
        for _ in range(2):
            answer = await ask(keyed_by_id, request)
            assert (answer.status, answer.json()["id"]) == (200, "42")
        assert len(began(gate)) == 3
        for _ in range(2):
            assert (await ask(keyed_by_id, gated(gate))).status == 200, "one without id has no key"
        assert len(began(gate)) == 5


async def test_errors_of_the_model_are_kept_too(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    request = keyed(infer(PICKY, {"inputs": [tensor([RAISES], "FP32", [1, 1])]}), "bad")
    async with fleet(nats_url, namespace, served_repository) as running:
        worker = await running.add_worker(PICKY)
        answers = [await ask(running.port, request) for _ in range(2)]
        assert [(answer.status, answer.reason) for answer in answers] == [(500, "model_failed")] * 2
        (stats,) = worker.stats()
        assert sum(stats.failed.values()) == 1


async def test_an_answer_that_was_sent_while_the_gateway_was_cut_off_is_found(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    host, port = nats_url.rsplit(":", 1)
    async with fleet(nats_url, namespace, served_repository) as running, Proxy(int(port)) as link:
        await running.add_worker(GATED)
        running.nats = f"{host}:{link.port}"
        async with second_gateway(running) as far:
            running.nats = nats_url
            asked = asyncio.create_task(ask(far, gate_asked(gate, "k")))
            await eventually(lambda: began(gate), "it runs")
            link.cut()
            gate.touch()
            await queue_has(running, 0)
            link.restore()
            assert (await asked).status == 200
        assert len(began(gate)) == 1


async def test_a_large_answer_is_kept_as_well(nats_url: str, namespace: str, served_repository: Path) -> None:
    rng = np.random.default_rng(7)
    data = rng.integers(0, 255, 12 << 20, np.uint8).tobytes()
    head = (
        b'{"inputs":[{"name":"x","datatype":"UINT8","shape":[1,%d],"parameters":{"binary_data_size":%d}}],'
        b'"parameters":{"binary_data_output":true}}' % (len(data), len(data))
    )
    request = keyed(infer(LARGE, head + data, f"inference-header-content-length: {len(head)}"), "large")
    async with fleet(nats_url, namespace, served_repository) as running, second_gateway(running) as other:
        worker = await running.add_worker(LARGE)
        for port in (running.port, other, running.port):
            answer = await ask(port, request)
            assert answer.status == 200, answer.error
            assert answer.body[int(answer.headers["inference-header-content-length"]) :] == data
        assert worker.stats()[0].executions == 1
