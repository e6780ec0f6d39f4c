"""While the broker is away or slow nothing grows without bound: what is too much is refused at once."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qinfer.bus import QueueSpec, connect
from qinfer.embedded import EmbeddedServer
from qinfer.errors import BusUnavailable
from tests.helpers.proxy import Proxy
from tests.helpers.waiting import Mailbox, eventually

LIMIT = 256 * 1024
FRAME = bytes(LIMIT // 8)


async def test_what_waits_to_be_sent_is_bounded(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qinfer.bus.nats.connection._BUFFER_LIMIT", LIMIT)
    async with EmbeddedServer() as broker, Proxy(broker.port) as link:
        bus: Any = connect(broker.url.replace(f":{broker.port}", f":{link.port}"), namespace=namespace)
        await bus.start()
        await bus.declare("m", QueueSpec())
        inbox = Mailbox()
        (await bus.consume("m", "", inbox)).grant(1 << 20)
        link.stall()
        sent, error = await publish_until_refused(bus)
        assert "too slowly" in str(error)
        # Its buffer, and as much on its way into the socket.
        assert LIMIT < held(bus) <= 2 * LIMIT + len(FRAME) + 1000
        link.restore()
        await eventually(lambda: len(inbox.items) == sent, "what was taken is delivered")
        assert held(bus) == 0
        await bus.close()


async def publish_until_refused(bus: Any) -> tuple[int, BusUnavailable]:
    """How many frames were taken, and why no more. What the kernel and the link hold is theirs."""
    for sent in range(10_000):
        try:
            bus.publish("m", "", FRAME, Mailbox())
        except BusUnavailable as error:
            return sent, error
        await asyncio.sleep(0)  # lets go what will go
    raise AssertionError("more and more is taken")


def held(bus: Any) -> int:
    """Bytes that wait in this process."""
    return int(bus._connection.client.pending_data_size) + int(bus._connection._link.unsent)


async def test_what_waits_to_be_confirmed_is_bounded(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qinfer.bus.nats.confirmations.MAX_UNCONFIRMED", 100)
    async with EmbeddedServer() as broker:
        bus: Any = connect(broker.url, namespace=namespace)
        await bus.start()
        await bus.declare("m", QueueSpec())
        assert broker.pid
        os.kill(broker.pid, signal.SIGSTOP)
        refused = Mailbox()
        for _ in range(100):
            bus.publish("m", "", b"frame", refused)
        with pytest.raises(BusUnavailable, match="does not confirm"):
            bus.publish("m", "", b"frame", refused)
        os.kill(broker.pid, signal.SIGCONT)
        await eventually(lambda: len(bus._confirmations) == 0, "all are confirmed")
        bus.publish("m", "", b"frame", refused)
        assert not refused.items
        await bus.close()


async def test_nothing_is_kept_for_a_broker_that_is_away(namespace: str) -> None:
    """Not the frames, nor the sockets of attempts to reach one that listens and says nothing."""
    async with EmbeddedServer() as broker:
        bus: Any = connect(broker.url, namespace=namespace)
        await bus.start()
        await bus.declare("m", QueueSpec())
        client = bus._connection.client
        client.options["connect_timeout"] = client.options["reconnect_time_wait"] = 0.05
        failures = Mailbox()
        client._error_cb = count(failures)
        assert broker.pid
        os.kill(broker.pid, signal.SIGSTOP)
        await eventually(lambda: not bus.connected, "the connection is given up")
        before = sockets()
        await failures.take(20)
        for _ in range(1000):
            with pytest.raises(BusUnavailable):
                bus.publish("m", "", FRAME, Mailbox())
        assert held(bus) == 0
        assert len(bus._confirmations) == 0
        assert sockets() <= before + 1
        os.kill(broker.pid, signal.SIGCONT)
        await eventually(lambda: bus.connected, "the connection is back")
        await bus.close()


def count(failures: Mailbox) -> Any:
    async def failed(error: Exception) -> None:
        failures(error)

    return failed


def sockets() -> int:
    """Open sockets of this process."""
    number = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one by which the folder was read
            number += str(link.readlink()).startswith("socket:")
    return number
