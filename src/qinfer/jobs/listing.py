"""Pages of a list of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from qinfer.jobs.ids import may_be
from qinfer.jobs.record import JobRecord, JobState
from qinfer.jobs.stored import StoredJob

_SCANNED = 1000  # records read at most for a page
_AT_ONCE = 32  # of them


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs of a list.

    Attributes:
        jobs: the newest first.
        next: what to go on after; "" at the end of the list. A page with a filter may have few jobs, or none,
            and still not be the last.
    """

    jobs: list[JobRecord]
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which jobs a list is to have.

    Attributes:
        owner: theirs; None for everybody's.
        state, model: those; None and "" for all.
        after: those that come behind this id.
    """

    owner: str | None = None
    state: JobState | None = None
    model: str = ""
    after: str = ""

    def may_have(self, job_id: str) -> bool:
        """Whether it may have a job of that id; ids tell only what cannot be."""
        return (not self.after or job_id < self.after) and may_be(job_id, owner=self.owner, model=self.model)

    def has(self, record: JobRecord) -> bool:
        if self.owner is not None and record.owner != self.owner:
            return False
        return self.state in (None, record.state) and self.model in ("", record.model)


async def page(
    ids: Sequence[str],
    wanted: Wanted,
    limit: int,
    *,
    read: Callable[[str], Awaitable[StoredJob | None]],
    show: Callable[[StoredJob], Awaitable[JobRecord]],
) -> JobPage:
    """The first page of what is wanted, of at most `limit` jobs. Few records are read beyond its own.

    Args:
        ids: of all jobs, in any order.
        wanted: which.
        limit: most jobs of the page.
        read: finds a job, or None where there is none any more.
        show: makes its record.
    """
    chosen = sorted(filter(wanted.may_have, ids), reverse=True)
    jobs: list[JobRecord] = []
    seen = 0
    while seen < min(len(chosen), _SCANNED):
        part = chosen[seen : seen + _AT_ONCE]
        for job in await asyncio.gather(*(read(job_id) for job_id in part)):
            seen += 1
            if job is None or not wanted.has(job.record):
                continue
            jobs.append(await show(job))
            if len(jobs) == limit:
                return JobPage(jobs, job.id if seen < len(chosen) else "")
    return JobPage(jobs, chosen[seen - 1] if seen < len(chosen) else "")
