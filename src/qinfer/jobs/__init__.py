"""Asynchronous jobs: requests that are stored, run when there is room, and asked about later."""

from qinfer.jobs.record import ENDED, JobOptions, JobRecord, JobState, Progress

__all__ = ["ENDED", "JobOptions", "JobRecord", "JobState", "Progress"]
