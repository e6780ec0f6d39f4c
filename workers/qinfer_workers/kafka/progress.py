"""How far a consumer group is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from qinfer.embedded.backoff import Backoff
from qinfer.errors import BusUnavailable

if TYPE_CHECKING:
    from aiokafka.admin import AIOKafkaAdminClient

_TIMEOUT = 30.0  # seconds in which a group's coordinator has to answer; it may be moving
_LONGEST_PAUSE = 1.0


async def committed(admin: AIOKafkaAdminClient, group: str, source: TopicPartition) -> int | None:
    """The offset that a group has committed for a partition; None if it has never committed one.

    aiokafka's `AIOKafkaConsumer.committed` must not be asked: it passes over the error of an answer as a
    whole (the coordinator is still loading, or is another broker by now) and says None, as if nothing had
    been committed. An answer that is none lacks the partition.

    Raises:
        BusUnavailable: the coordinator does not say.
    """
    backoff = Backoff(cap=_LONGEST_PAUSE)
    problem: BaseException | None = None
    try:
        async with asyncio.timeout(_TIMEOUT):
            while True:
                try:
                    found = await admin.list_consumer_group_offsets(group, partitions=[source])
                except KafkaError as error:
                    if not error.retriable:
                        raise
                    problem = error
                else:
                    if source in found:
                        offset: int = found[source].offset
                        return offset if offset >= 0 else None
                await asyncio.sleep(backoff.next(0.0))
    except TimeoutError:
        raise BusUnavailable(
            f"group {group!r}: its coordinator does not say how far {source.topic}/{source.partition} is: "
            f"{problem or 'it is loading, or moving'}",
            retry_after=1.0,
        ) from problem
