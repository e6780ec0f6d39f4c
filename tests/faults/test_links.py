"""The way between a role and its broker is cut, stalls, or is slow."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from qinfer.bus import QueueSpec, connect
from qinfer.embedded import EmbeddedServer
from tests.faults.load import MODEL, Load, began, gated, number
from tests.helpers import http
from tests.helpers.proxy import Proxy
from tests.helpers.served_models import GATED
from tests.helpers.system import fleet
from tests.helpers.waiting import PATIENCE, Mailbox, eventually


@pytest_asyncio.fixture
async def broker() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer() as server:
        yield server


def through(broker: EmbeddedServer, link: Proxy) -> str:
    """The broker's URL by way of the link."""
    return broker.url.replace(f":{broker.port}", f":{link.port}")


def spoil(link: Proxy, how: str) -> None:
    getattr(link, how)()


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_a_worker_that_is_cut_off_costs_its_callers_only_time(
    broker: EmbeddedServer, namespace: str, served_repository: Path, tmp_path: Path, how: str
) -> None:
    """For longer than the ack wait: the batch runs twice, and the caller gets one answer."""
    gate = tmp_path / "gate"
    async with (
        Proxy(broker.port) as link,
        fleet(broker.url, namespace, served_repository, request_timeout=10 * PATIENCE) as running,
    ):
        cut_off = await running.add_worker(MODEL, GATED, nats=through(broker, link), ack_wait=1.0)
        bus: Any = cut_off._bus
        async with http.connect(running.port) as connection:
            connection.send(gated(gate))
            await eventually(lambda: len(began(gate)) == 1, "the batch is in work")
            await running.add_worker(MODEL, GATED, ack_wait=1.0)
            spoil(link, how)
            await eventually(lambda: len(began(gate)) == 2, "the other worker has begun it anew")
            await eventually(lambda: not bus.connected, "the worker knows that it is cut off")
            link.restore()
            await eventually(lambda: bus.connected, "the worker is back")
            await bus._connection.settle()  # before that it would send no answer
            gate.touch()
            assert (await connection.answer()).outputs() == {"y": [str(os.getpid())]}
            await eventually(
                lambda: running.dispatcher.dropped == 1, "the second answer came, and was dropped"
            )
        async with Load(running.port) as load:
            await load.more()
        assert not load.refusals
        assert running.in_flight == 0


async def test_a_gateway_whose_packets_vanish_is_back_with_an_answer_for_everybody(
    broker: EmbeddedServer, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with (
        Proxy(broker.port) as link,
        fleet(through(broker, link), namespace, served_repository, request_timeout=10 * PATIENCE) as running,
    ):
        await running.add_worker(MODEL, GATED, nats=broker.url, ack_wait=1.0)
        async with http.connect(running.port) as waiting, http.connect(running.port) as new:
            waiting.send(gated(gate))
            await eventually(lambda: began(gate), "the batch is in work")
            link.stall()
            gate.touch()  # the answer is sent, and reaches nobody
            await eventually(lambda: not running.bus.connected, "the gateway knows that it is cut off")
            refused = await new.ask(number(1))
            assert (refused.status, refused.reason) == (503, "bus_unavailable")
            link.restore()
            assert (await waiting.answer()).outputs() == {"y": [str(os.getpid())]}
            assert (await new.ask(number(2))).outputs() == {"y": [2]}
        assert running.in_flight == 0


async def test_a_slow_link_costs_time(
    broker: EmbeddedServer, namespace: str, served_repository: Path
) -> None:
    async with (
        Proxy(broker.port) as link,
        fleet(broker.url, namespace, served_repository, request_timeout=10 * PATIENCE) as running,
    ):
        worker = await running.add_worker(MODEL, nats=through(broker, link), ack_wait=1.0)
        link.slow(delay=0.05, bytes_per_second=256 * 1024)
        async with Load(running.port) as load:
            await load.more(10)
        assert not load.refusals
        assert running.dispatcher.dropped == 0
        assert worker._bus.connected


async def test_a_link_on_which_a_large_message_comes_slowly_is_not_given_up(
    broker: EmbeddedServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pong waits behind the message for longer than the connection would put up with silence."""
    monkeypatch.setattr("qinfer.bus.nats.connection._SILENT_LOOKS", 2)
    frame = bytes(3 << 20)
    async with Proxy(broker.port) as link:
        gateway = connect(broker.url, namespace=namespace)
        worker = connect(through(broker, link), namespace=namespace)
        await gateway.start()
        await worker.start()
        await worker.declare("m", QueueSpec(ack_wait=30.0))
        inbox, lost = Mailbox(), Mailbox()
        worker.on_disconnect(lambda: lost("lost"))
        (await worker.consume("m", "", inbox)).grant(1)
        link.slow(bytes_per_second=1 << 20)
        await gateway.enqueue("m", "", frame)
        (delivery,) = await inbox.take()
        assert delivery.payload == frame
        assert not lost.items
        link.restore()
        delivery.ack()
        await worker.close()
        await gateway.close()
