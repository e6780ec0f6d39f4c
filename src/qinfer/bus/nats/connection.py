"""The NATS connection: bounded, never waiting publishes on top of nats-py."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import nats
from nats.aio.client import Client

from qinfer.bus.nats.client import SecureClient
from qinfer.bus.nats.transport import Link, Pulse
from qinfer.bus.security import NatsSecurity
from qinfer.errors import BusUnavailable, SetupError
from qinfer.lifecycle import cancelled
from qinfer.telemetry.logs import redact

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds `start` waits for the broker."""

LOOK = 0.5
"""Seconds between two looks at the connection, and at what waits for the broker."""

# A broker that is silent for longer counts as gone. Three seconds are more than a busy one takes to answer
# a ping, and well below the time after which workers count as dead (`WORKER_LIFETIME`).
_SILENT_LOOKS = 6
_PING_INTERVAL = 1
_NEVER = 1 << 30
_RECONNECT_WAIT = 0.25
_CLOSE_TIMEOUT = 2.0
_COMPLAINT_SECONDS = 10.0  # between two log lines about the same
_SETTLE = 4 * _RECONNECT_WAIT  # after a restart of the broker everybody else is back within this time
_BUFFER_LIMIT = 32 * 1024 * 1024
# nats-py waits inside publish() once `pending_size` is passed. Ours must never wait, so its limit lies
# beyond the one enforced here.
_NATS_PENDING_SIZE = 4 * _BUFFER_LIMIT
_TCP_SCHEMES = frozenset(("nats", "tls"))


