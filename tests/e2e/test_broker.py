"""The broker dies under load and comes back: nobody waits for an answer that cannot come."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from qinfer.embedded import EmbeddedServer
from tests.helpers import http
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.served_models import GATED, IDENTITY
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, eventually

MODEL = IDENTITY["INT64"]
CLIENTS = 16


class Caller:
    """Asks one request after the other, and again after a 503."""

    def __init__(self) -> None:
        self.answers = 0
        self.refusals: list[Answer] = []

    async def ask(self, running: Fleet, stop: asyncio.Event) -> None:
        async with http.connect(running.port) as connection:
            while not stop.is_set():
                value = self.answers
                answer = await connection.ask(infer(MODEL, {"inputs": [tensor([value], "INT64", [1, 1])]}))
                if answer.status == 200:
                    assert answer.outputs() == {"y": [value]}
                    self.answers += 1
                else:
                    assert (answer.status, answer.reason) == (503, "bus_unavailable"), answer
                    assert int(answer.headers["retry-after"]) >= 1
                    self.refusals.append(answer)


async def test_a_broker_that_is_killed_costs_time_or_a_503(
    namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with (
        EmbeddedServer() as broker,
        # Deadlines beyond the test's patience: an answer that was lost would be missed.
        fleet(broker.url, namespace, served_repository, request_timeout=10 * PATIENCE) as running,
    ):
        await running.add_worker(MODEL, GATED, storage="file", ack_wait=1.0)
        callers, stop = [Caller() for _ in range(CLIENTS)], asyncio.Event()

        async def all_go_on() -> None:
            goals = [(caller, caller.answers + 50) for caller in callers]
            await eventually(
                lambda: (
                    all(caller.answers >= goal for caller, goal in goals)
                    or any(task.done() for task in asking)
                ),
                "50 more answers for everybody",
            )

        asking = [asyncio.ensure_future(caller.ask(running, stop)) for caller in callers]
        async with http.connect(running.port) as connection:
            connection.send(infer(GATED, {"inputs": [tensor([str(gate)], "BYTES", [1, 1])]}))
            await eventually(Path(f"{gate}.began").exists, "a batch is in work")
            for restarts in range(3):
                await all_go_on()
                assert broker.pid
                os.kill(broker.pid, signal.SIGKILL)
                await eventually(lambda restarts=restarts: broker.restarts > restarts, "the broker is back")
            await all_go_on()
            gate.touch()
            assert (await connection.answer()).outputs() == {"y": [str(os.getpid())]}
        stop.set()
        await asyncio.wait_for(asyncio.gather(*asking), PATIENCE)
        assert running.in_flight == 0
