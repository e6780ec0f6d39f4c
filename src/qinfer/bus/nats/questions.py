"""Questions to every process of the namespace: one asks, as many answer as listen."""

from __future__ import annotations

import asyncio
import logging

from nats.aio.msg import Msg

from qinfer.bus.nats.connection import Connection

logger = logging.getLogger(__name__)


async def ask(
    connection: Connection, subject: str, question: bytes, *, answers: int, timeout: float
) -> list[bytes]:
    """Publish a question and return when `answers` have come or after `timeout` seconds."""
    collected: list[bytes] = []
    done = asyncio.Event()

    async def receive(message: Msg) -> None:
        if message.headers:  # nobody listens
            done.set()
            return
        collected.append(message.data)
        if len(collected) >= answers:
            done.set()

    inbox = connection.client.new_inbox()
    subscription = await connection.client.subscribe(inbox, cb=receive)
    try:
        connection.publish(subject, question, inbox)
        await asyncio.wait_for(done.wait(), timeout)
    except TimeoutError:
        logger.info("%d of %d answers on %s came in time", len(collected), answers, subject)
    finally:
        await subscription.unsubscribe()
    return collected
