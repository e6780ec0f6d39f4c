"""Jobs survive everything: real processes, each killed with SIGKILL in the middle of hundreds of jobs."""

from __future__ import annotations

from loadtest.jobs.fire import ROLES, Fire

JOBS = 300


async def test_every_job_ends_and_is_told_of_whatever_dies() -> None:
    report = await Fire(JOBS, rounds=1, timeout=110.0).run()
    assert report.jobs == JOBS
    assert report.states == {"succeeded": JOBS}
    assert (report.wrong, report.untold, report.invalid) == (0, 0, 0)
    assert report.looked_at >= 200
    assert dict(report.kills) == dict.fromkeys(ROLES, 1)
    assert report.well
