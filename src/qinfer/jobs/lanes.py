"""The queues that jobs wait in.

All jobs of a namespace are in one queue of the bus, under a name that no model can have. What is published
there is only the job's id; "versions" of the queue are the lanes, a few for each model, which are consumed
one by one: jobs of a model that nobody serves are in nobody's way. The first job in a lane leaves a note in
the table of jobs, where gateways learn which lanes there are.
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import sha256
from urllib.parse import urlsplit

import msgspec

from qinfer.bus import QueueSpec

JOB_QUEUE = "/jobs"
"""Name of the queue of all jobs. A model is a folder of a repository, whose name has no slash."""

WEBHOOK_QUEUE = "/webhooks"
"""Name of the queue of jobs whose ends are to be told."""

TIMER_QUEUE = "/job-timers"
"""Name of the queue of jobs that may wait for a certain time only; each is in a lane of its model as well."""

ACK_WAIT = 5.0
"""Seconds without a sign of life after which a gateway's jobs go to another."""

BEAT = ACK_WAIT / 3
"""Seconds between two signs of life."""

_MOST_DIGITS = 19
_HASH_BITS = 59  # a lane's number has to be one of 63 bits


class Lane(IntEnum):
    """Kinds of lanes, the most urgent first."""

    URGENT = 1
    NORMAL = 2
    PATIENT = 3
    SPARE = 4


class LaneNote(msgspec.Struct, frozen=True):
    """That there are jobs for a model, or a version of it, in a lane."""

    model: str
    version: str
    lane: int


def lane_of(priority: int, default: int, *, spare: bool) -> Lane:
    """The lane of a job.

    Args:
        priority: of its request; 0 for the model's default, 1 for the highest.
        default: of the model; 0 where it has no priorities.
        spare: it wants leftover capacity only.
    """
    if spare:
        return Lane.SPARE
    if not priority or priority == default:
        return Lane.NORMAL
    if default:
        return Lane.URGENT if priority < default else Lane.PATIENT
    return Lane.URGENT if priority == 1 else Lane.PATIENT


def lane_number(model: str, version: str, lane: int) -> str:
    """What a lane of a model and version ("" for the newest) is called on the bus: a decimal number."""
    digest = sha256(f"{version} {model}".encode(errors="backslashreplace")).digest()
    number = int.from_bytes(digest[:8], "big") >> (64 - _HASH_BITS)
    return str(number << 4 | lane)


def queues(max_jobs: int) -> dict[str, QueueSpec]:
    """How the queues of jobs are kept, by name. What they hold is small: the broker reserves nothing."""
    spec = QueueSpec(ack_wait=ACK_WAIT, max_messages=max_jobs, max_bytes=-1)
    return dict.fromkeys((JOB_QUEUE, TIMER_QUEUE, WEBHOOK_QUEUE), spec)


def queue_entry(job_id: str, rows: int) -> bytes:
    """What is published in a lane for a job."""
    return f"{job_id} {rows}".encode()


def webhook_entry(job_id: str, url: str) -> bytes:
    """What is published for the webhook of a job: with its receiver, so that those can be kept apart."""
    parts = urlsplit(url)
    return f"{job_id} {parts.hostname}:{parts.port or parts.scheme}".encode()


def read_entry(data: bytes) -> tuple[str, int]:
    """Id and rows of what was published in a lane; an id that nobody has where it is something else."""
    name, _, rows = data.decode("ascii", "replace").partition(" ")
    return name, max(1, int(rows)) if rows.isdecimal() and len(rows) < _MOST_DIGITS else 1


_note = msgspec.msgpack.Decoder(LaneNote)
encode_note = msgspec.msgpack.Encoder().encode


def decode_note(data: bytes) -> LaneNote | None:
    """Decode a note; None for what is none."""
    try:
        return _note.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
