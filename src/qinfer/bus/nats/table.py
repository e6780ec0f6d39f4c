"""Tables: JetStream key-value buckets (ADR-8) in which each entry has a time to live of its own (ADR-43)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import ceil

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, Header, RawStreamMsg, StorageType, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from qinfer.bus.base import Watcher, WatchHandler, check_payload
from qinfer.bus.nats.confirmations import refusal
from qinfer.bus.nats.connection import Connection
from qinfer.bus.nats.storage import replicated
from qinfer.bus.nats.trouble import unavailable
from qinfer.bus.table import Table
from qinfer.errors import BusUnavailable, Unsupported

_OPERATION = "KV-Operation"
_REMOVED = {_OPERATION: "DEL"}
_MARKER_LIFETIME = 60  # seconds for which a removal can be seen by who looks late
_REVISION = str(Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value)
_LIFETIME = str(Header.MSG_TTL.value)
_ERR_SOMEBODY_WAS_FASTER = 10071
_ERR_STREAM_EXISTS = 10058

logger = logging.getLogger(__name__)


class Tables:
    """The tables of one connection.

    Args:
        connection, jetstream: to the broker.
        max_payload: of a message.
    """

    def __init__(self, connection: Connection, jetstream: JetStreamContext, *, max_payload: int) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._max_payload = max_payload
        self._tables: list[NatsTable] = []
        self._watchers: list[TableWatcher] = []

    def open(self, name: str, max_bytes: int) -> NatsTable:
        """A table, which need not be there yet."""
        table = NatsTable(
            self._connection,
            self._jetstream,
            name,
            max_bytes=max_bytes,
            max_payload=self._max_payload,
            watching=self._watching,
        )
        self._tables.append(table)
        return table

    def forget(self) -> None:
        """After a reconnect: tables may be gone."""
        for table in self._tables:
            table.made = False

    async def refresh(self) -> None:
        """After a reconnect: changes may have been missed."""
        for watcher in list(self._watchers):
            if not watcher.closed:
                await watcher.refresh()

    def _watching(self, watcher: TableWatcher) -> None:
        self._watchers = [known for known in self._watchers if not known.closed]
        self._watchers.append(watcher)


class NatsTable(Table):
    """One bucket.

    Args:
        connection, jetstream: to the broker.
        name: of the bucket.
        max_bytes: what it may take.
        max_payload: of a message.
        watching: told of each new watcher, which has to be refreshed after a reconnect.

    Attributes:
        made: the bucket is known to be there.
    """

    def __init__(
        self,
        connection: Connection,
        jetstream: JetStreamContext,
        name: str,
        *,
        max_bytes: int,
        max_payload: int,
        watching: Callable[[TableWatcher], None],
    ) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._stream = f"KV_{name}"
        self._prefix = f"$KV.{name}."
        self._max_bytes = max_bytes
        self._max_payload = max_payload
        self._watching = watching
        self.made = False

    async def get(self, key: str, *, settled: bool = False) -> tuple[bytes, int] | None:
        message = await self._last(key, direct=True) if settled else None
        if message is None:  # the copy that was asked may be behind
            message = await self._last(key)
        if message is None or (message.headers and _OPERATION in message.headers):
            return None
        return message.data or b"", message.seq or 0

    async def write(self, key: str, value: bytes, *, lifetime: float, revision: int | None = None) -> int:
        check_payload(value, self._max_payload)
        headers = {_LIFETIME: str(max(1, ceil(lifetime)))}
        if revision is not None:
            headers[_REVISION] = str(revision)
        await self._make()
        while True:
            try:
                return await self._publish(key, value, headers)
            except NoStreamResponseError:  # the broker came back without it
                self.made = False
                await self._make()
                return await self._publish(key, value, headers)
            except APIError as error:
                if error.err_code != _ERR_SOMEBODY_WAS_FASTER:
                    raise refusal(error.err_code or 0, error.description or "", what="the table") from error
            removed = None if revision or headers[_REVISION] != "0" else await self._last(key)
            if removed is None or not (removed.headers and _OPERATION in removed.headers):
                return 0
            headers[_REVISION] = str(removed.seq)  # nothing is there but the mark of a removal

    async def remove(self, key: str) -> None:
        headers = {**_REMOVED, _LIFETIME: str(_MARKER_LIFETIME)}
        # Where somebody watches, what is published to a bucket that is not there is silence.
        if not self.made and await self._last(key) is None:
            return
        try:
            await self._publish(key, b"", headers)
        except NoStreamResponseError:
            return
        except APIError as error:  # full, and the mark larger than the entry
            logger.info("%s lives until its time is over: %s", key, error.description)

    async def keys(self, prefix: str) -> list[str]:
        with_prefix = f"{self._prefix}{prefix}.>"
        try:
            info = await self._jetstream.stream_info(self._stream, subjects_filter=with_prefix)
        except NotFoundError:
            return []
        except (nats.errors.Error, OSError) as error:
            raise self._trouble(error) from error
        start = len(self._prefix)
        return [subject[start:] for subject in info.state.subjects or {}]

    async def watch(self, key: str, handler: WatchHandler) -> TableWatcher:
        if not self._connection.connected:
            raise self._trouble(OSError())
        watcher = TableWatcher(self, key, handler)
        try:
            await watcher.start(self._connection, self._prefix)
        except (nats.errors.Error, OSError) as error:
            await watcher.close()
            raise self._trouble(error) from error
        self._watching(watcher)
        return watcher

    async def size(self) -> int:
        try:
            return int((await self._jetstream.stream_info(self._stream)).state.bytes)
        except NotFoundError:
            return 0
        except (nats.errors.Error, OSError) as error:
            raise self._trouble(error) from error

    async def snapshot(self, key: str) -> list[tuple[str, bytes]]:
        """All entries that a watcher of `key` is to see."""
        prefix, _, rest = key.rpartition(".")
        keys = await self.keys(prefix) if rest == "*" else [key]
        found = [(each, await self.get(each)) for each in keys]
        return [(each, entry[0]) for each, entry in found if entry is not None]

    async def _last(self, key: str, *, direct: bool = False) -> RawStreamMsg | None:
        try:
            return await self._jetstream.get_last_msg(self._stream, f"{self._prefix}{key}", direct=direct)
        except NotFoundError:
            return None
        except nats.errors.NoRespondersError:  # a direct question to a bucket that is not there
            return None
        except (nats.errors.Error, OSError) as error:
            raise self._trouble(error) from error

    async def _publish(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        try:
            confirmed = await self._jetstream.publish(f"{self._prefix}{key}", value, headers=dict(headers))
        except (APIError, NoStreamResponseError):
            raise
        except (nats.errors.Error, OSError) as error:
            self.made = False
            raise self._trouble(error) from error
        return int(confirmed.seq)

    async def _make(self) -> None:
        if self.made:
            return
        if not self._connection.connected:
            raise self._trouble(OSError())
        try:
            allows = await self._allows_lifetimes()
        except (nats.errors.Error, OSError) as error:
            raise self._trouble(error) from error
        if not allows:
            raise Unsupported(
                f"stream {self._stream} knows no lifetimes of entries; expected nats-server 2.11"
            )
        self.made = True

    async def _allows_lifetimes(self) -> bool:
        try:
            info = await self._jetstream.stream_info(self._stream)
        except NotFoundError:
            await self._create_once()
            info = await self._jetstream.stream_info(self._stream)
        if self._max_bytes > 0 and info.config.max_bytes != self._max_bytes:
            await self._jetstream.update_stream(info.config.evolve(max_bytes=self._max_bytes))
        return bool(info.config.allow_msg_ttl)

    async def _create_once(self) -> None:
        try:
            await replicated(self._create)
        except APIError as error:
            if error.err_code != _ERR_STREAM_EXISTS:  # another process was faster
                raise

    async def _create(self, replicas: int) -> None:
        config = StreamConfig(
            name=self._stream,
            subjects=[f"{self._prefix}>"],
            max_msgs_per_subject=1,
            max_bytes=self._max_bytes,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            allow_direct=True,
            allow_msg_ttl=True,
            allow_rollup_hdrs=True,
            deny_delete=True,
            num_replicas=replicas,
        )
        await self._jetstream.add_stream(config)

    def _trouble(self, error: Exception) -> BusUnavailable:
        if not self._connection.connected:
            return BusUnavailable("the connection to the broker is down", retry_after=1.0)
        return unavailable(error)


class TableWatcher(Watcher):
    """A subscription to the subjects of a bucket."""

    def __init__(self, table: NatsTable, key: str, handler: WatchHandler) -> None:
        self._table = table
        self._key = key
        self._handler = handler
        self._skipped = 0
        self._subscription: Subscription | None = None

    @property
    def closed(self) -> bool:
        return self._subscription is None

    async def start(self, connection: Connection, prefix: str) -> None:
        self._skipped = len(prefix)
        self._subscription = await connection.client.subscribe(f"{prefix}{self._key}", cb=self._receive)
        await connection.client.flush()  # subscribed for sure before the snapshot is taken
        await self.refresh()

    async def refresh(self) -> None:
        for key, value in await self._table.snapshot(self._key):
            self._handler(key, value)

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    async def _receive(self, message: Msg) -> None:
        removed = message.headers is not None and _OPERATION in message.headers
        self._handler(message.subject[self._skipped :], None if removed else message.data)
