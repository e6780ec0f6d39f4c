"""A gateway loses its link to the broker, and the broker and the workers go on without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.helpers import http
from tests.helpers.http import infer, tensor
from tests.helpers.proxy import Proxy
from tests.helpers.served_models import GATED, IDENTITY
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE, eventually

MODEL = IDENTITY["INT64"]


def gated(path: Path | str) -> dict[str, Any]:
    return {"inputs": [tensor([str(path)], "BYTES", [1, 1])]}


def number(value: int) -> dict[str, Any]:
    return {"inputs": [tensor([value], "INT64", [1, 1])]}


def begun(gate: Path) -> int:
    """How many batches have begun that wait for a gate."""
    journal = Path(f"{gate}.began")
    return len(journal.read_text().split()) if journal.exists() else 0


def open_gate(gate: Path) -> None:
    gate.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@asynccontextmanager
async def linked(
    nats_url: str, namespace: str, repository: Path, **options: Any
) -> AsyncIterator[tuple[Fleet, Proxy]]:
    """A gateway whose link to the broker can be cut; its worker has its own."""
    port = urlsplit(nats_url).port
    assert port
    async with Proxy(port) as link:
        through = nats_url.replace(f":{port}", f":{link.port}")
        async with fleet(through, namespace, repository, request_timeout=60.0, **options) as running:
            running.nats = nats_url
            await running.add_worker(GATED, MODEL)
            yield running, link


def resent(running: Fleet) -> int:
    return running.dispatcher._observer.stats.resent


def connected(running: Fleet) -> bool:
    return running.gateway._bus.connected


async def test_an_answer_that_was_sent_while_the_link_was_cut(
    nats_url: str, namespace: str, served_repository: Path, gate: Path
) -> None:
    async with (
        linked(nats_url, namespace, served_repository) as (running, link),
        http.connect(running.port) as connection,
    ):
        connection.send(infer(GATED, gated(gate)))
        await eventually(lambda: begun(gate) == 1, "the batch runs")
        link.cut()
        await eventually(lambda: not connected(running), "the gateway knows")
        open_gate(gate)
        async with asyncio.timeout(PATIENCE):
            while await running.queued(GATED):  # until the worker has answered, and acked
                pass
        link.restore()
        answer = await connection.answer()
        assert answer.status == 200, answer
        assert begun(gate) == 2, "run again: its first answer reached nobody"
        assert resent(running) == 1
        assert running.in_flight == 0
        assert (await connection.ask(infer(MODEL, number(7)))).outputs() == {"y": [7]}, "one answer, no more"


async def test_a_batch_that_outlasts_the_cut_is_not_run_again(
    nats_url: str, namespace: str, served_repository: Path, gate: Path
) -> None:
    async with (
        linked(nats_url, namespace, served_repository) as (running, link),
        http.connect(running.port) as connection,
    ):
        connection.send(infer(GATED, gated(gate)))
        await eventually(lambda: begun(gate) == 1, "the batch runs")
        link.cut()
        await eventually(lambda: not connected(running), "the gateway knows")
        link.restore()
        await eventually(lambda: connected(running), "the link is back")
        open_gate(gate)
        assert (await connection.answer()).status == 200
        assert (begun(gate), resent(running)) == (1, 0)


async def test_a_request_that_was_lost_on_its_way_is_sent_again(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    async with (
        linked(nats_url, namespace, served_repository) as (running, link),
        http.connect(running.port) as connection,
    ):
        assert (await connection.ask(infer(MODEL, number(1)))).outputs() == {"y": [1]}
        link.stall(down=False)  # what the gateway sends gets nowhere from now on
        connection.send(infer(MODEL, number(2)))
        await eventually(lambda: running.in_flight == 1, "it is sent")
        link.cut()
        await eventually(lambda: not connected(running), "the gateway knows")
        link.restore()
        assert (await connection.answer()).outputs() == {"y": [2]}
        assert resent(running) == 1


async def test_a_link_that_stays_cut_is_a_503_at_once_or_after_a_while(
    nats_url: str, namespace: str, served_repository: Path, gate: Path
) -> None:
    async with (
        linked(nats_url, namespace, served_repository, broker_patience=0.2) as (running, link),
        http.connect(running.port) as before,
        http.connect(running.port) as after,
    ):
        before.send(infer(GATED, gated(gate)))
        await eventually(lambda: begun(gate) == 1, "the batch runs")
        link.cut()
        for answer in (await before.answer(), await after.ask(infer(MODEL, number(1)))):
            assert (answer.status, answer.reason) == (503, "bus_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert running.in_flight == 0
        open_gate(gate)
        link.restore()


async def test_whoever_has_less_time_than_that_hears_of_it_before_the_deadline(
    nats_url: str, namespace: str, served_repository: Path, gate: Path
) -> None:
    async with (
        linked(nats_url, namespace, served_repository, broker_patience=60.0) as (running, link),
        http.connect(running.port) as connection,
    ):
        connection.send(infer(GATED, gated(gate), "x-qinfer-timeout-ms: 1500"))
        await eventually(lambda: begun(gate) == 1, "the batch runs")
        link.cut()
        answer = await connection.answer()
        assert (answer.status, answer.reason) == (503, "bus_unavailable"), "not 504: that would tell less"
        open_gate(gate)
        link.restore()
