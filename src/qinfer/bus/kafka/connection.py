"""The connection to a Kafka cluster: its clients, whether anybody answers, topics made on demand."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from time import time_ns
from typing import Any, TypeVar

from qinfer.bus.kafka.names import Topic
from qinfer.bus.kafka.progress import State
from qinfer.bus.kafka.security import KafkaSecurity
from qinfer.errors import BackendUnavailable, BusUnavailable
from qinfer.lifecycle import cancelled
from qinfer.telemetry.logs import hold_back_secrets, redact

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds `start` waits for the cluster."""

ANSWER_TIMEOUT = 5.0
"""Seconds in which the cluster has to answer a question."""

LOOK = 0.5
"""Seconds between two looks whether anybody answers."""

SILENCE = 3.0
"""Seconds without an answer after which the cluster counts as gone: well below `WORKER_LIFETIME`."""

_PROBE = 1.5  # seconds in which a look has to be answered
_FAILED_LOOKS = 2  # at least: a process that was stopped itself must not take that for others' silence
_RETRY_WAIT = 0.25
_CLOSE_TIMEOUT = 5.0
_REQUEST_TIMEOUT_MS = 10_000
_BACKOFF_MS = 50
_EXISTS = 36
_COPIES = 3

T = TypeVar("T")
Partition = tuple[str, int]
"""A topic and the number of one of its partitions."""


