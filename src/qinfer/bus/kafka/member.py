"""A group member as aiokafka has it, set up for a queue."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import Any

from qinfer.bus.kafka.connection import Connection, Partition

_HEARTBEAT_MS = 500
_HEARTBEATS = 4  # at least, in a session
_NEVER_MS = 2**31 - 1
_MARGIN = 5.0  # seconds that members may take to rejoin beside ending what they hold
_POLL_WAIT_MS = 500


def member(connection: Connection, group: str, session: float) -> Any:
    """A member of a group, not started yet.

    Args:
        group: its name.
        session: seconds of silence after which it counts as dead.
    """
    rebalance_ms = int((session + _MARGIN) * 1000)
    return connection.consumer(
        group_id=group,
        partition_assignment_strategy=(_assignor(),),
        session_timeout_ms=int(session * 1000),
        rebalance_timeout_ms=rebalance_ms,
        request_timeout_ms=rebalance_ms + int(_MARGIN * 1000),  # to join is one long request
        heartbeat_interval_ms=min(_HEARTBEAT_MS, int(session * 1000 / _HEARTBEATS)),
        max_poll_interval_ms=_NEVER_MS,  # whether a frame is worked on is seen by its ack wait
        fetch_max_wait_ms=_POLL_WAIT_MS,
    )


def _assignor() -> Any:
    # aiokafka's keeps what a member had in the class: each member needs one of its own.
    sticky = importlib.import_module("aiokafka.coordinator.assignors.sticky.sticky_assignor")
    return type("Sticky", (sticky.StickyPartitionAssignor,), {})


class Listener:
    """Told of partitions that come and go. Registered as aiokafka's `ConsumerRebalanceListener`.

    Args:
        revoked: called before the group is shared out anew; nothing is fetched meanwhile.
        assigned: called with the partitions that are ours then.
    """

    def __new__(
        cls, revoked: Callable[[], Awaitable[None]], assigned: Callable[[set[Partition]], Awaitable[None]]
    ) -> Any:
        base = importlib.import_module("aiokafka.abc").ConsumerRebalanceListener

        async def on_revoked(_: Any, partitions: Any) -> None:
            if partitions:
                await revoked()

        async def on_assigned(_: Any, partitions: Any) -> None:
            await assigned({(each.topic, each.partition) for each in partitions})

        kind = type(
            "QueueListener",
            (base,),
            {"on_partitions_revoked": on_revoked, "on_partitions_assigned": on_assigned},
        )
        return kind()
