"""Processes that stop, die and come back under load: callers get their answers."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import http, served_models
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.served_models import GATED, IDENTITY, WHOLE
from tests.helpers.system import Fleet, fleet, serving
from tests.helpers.waiting import eventually

MODEL = IDENTITY["INT64"]
CLIENTS = 16


def number(value: int) -> bytes:
    return infer(MODEL, {"inputs": [tensor([value], "INT64", [1, 1])]})


def gated(path: Path | str) -> bytes:
    return infer(GATED, {"inputs": [tensor([str(path)], "BYTES", [1, 1])]})


def began(path: Path) -> list[int]:
    """Processes that have begun a batch which waits for this gate."""
    journal = Path(f"{path}.began")
    return [int(line) for line in journal.read_text().split()] if journal.exists() else []


async def status(running: Fleet, path: str) -> int:
    async with http.connect(running.port) as connection:
        return (await connection.ask(http.get(path))).status


class Load:
    """Clients that ask one request after the other until they are told to stop."""

    def __init__(self, running: Fleet) -> None:
        self._running = running
        self._stop = False
        self._task: asyncio.Future[Any] | None = None
        self.answered = 0
        self.wrong: list[Answer] = []

    async def __aenter__(self) -> Load:
        self._task = asyncio.ensure_future(asyncio.gather(*(self._client(seed) for seed in range(CLIENTS))))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        assert self._task is not None
        async with asyncio.timeout(60):
            await self._task

    async def more(self, count: int) -> None:
        """Wait for that many more answers."""
        goal = self.answered + count
        await eventually(lambda: self.answered >= goal or self.wrong, f"{count} more answers")

    async def _client(self, seed: int) -> None:
        async with http.connect(self._running.port) as connection:
            value = seed
            while not self._stop:
                value += CLIENTS
                answer = await connection.ask(number(value))
                if answer.status != 200 or answer.outputs() != {"y": [value]}:
                    self.wrong.append(answer)
                    return
                self.answered += 1


async def test_ready_exactly_while_every_loaded_model_has_a_worker(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository) as running:
        assert await status(running, "/v2/health/live") == 200
        assert await status(running, "/v2/health/ready") == 400, "nothing is there to be ready"
        both = await running.add_worker(MODEL, WHOLE)
        assert await status(running, "/v2/health/ready") == 200
        one = await running.add_worker(MODEL)
        await both.drain()
        await running.unknown(both.id)
        assert await status(running, "/v2/health/live") == 200
        assert await status(running, "/v2/health/ready") == 400, f"nobody serves {WHOLE}"
        assert await status(running, f"/v2/models/{MODEL}/ready") == 200
        assert await status(running, f"/v2/models/{WHOLE}/ready") == 400
        await running.add_worker(WHOLE)
        assert await status(running, "/v2/health/ready") == 200
        await one.drain()
        await running.unknown(one.id)
        assert await status(running, "/v2/health/ready") == 400


async def test_a_known_model_without_worker_is_503(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository) as running:
        worker = await running.add_worker(MODEL)
        async with http.connect(running.port) as connection:
            assert (await connection.ask(number(1))).outputs() == {"y": [1]}
            await worker.drain()
            await running.unknown(worker.id)
            answer = await connection.ask(number(2))
            assert (answer.status, answer.reason) == (503, "no_worker")
            assert MODEL in answer.error
            assert int(answer.headers["retry-after"]) >= 1
            metadata = await connection.ask(http.get(f"/v2/models/{MODEL}"))
            assert metadata.json()["versions"] == ["1"]
            await running.add_worker(MODEL)
            assert (await connection.ask(number(3))).outputs() == {"y": [3]}


async def test_workers_come_and_go_under_load(nats_url: str, namespace: str, served_repository: Path) -> None:
    """A frame that a stopping worker lost would come back after the ack wait: too late for its callers."""
    async with fleet(nats_url, namespace, served_repository, request_timeout=15.0) as running:
        worker = await running.add_worker(MODEL)
        async with Load(running) as load:
            for _ in range(4):
                await load.more(300)
                successor = await running.add_worker(MODEL)
                await load.more(300)
                await worker.drain()
                worker = successor
            await load.more(300)
        assert not load.wrong, load.wrong
        assert running.in_flight == 0


@pytest.mark.parametrize("number_of_signal", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_process_that_is_told_to_stop_finishes_its_work(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path, number_of_signal: signal.Signals
) -> None:
    async with fleet(nats_url, namespace, served_repository, request_timeout=15.0) as running:
        process = await running.add_worker_process(GATED, MODEL)
        gate = tmp_path / "gate"
        async with http.connect(running.port) as connection, Load(running) as load:
            connection.send(gated(gate))
            await eventually(lambda: began(gate), "the batch has begun")
            await load.more(200)
            await running.add_worker(MODEL)
            process.send_signal(number_of_signal)
            await eventually(lambda: not running.front.catalog.is_ready(GATED), "the worker is draining")
            await load.more(200)
            gate.touch()
            answer = await connection.answer()
            assert answer.outputs() == {"y": [str(process.pid)]}
            async with asyncio.timeout(30):
                assert await process.wait() == 0
            await load.more(200)
        assert not load.wrong, load.wrong


async def test_requests_of_a_worker_that_is_killed_go_to_another(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    """SIGKILL in mid-batch, under load: a normal answer, later, and nothing lost."""
    async with fleet(nats_url, namespace, served_repository, request_timeout=30.0) as running:
        first, second = [
            await running.add_worker_process(GATED, MODEL, **{"ack-wait": "1"}) for _ in range(2)
        ]
        processes = {process.pid: process for process in (first, second)}
        gate = tmp_path / "gate"
        async with http.connect(running.port) as connection, Load(running) as load:
            connection.send(gated(gate))
            await eventually(lambda: began(gate), "a batch has begun")
            (victim,) = began(gate)
            await load.more(200)
            processes[victim].kill()
            await processes[victim].wait()
            (survivor,) = processes.keys() - {victim}
            await eventually(lambda: survivor in began(gate), "the other worker has begun it anew")
            gate.touch()
            assert (await connection.answer()).outputs() == {"y": [str(survivor)]}
            await load.more(200)
        assert not load.wrong, load.wrong
        assert began(gate) == [victim, survivor]
        assert running.in_flight == 0
        await eventually(lambda: running.dispatcher.dropped == 0, "nobody answered twice")


async def test_a_gateway_that_stops_answers_what_it_holds(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(GATED)
        gate = tmp_path / "gate"
        async with http.connect(running.port) as busy, http.connect(running.port) as idle:
            assert (await idle.ask(http.get("/v2/health/ready"))).status == 200
            busy.send(gated(gate))
            await eventually(lambda: began(gate), "the batch has begun")
            stopping = asyncio.create_task(running.gateway.stop())
            assert await idle.ended() == b""
            with pytest.raises(ConnectionRefusedError):
                async with http.connect(running.port):
                    pass
            gate.touch()
            answer = await busy.answer()
            assert answer.status == 200
            assert answer.headers["connection"] == "close"
            async with asyncio.timeout(20):
                await stopping


async def test_serve_that_is_told_to_stop_under_load(served_repository: Path, tmp_path: Path) -> None:
    """What was accepted is answered; a client that asks between two requests finds its connection ended."""
    repository = served_models.copy(served_repository, tmp_path / "models", GATED, MODEL)
    gate = tmp_path / "gate"
    answered = 0

    async def client(port: int) -> None:
        nonlocal answered
        async with http.connect(port) as connection:
            for value in range(1_000_000):
                try:
                    answer = await connection.ask(number(value))
                except (http.Closed, ConnectionError):
                    return
                assert answer.outputs() == {"y": [value]}
                answered += 1

    with serving(repository, "--workers=2") as system:
        clients = asyncio.gather(*(client(system.http_port) for _ in range(CLIENTS)))
        async with http.connect(system.http_port) as connection:
            connection.send(gated(gate))
            await eventually(lambda: began(gate), "a batch has begun")
            await eventually(lambda: answered > 500, "the load runs")
            system.stop()
            async with asyncio.timeout(30):
                await clients
            gate.touch()
            assert (await connection.answer()).status == 200
            assert await connection.ended() == b""


async def test_more_than_a_gateway_may_hold_is_429(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository, max_in_flight=2) as running:
        await running.add_worker(GATED)
        gate = tmp_path / "gate"
        async with (
            http.connect(running.port) as one,
            http.connect(running.port) as two,
            http.connect(running.port) as three,
        ):
            one.send(gated(gate))
            two.send(gated(gate))
            await eventually(lambda: running.in_flight == 2, "two are held")
            answer = await three.ask(gated(""))
            assert (answer.status, answer.reason) == (429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
            gate.touch()
            assert [(await each.answer()).status for each in (one, two)] == [200, 200]
            assert (await three.ask(gated(""))).status == 200


async def test_a_full_queue_is_429(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    """The worker is busy and holds what it may; the queue behind it takes two messages."""
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(GATED, max_queue_messages=2)
        gate = tmp_path / "gate"
        answers: list[Answer] = []

        async def one() -> None:
            async with http.connect(running.port) as connection:
                answers.append(await connection.ask(gated(gate)))

        tasks = [asyncio.create_task(one())]
        await eventually(lambda: began(gate), "the model is busy")
        while not answers:
            # One at a time: requests of one tick would share a frame.
            tasks.append(asyncio.create_task(one()))
            assert len(tasks) < 200
            await eventually(lambda: running.in_flight + len(answers) == len(tasks), "it is queued")
        assert (answers[0].status, answers[0].reason) == (429, "queue_full")
        assert int(answers[0].headers["retry-after"]) >= 1
        gate.touch()
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert {answer.status for answer in answers[1:]} <= {200, 429}
        async with http.connect(running.port) as connection:
            assert (await connection.ask(gated(""))).status == 200


async def test_what_is_more_than_the_queue_takes_does_not_get_as_far_as_the_broker(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    """The gateway knows the queue's bytes from the worker: no broker says what is in flight at a gateway."""
    gate = tmp_path / "gate"
    long = f"{tmp_path}/{'./' * 1500}gate"  # three thousand bytes of the four
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(GATED, max_queue_bytes=4096)
        async with http.connect(running.port) as one, http.connect(running.port) as two:
            one.send(gated(long))
            await eventually(lambda: running.in_flight == 1, "it is held")
            refused = await two.ask(gated(long))
            assert (refused.status, refused.reason) == (429, "queue_full")
            assert "4096 bytes (queue.max_bytes); 3" in refused.error
            refused = await two.ask(gated(f"{long}{'/' * 2000}"))
            assert (refused.status, refused.reason) == (413, "payload_too_large")
            gate.touch()
            assert (await one.answer()).status == 200
            assert (await two.ask(gated(long))).status == 200
