"""Records on their way through the scorer: a group is what is decoded, scored and encoded at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from qinfer_workers.kafka.contract import BadRecord, Headers, Record


@dataclass(frozen=True, slots=True)
class Dead:
    """A record that cannot be scored.

    Attributes:
        bad: why.
        attempts: how often a model ran it.
    """

    bad: BadRecord
    attempts: int = 0


class Dropped:
    """A record that nothing is written for."""


TOMBSTONE: Final = None
DROPPED: Final = Dropped()

Outcome: TypeAlias = bytes | Dead | Dropped | None
"""What becomes of a record: the value to write, a dead letter, nothing, or a tombstone like itself (None)."""


@dataclass(slots=True, eq=False)
class Group:
    """Records that are scored together, of any of this scorer's partitions.

    Attributes:
        records: in order within each partition.
        done: set when `outcomes` are there.
        outcomes: what becomes of each record.
        headers: of those whose headers are not carried through as they are, by place.
    """

    records: list[Record] = field(default_factory=list)
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    outcomes: Sequence[Outcome] = ()
    headers: dict[int, Headers] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """The records `start` to `end` of a group, which are of one partition; `size` are their bytes."""

    group: Group
    start: int
    end: int
    size: int = 0
