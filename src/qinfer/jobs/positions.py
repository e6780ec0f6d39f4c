"""Which place a job has in its queue.

As at a counter where people take tickets: a job notes how many deliveries its lane will have had when its own
turn comes, and its place is what is missing to that. Deliveries that are made twice count twice, several who
submit at the same moment may take the same ticket, and more urgent lanes are not counted: it is about right.
"""

from __future__ import annotations

from time import monotonic

from msgspec.structs import replace

from qinfer.bus import Backlog, Bus
from qinfer.errors import BusUnavailable, Unsupported
from qinfer.jobs.lanes import JOB_QUEUE, lane_number
from qinfer.jobs.record import JobRecord, JobState
from qinfer.jobs.stored import StoredJob

_LIFETIME = 0.5  # seconds for which what was seen of a lane is taken to be so still
_MOST_LANES = 4096


class _Seen:
    __slots__ = ("at", "backlog", "taken")

    def __init__(self, backlog: Backlog | None) -> None:
        self.at = monotonic()
        self.backlog = backlog
        self.taken = 0  # tickets since then


class Positions:
    """Gives tickets and reads them.

    Args:
        bus: a started bus.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lanes: dict[str, _Seen] = {}

    async def ticket(self, number: str) -> int:
        """A ticket of a lane; 0 where nobody knows how far that is."""
        seen = await self._look(number)
        if seen.backlog is None:
            return 0
        seen.taken += 1
        return seen.backlog.delivered + seen.backlog.waiting + seen.taken

    async def placed(self, job: StoredJob) -> JobRecord:
        """A job's record with its place, if it waits and that is known."""
        record = job.record
        if record.state is not JobState.QUEUED or not job.ticket:
            return record
        seen = await self._look(lane_number(record.model, record.version, job.lane))
        if seen.backlog is None:
            return record
        place = min(job.ticket - seen.backlog.delivered, seen.backlog.waiting + max(1, seen.taken))
        return replace(record, queue_position=max(1, place))

    async def _look(self, number: str) -> _Seen:
        seen = self._lanes.get(number)
        if seen is None or monotonic() - seen.at > _LIFETIME:
            if len(self._lanes) >= _MOST_LANES:
                self._lanes.clear()
            try:
                seen = _Seen(await self._bus.backlog(JOB_QUEUE, number))
            except (BusUnavailable, Unsupported):
                seen = _Seen(None)
            self._lanes[number] = seen
        return seen