class Connection:
    """One NATS connection that reconnects for ever.

    Args:
        servers: URLs of the servers of one cluster.
        name: what the broker shows this connection as.
        security: files for TLS and credentials; None for neither.
    """

    def __init__(self, servers: Sequence[str], *, name: str, security: NatsSecurity | None = None) -> None:
        self._servers = list(servers)
        self._name = name
        self._security = security or NatsSecurity()
        self._options: dict[str, Any] = {}
        self._reconnect_handlers: list[Callable[[], None]] = []
        self._disconnect_handlers: list[Callable[[], None]] = []
        self._look_handlers: list[Callable[[], None]] = []
        self._watch: asyncio.Task[None] | None = None
        self._pulse = Pulse(_SILENT_LOOKS)
        self._started = False
        self._problem: Exception | None = None
        self._complained = 0.0
        self._settled = asyncio.Event()
        self._settling: asyncio.TimerHandle | None = None
        self._link: Link | None = None
        self.client = self._new_client()

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

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        self._reconnect_handlers.append(handler)

    def on_disconnect(self, handler: Callable[[], None]) -> None:
        """Call `handler` whenever the connection is lost."""
        self._disconnect_handlers.append(handler)

    def on_look(self, handler: Callable[[], None]) -> None:
        """Call `handler` every `LOOK` seconds while connected."""
        self._look_handlers.append(handler)

    async def start(self) -> None:
        """Connect, trying again for up to `CONNECT_TIMEOUT` seconds.

        Raises:
            BusUnavailable: no server answered in that time.
            SetupError: the files for TLS and credentials are wrong.
        """
        self._options = self._security.options()
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CONNECT_TIMEOUT
        while True:
            try:
                await self._connect()
                self._started = True
                self._settled.set()
                self._watch = asyncio.create_task(self._keep_watch(), name="broker connection")
                return
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self.client = self._new_client()
                if loop.time() > give_up:
                    reason = self._problem or error
                    where = ", ".join(redact(server) for server in self._servers)
                    raise BusUnavailable(
                        f"no NATS server answers at {where}: {str(reason) or repr(reason)}", retry_after=1.0
                    ) from error
                await asyncio.sleep(_RECONNECT_WAIT)

    def _new_client(self) -> Client:
        client = SecureClient(must_encrypt=self._security.wants_tls)
        if all(urlsplit(server).scheme in _TCP_SCHEMES for server in self._servers):
            # nats-py has no other way to give it one.
            client._transport = self._link = Link()  # noqa: SLF001
        return client

    async def _connect(self) -> None:
        user, password = _credentials(self._servers)
        await self.client.connect(
            servers=self._servers,
            name=self._name,
            # Those of the URL, for the members of a cluster that only the broker names, too.
            user=user,
            password=password,
            connect_timeout=2,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            ping_interval=_PING_INTERVAL,
            max_outstanding_pings=_NEVER,  # `_keep_watch` decides
            # Spread by jitter: a fleet that lost its broker does not come back in one instant.
            reconnect_time_wait=_RECONNECT_WAIT * random.uniform(0.5, 1.5),  # type: ignore[arg-type]
            pending_size=_NATS_PENDING_SIZE,
            flusher_queue_size=4096,
            skip_subject_validation=True,
            error_cb=self._error,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            **self._options,
        )
        # Only the first connection is given up; a lost one is sought for ever.
        self.client.options["allow_reconnect"] = True
        self.client.options["max_reconnect_attempts"] = -1

    async def close(self) -> None:
        """Flush what is buffered, then disconnect. Idempotent."""
        if not self._started or self.client.is_closed:
            return
        if self._watch is not None:
            await cancelled(self._watch)
        if self.client.is_connected:
            try:
                await self.client.flush(timeout=_CLOSE_TIMEOUT)  # type: ignore[arg-type]
            except (nats.errors.Error, OSError, TimeoutError) as error:
                logger.warning("the last messages may not have reached the broker: %r", error)
        try:
            await asyncio.wait_for(self.client.close(), _CLOSE_TIMEOUT)
        except (OSError, RuntimeError, TimeoutError) as error:
            # uvloop says RuntimeError: nothing can be written to what is closed.
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

    async def _keep_watch(self) -> None:
        """Give up a connection over which nothing comes any more: a dead peer, or packets that vanish."""
        while True:
            await asyncio.sleep(LOOK)
            if not self.client.is_connected:
                self._pulse.reset()
                continue
            if self._link is not None and self._pulse.lost(self._link):
                logger.warning("the broker has been silent for %.0f s", _SILENT_LOOKS * LOOK)
                self._pulse.reset()
                await self.client.force_reconnect()
                continue
            for handler in self._look_handlers:
                handler()

    async def _error(self, error: Exception) -> None:
        if not self._started:  # told once, when `start` gives up
            self._problem = error
            return
        now = asyncio.get_running_loop().time()
        if repr(error) != repr(self._problem) or now - self._complained > _COMPLAINT_SECONDS:
            self._problem, self._complained = error, now  # each attempt to reconnect fails alike
            logger.warning("NATS: %r", error)

    async def _disconnected(self) -> None:
        self._settled.clear()
        if self._settling is not None:
            self._settling.cancel()
        self._renew_certificate()
        if not self.client.is_closed:
            logger.warning("lost the connection to the broker; reconnecting")
            for handler in self._disconnect_handlers:
                handler()
            # A fleet that lost its broker, or one of a cluster, must not be back in one instant.
            await asyncio.sleep(random.uniform(0, _RECONNECT_WAIT))

    def _renew_certificate(self) -> None:
        """The connection may have been lost because the client's certificate has ended."""
        context = self._options.get("tls")
        if context is not None:
            try:
                self._security.renew(context)
            except SetupError as error:
                logger.error("the client certificate is not read again: %s", error)

    async def _reconnected(self) -> None:
        self._settling = asyncio.get_running_loop().call_later(_SETTLE, self._settled.set)
        logger.info("connected to the broker again")
        for handler in self._reconnect_handlers:
            handler()


def _credentials(servers: Sequence[str]) -> tuple[str | None, str | None]:
    """User and password in the servers' URLs; none if there are none, or only a token."""
    for server in servers:
        parts = urlsplit(server)
        if parts.username and parts.password is not None:
            return unquote(parts.username), unquote(parts.password)
    return None, None


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
