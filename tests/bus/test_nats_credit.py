"""Credit on NATS is asked for again, whatever became of the connection since it was granted."""

from __future__ import annotations

import os
import signal

from qinfer.bus import QueueSpec, connect
from qinfer.embedded import EmbeddedServer
from tests.helpers.waiting import Mailbox, eventually


async def test_credit_granted_while_the_broker_is_away_is_asked_for_when_it_is_back(namespace: str) -> None:
    """All pulls were used up, so there is none that the reconnect would have to ask for again."""
    async with EmbeddedServer() as server:
        worker = connect(server.url, namespace=namespace)
        gateway = connect(server.url, namespace=namespace)
        await worker.start()
        await gateway.start()
        inbox, back = Mailbox(), Mailbox()
        await worker.declare("m", QueueSpec(storage="file"))
        consumer = await worker.consume("m", "", inbox)
        consumer.grant(1)
        await gateway.enqueue("m", "", b"one")
        (delivery,) = await inbox.take()
        assert consumer.credit == 0
        worker.on_reconnect(lambda: back("worker"))
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        await eventually(lambda: not worker.connected, "the connection is lost")
        consumer.grant(1)
        await back.take()
        delivery.ack()
        await eventually(lambda: gateway.connected, "the gateway is back, too")
        await gateway.enqueue("m", "", b"two")
        (delivery,) = await inbox.take()
        assert delivery.payload == b"two"
        await worker.close()
        await gateway.close()
