"""A group member as aiokafka has it, set up for a queue."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import Any

from qinfer.bus.kafka.connection import Connection, Partition

_LEAST_SESSION = 6.0  # what brokers allow unless they are told otherwise (group.min.session.timeout.ms)
_HEARTBEAT_MS = 500
_NEVER_MS = 2**31 - 1
_MARGIN = 5.0  # seconds that members may take to rejoin beside ending what they hold
_POLL_WAIT_MS = 500


def member(connection: Connection, group: str, ack_wait: float) -> Any:
    """A member of a group, not started yet.

    Args:
        group: its name.
        ack_wait: seconds of silence after which it counts as dead; never less than brokers allow.
    """
    rebalance_ms = int((max(ack_wait, _LEAST_SESSION) + _MARGIN) * 1000)
    return connection.consumer(
        group_id=group,
        partition_assignment_strategy=(_assignor(),),
        session_timeout_ms=int(max(ack_wait, _LEAST_SESSION) * 1000),
        rebalance_timeout_ms=rebalance_ms,
        request_timeout_ms=rebalance_ms + int(_MARGIN * 1000),  # to join is one long request
        heartbeat_interval_ms=_HEARTBEAT_MS,
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
