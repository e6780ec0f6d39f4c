"""A worker stops in mid-batch without ending: it is there, and does nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.load import MODEL, Load, began, gated
from tests.helpers import http
from tests.helpers.served_models import GATED
from tests.helpers.system import fleet
from tests.helpers.waiting import PATIENCE, eventually


async def test_a_worker_that_stands_still_costs_its_callers_only_time(
    nats_url: str,
    namespace: str,
    served_repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGSTOP, and SIGCONT when others have done its work."""
    monkeypatch.setattr("qinfer.registry.WORKER_LIFETIME", 3.0)  # as this gateway sees it
    gate = tmp_path / "gate"
    async with fleet(nats_url, namespace, served_repository, request_timeout=10 * PATIENCE) as running:
        first, second = [
            await running.add_worker_process(GATED, MODEL, **{"ack-wait": "1"}) for _ in range(2)
        ]
        processes = {process.pid: process for process in (first, second)}
        async with http.connect(running.port) as connection:
            connection.send(gated(gate))
            await eventually(lambda: began(gate), "a batch has begun")
            (victim,) = began(gate)
            (survivor,) = processes.keys() - {victim}
            processes[victim].send_signal(signal.SIGSTOP)
            try:
                await eventually(lambda: survivor in began(gate), "the other worker has begun it anew")
                gate.touch()
                assert (await connection.answer()).outputs() == {"y": [str(survivor)]}
                directory = running.front.catalog.directory
                await eventually(
                    lambda: [worker.pid for worker in directory.workers] == [survivor], "it counts as dead"
                )
                async with Load(running.port) as load:
                    await load.more()
                assert not load.refusals
                assert running.dispatcher.dropped == 0
            finally:
                processes[victim].send_signal(signal.SIGCONT)
            await eventually(lambda: running.dispatcher.dropped, "its answer came too late, and was dropped")
            await eventually(lambda: len(directory.workers) == 2, "it goes on")
            processes[survivor].kill()
            await processes[survivor].wait()
            async with Load(running.port) as load:
                await load.more()
            assert not load.refusals
        assert began(gate) == [victim, survivor]
        assert running.in_flight == 0


async def test_a_worker_that_is_told_to_stop_gives_back_what_it_cannot_finish(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    """SIGTERM in the middle of a batch that is longer than the drain: others have it at once."""
    gate = tmp_path / "gate"
    patient = {
        "ack-wait": "600"
    }  # seconds: the broker by itself gives nothing to another worker in this test
    async with fleet(nats_url, namespace, served_repository, request_timeout=10 * PATIENCE) as running:
        first = await running.add_worker_process(GATED, **patient, **{"drain-timeout": "0.5"})
        async with http.connect(running.port) as connection:
            connection.send(gated(gate))
            await eventually(lambda: began(gate) == [first.pid], "the batch has begun")
            second = await running.add_worker_process(GATED, **patient)
            first.send_signal(signal.SIGTERM)
            await eventually(
                lambda: began(gate) == [first.pid, second.pid], "another worker has begun it anew"
            )
            gate.touch()
            answer = await connection.answer()
            assert answer.outputs() in ({"y": [str(process.pid)]} for process in (first, second)), answer
        assert await first.wait() == 0
        assert running.in_flight == 0
