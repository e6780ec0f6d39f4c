"""The NATS connection: bounded, never waiting publishes on top of nats-py."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import nats
from nats.aio.client import Client

from qinfer.errors import BusUnavailable
from qinfer.telemetry.logs import redact

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds `start` waits for the broker."""

_PING_INTERVAL = 5  # two missed pings mean a dead peer: noticed within 15 s, not nats-py's 6 minutes
_RECONNECT_WAIT = 0.25
_SETTLE = 4 * _RECONNECT_WAIT  # after a restart of the broker everybody else is back within this time
_BUFFER_LIMIT = 32 * 1024 * 1024
# nats-py waits inside publish() once `pending_size` is passed. Ours must never wait, so its limit lies
# beyond the one enforced here.
_NATS_PENDING_SIZE = 4 * _BUFFER_LIMIT


class Connection:
    """One NATS connection that reconnects for ever."""

    def __init__(self, servers: Sequence[str], *, name: str) -> None:
        self._servers = list(servers)
        self._name = name
        self._disconnect_handlers: list[Callable[[], None]] = []
        self._reconnect_handlers: list[Callable[[], None]] = []
        self._started = False
        self._problem: Exception | None = None
        self._settled = asyncio.Event()
        self._settling: asyncio.TimerHandle | None = None
        self.client = Client()

    @property
    def settled(self) -> bool:
        """Whether the others have had the time to come back, too, since the connection was lost.

        What is published on an inbox before its owner is back is lost.
        """
        return self._settled.is_set()

    async def settle(self) -> None:
        """Wait until `settled`: `_SETTLE` seconds after the latest reconnect."""
        await self._settled.wait()

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    def on_disconnect(self, handler: Callable[[], None]) -> None:
        self._disconnect_handlers.append(handler)

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        self._reconnect_handlers.append(handler)

    async def start(self) -> None:
        """Connect, trying again for up to `CONNECT_TIMEOUT` seconds.

        Raises:
            BusUnavailable: no server answered in that time.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CONNECT_TIMEOUT
        while True:
            try:
                await self._connect()
                self._started = True
                self._settled.set()
                return
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self.client = Client()
                if loop.time() > give_up:
                    reason = self._problem or error
                    where = ", ".join(redact(server) for server in self._servers)
                    raise BusUnavailable(
                        f"no NATS server answers at {where}: {str(reason) or repr(reason)}", retry_after=1.0
                    ) from error
                await asyncio.sleep(_RECONNECT_WAIT)

    async def _connect(self) -> None:
        await self.client.connect(
            servers=self._servers,
            name=self._name,
            connect_timeout=2,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            ping_interval=_PING_INTERVAL,
            max_outstanding_pings=2,
            # Spread by jitter: a fleet that lost its broker does not come back in one instant.
            reconnect_time_wait=_RECONNECT_WAIT * random.uniform(0.5, 1.5),  # type: ignore[arg-type]
            pending_size=_NATS_PENDING_SIZE,
            flusher_queue_size=4096,
            skip_subject_validation=True,
            error_cb=self._error,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
        )
        # Only the first connection is given up; a lost one is sought for ever.
        self.client.options["allow_reconnect"] = True
        self.client.options["max_reconnect_attempts"] = -1

    async def close(self) -> None:
        """Flush what is buffered, then disconnect. Idempotent."""
        if not self._started or self.client.is_closed:
            return
        if self.client.is_connected:
            try:
                await self.client.flush(timeout=2)
            except (nats.errors.Error, OSError, TimeoutError) as error:
                logger.warning("the last messages may not have reached the broker: %r", error)
        try:
            await self.client.close()
        except (OSError, RuntimeError) as error:  # uvloop: nothing can be written to what is closed
            logger.warning("what was left to send did not reach the broker: %s", error)

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Hand a message to the connection without waiting.

        Raises:
            BusUnavailable: not connected, or too much waits to be sent already.
        """
        client = self.client
        if not client.is_connected:
            raise BusUnavailable("the connection to the broker is down", retry_after=1.0)
        if client.pending_data_size > _BUFFER_LIMIT:
            raise BusUnavailable("the broker takes messages too slowly", retry_after=1.0)
        _complete(client.publish(subject, payload, reply))

    async def _error(self, error: Exception) -> None:
        if self._started:
            logger.warning("NATS: %r", error)
        else:  # told once, when `start` gives up
            self._problem = error

    async def _disconnected(self) -> None:
        self._settled.clear()
        if self._settling is not None:
            self._settling.cancel()
        if not self.client.is_closed:
            logger.warning("lost the connection to the broker; reconnecting")
            for handler in self._disconnect_handlers:
                handler()

    async def _reconnected(self) -> None:
        self._settling = asyncio.get_running_loop().call_later(_SETTLE, self._settled.set)
        logger.info("connected to the broker again")
        for handler in self._reconnect_handlers:
            handler()


def _complete(step: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that does not wait, from code that cannot wait.

    nats-py's publish only suspends when its own buffer limit is passed, which `Connection.publish` rules out.
    """
    try:
        step.send(None)
    except StopIteration:
        return
    step.close()
    raise BusUnavailable("the broker takes messages too slowly", retry_after=1.0)
