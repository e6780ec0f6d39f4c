"""Asynchronous jobs: requests that are stored, run when there is room, and asked about later."""

from qinfer.jobs.listing import JobPage
from qinfer.jobs.options import JobLimits
from qinfer.jobs.record import ENDED, JobOptions, JobRecord, JobState, Progress
from qinfer.jobs.store import JobResult, JobStore
from qinfer.jobs.stored import BatchWork, Form, InferWork, Work
from qinfer.jobs.submission import Submission

__all__ = [
    "ENDED",
    "BatchWork",
    "Form",
    "InferWork",
    "JobLimits",
    "JobOptions",
    "JobPage",
    "JobRecord",
    "JobResult",
    "JobState",
    "JobStore",
    "Progress",
    "Submission",
    "Work",
]