def library() -> Any:
    """The package aiokafka.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        importlib.import_module("aiokafka.admin")
        return importlib.import_module("aiokafka")
    except ImportError as error:
        raise BackendUnavailable(
            f"the Kafka bus needs a library: pip install 'qinfer[kafka]': {error}"
        ) from error


class Connection:
    """The clients that everything on a bus shares, and what is known of the cluster.

    Args:
        servers: "host:port" of some of the brokers.
        name: what brokers show this connection as.
        security: TLS and credentials.
        largest: bytes of the largest record.
        replicas: copies of topics; 0 for what the cluster has room for, up to three.
    """

    def __init__(
        self, servers: Sequence[str], *, name: str, security: KafkaSecurity, largest: int, replicas: int
    ) -> None:
        self._servers = list(servers)
        self._name = name
        self._security = security
        self._replicas = replicas
        self.largest = largest
        self._options: dict[str, Any] = {}
        self._disconnect_handlers: list[Callable[[], None]] = []
        self._reconnect_handlers: list[Callable[[], None]] = []
        self._topics: set[str] = set()
        self._making = asyncio.Lock()
        self._clock_offset_ms: int | None = None
        self._watch: asyncio.Task[None] | None = None
        self.producer: Any = None
        self._admin: Any = None
        self._scout: Any = None
        self.connected = False

    async def start(self) -> None:
        """Connect, trying again for up to `CONNECT_TIMEOUT` seconds.

        Raises:
            BusUnavailable: no broker answered in that time.
            SetupError: the security is wrong.
            BackendUnavailable: aiokafka is not installed.
        """
        self._kafka = library()
        self._options = {
            "bootstrap_servers": self._servers,
            "client_id": self._name,
            "request_timeout_ms": _REQUEST_TIMEOUT_MS,
            "retry_backoff_ms": _BACKOFF_MS,
            **self._security.options(),
        }
        _silence()
        await self._connect()
        self.connected = True
        self._watch = asyncio.create_task(self._keep_watch(), name="kafka connection")

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CONNECT_TIMEOUT
        reason: Exception | None = None
        while True:
            try:
                async with asyncio.timeout_at(give_up):
                    self._admin = self._kafka.admin.AIOKafkaAdminClient(**self._options)
                    await self._admin.start()
                    self.producer = self._kafka.AIOKafkaProducer(
                        enable_idempotence=True,
                        max_request_size=self.largest,
                        max_batch_size=self.largest,
                        **self._options,
                    )
                    await self.producer.start()
                    self._scout = self.consumer()
                    await self._scout.start()
                    return
            except (self._kafka.errors.KafkaError, OSError, TimeoutError) as error:
                await self._stop()
                if reason is None or not isinstance(error, TimeoutError):
                    reason = error
                if loop.time() > give_up:
                    where = redact(",".join(self._servers))
                    raise BusUnavailable(
                        f"no Kafka broker answers at {where}: {str(reason) or repr(reason)}", retry_after=1.0
                    ) from error
            except BaseException:
                await self._stop()
                raise
            await asyncio.sleep(_RETRY_WAIT)

    async def close(self) -> None:
        """Send what is buffered, then disconnect. Idempotent."""
        was, self.connected = self.connected, False
        if self._watch is not None:
            await cancelled(self._watch)
            self._watch = None
        await self._stop(flush=was)

    async def _stop(self, *, flush: bool = False) -> None:
        producer, self.producer = self.producer, None
        admin, self._admin = self._admin, None
        scout, self._scout = self._scout, None
        if producer is not None:
            if flush:
                await self._in_time(producer.flush(), "the last messages may not have reached the broker")
            await self._in_time(producer.stop(), "the producer did not end in time")
        if scout is not None:
            await self._in_time(scout.stop(), "a consumer did not end in time")
        if admin is not None:
            await self._in_time(admin.close(), "a client did not end in time")

    async def _in_time(self, step: Awaitable[None], what: str) -> None:
        try:
            await asyncio.wait_for(step, _CLOSE_TIMEOUT)
        except (self._kafka.errors.KafkaError, OSError, TimeoutError) as error:
            logger.warning("%s: %r", what, error)

    def consumer(self, **options: Any) -> Any:
        """A new aiokafka consumer, not started yet."""
        return self._kafka.AIOKafkaConsumer(
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=self.largest,
            consumer_timeout_ms=20,
            **{**self._options, **options},
        )

    # Whether anybody answers

    def on_disconnect(self, handler: Callable[[], None]) -> None:
        """Call `handler` whenever no broker has answered for some seconds."""
        self._disconnect_handlers.append(handler)

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        """Call `handler` when one answers again."""
        self._reconnect_handlers.append(handler)

    def check(self) -> None:
        """Raise `BusUnavailable` while no broker answers."""
        if not self.connected:
            raise BusUnavailable("the connection to the broker is down", retry_after=1.0)

    async def _keep_watch(self) -> None:
        loop = asyncio.get_running_loop()
        failed, heard = 0, loop.time()
        while True:
            await asyncio.sleep(LOOK)
            if await self._answers():
                failed, heard = 0, loop.time()
            else:
                failed += 1
            silent = loop.time() - heard
            if self.connected and failed >= _FAILED_LOOKS and silent >= SILENCE:
                self.connected = False
                logger.warning("no Kafka broker has answered for %.0f s", silent)
                for handler in self._disconnect_handlers:
                    handler()
            elif not failed and not self.connected:
                self.connected = True
                logger.info("connected to the broker again")
                for handler in self._reconnect_handlers:
                    handler()

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(_PROBE):
                await self._admin.find_coordinator(self._name)
        except self._kafka.errors.BrokerResponseError as error:
            return not isinstance(error, self._kafka.errors.RequestTimedOutError)  # else a broker said so
        except (self._kafka.errors.KafkaError, OSError, TimeoutError):
            return False
        return True

    # The cluster

    async def ask(self, step: Awaitable[T]) -> T:
        """Wait for the cluster's answer.

        Raises:
            BusUnavailable: it did not come in time, or is an error.
        """
        try:
            return await asyncio.wait_for(step, ANSWER_TIMEOUT)
        except TimeoutError:
            raise BusUnavailable("the broker does not answer in time", retry_after=1.0) from None
        except (self._kafka.errors.KafkaError, OSError) as error:
            raise self.unavailable(error) from error

    def unavailable(self, error: BaseException) -> BusUnavailable:
        """The error to raise for one of aiokafka's."""
        return BusUnavailable(f"the broker refused: {str(error) or repr(error)}", retry_after=1.0)

    async def ensure(self, topics: Iterable[Topic]) -> None:
        """Make those of the topics that are not there.

        Raises:
            BusUnavailable: the cluster does not answer, or does not make them.
        """
        missing = [topic for topic in topics if topic.name not in self._topics]
        if not missing:
            return
        self.check()
        async with self._making:
            copies = self._replicas or await self._room_for_copies()
            wanted = [
                self._kafka.admin.NewTopic(
                    topic.name,
                    topic.partitions,
                    topic.replicas or copies,
                    topic_configs=dict(topic.settings),
                )
                for topic in missing
            ]
            answer = await self.ask(self._admin.create_topics(wanted))
        for name, code, *why in answer.topic_errors:
            if code not in (0, _EXISTS):
                error = self._kafka.errors.for_code(code)
                raise BusUnavailable(
                    f"topic {name} cannot be made: {error.__name__}: {(why or [''])[0]}", retry_after=1.0
                )
        # Nothing may ask for a topic before it is there: brokers make them as they like by default.
        await asyncio.gather(*(self.ask(self.producer.partitions_for(topic.name)) for topic in missing))
        self._topics.update(topic.name for topic in missing)

    async def _room_for_copies(self) -> int:
        return min(_COPIES, max(1, await self.brokers()))

    async def brokers(self) -> int:
        """How many brokers the cluster has."""
        cluster = await self.ask(self._admin.describe_cluster())
        return len(cluster["brokers"])

    async def may_make(self, topic: Topic) -> str:
        """Why a topic could not be made; "" if it could."""
        wanted = self._kafka.admin.NewTopic(
            topic.name,
            topic.partitions,
            topic.replicas or self._replicas or await self._room_for_copies(),
            topic_configs=dict(topic.settings),
        )
        answer = await self.ask(self._admin.create_topics([wanted], validate_only=True))
        ((_, code, *why),) = answer.topic_errors
        if code in (0, _EXISTS):
            return ""
        return f"{self._kafka.errors.for_code(code).__name__}: {(why or [''])[0]}"

    async def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offset of the next record of each partition."""
        return await self._offsets(self._scout.end_offsets, partitions)

    async def beginnings(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offset of the first record that is still there."""
        return await self._offsets(self._scout.beginning_offsets, partitions)

    async def _offsets(
        self,
        look_up: Callable[[Sequence[Any]], Awaitable[Mapping[Any, int]]],
        partitions: Iterable[Partition],
    ) -> dict[Partition, int]:
        self.check()
        wanted = [self.partition(each) for each in partitions]
        found = await self.ask(look_up(wanted)) if wanted else {}
        return {(each.topic, each.partition): offset for each, offset in found.items()}

    async def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, State]:
        """What a group has committed for each partition."""
        self.check()
        wanted = [self.partition(each) for each in partitions]
        if not wanted:
            return {}
        found = await self.ask(self._committed(group, wanted))
        return {(each.topic, each.partition): (at.offset, at.metadata or "") for each, at in found.items()}

    async def _committed(self, group: str, wanted: Sequence[Any]) -> Mapping[Any, Any]:
        """Ask the group's coordinator until there is one that knows."""
        while True:
            with suppress(
                self.errors.GroupCoordinatorNotAvailableError, self.errors.NotCoordinatorForGroupError
            ):
                found: Mapping[Any, Any] = await self._admin.list_consumer_group_offsets(
                    group, partitions=wanted
                )
                if len(found) == len(wanted):
                    return found
                # aiokafka passes over the error of an answer as a whole: a coordinator that is still loading
                # would seem to say that nothing was ever committed.
            await asyncio.sleep(_RETRY_WAIT)

    async def forget(self, before: Mapping[Partition, int]) -> None:
        """Delete records before these offsets."""
        self.check()
        records = {
            self.partition(each): self._kafka.admin.RecordsToDelete(before_offset=offset)
            for each, offset in before.items()
        }
        await self.ask(self._admin.delete_records(records))

    def partition(self, partition: Partition) -> Any:
        """As aiokafka has it."""
        return self._kafka.TopicPartition(*partition)

    @property
    def errors(self) -> Any:
        """The module of aiokafka's errors."""
        return self._kafka.errors

    # The brokers' clock

    def seen_clock(self, broker_ms: int) -> None:
        """A broker's clock showed this a moment ago, Unix milliseconds."""
        self._clock_offset_ms = broker_ms - time_ns() // 1_000_000

    def clock_ms(self) -> int:
        """What the brokers' clocks show about now, Unix milliseconds."""
        return time_ns() // 1_000_000 + (self._clock_offset_ms or 0)


def _silence() -> None:
    # Each of its clients tells of each failed attempt, and some are routine. What matters is raised, too, and
    # told by whoever it concerns. Who wants to hear more sets a level.
    library = logging.getLogger("aiokafka")
    if library.level == logging.NOTSET:
        library.setLevel(logging.CRITICAL)
    hold_back_secrets()
