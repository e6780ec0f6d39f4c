"""What lies at the broker of a job: its record with what only the machinery needs, and the work itself."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from qinfer.errors import InternalError
from qinfer.jobs.record import ENDED, JobRecord, JobState
from qinfer.message import Request

DAY = 86_400.0

LONGEST_QUEUE = 7 * DAY
"""Seconds after which a job that could not be begun is given up, whatever its options say."""

UNENDED_LIFETIME = 2 * LONGEST_QUEUE
"""Seconds for which a job that has not ended is remembered after its last change."""

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class DataRef(msgspec.Struct, frozen=True, array_like=True):
    """Where data of a job lie: entries `NAME.0`, `NAME.1` … of the table of data, `size` bytes in all."""

    name: str
    chunks: int
    size: int


class Delivery(msgspec.Struct, frozen=True):
    """How far the webhook of a job is; times in Unix microseconds.

    Attributes:
        attempts: so far.
        first_us: when the first was due.
        next_us: before which there is none.
        problem: what became of the last one; "" before it and where it went well.
    """

    attempts: int = 0
    first_us: int = 0
    next_us: int = 0
    problem: str = ""


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What of a request is needed to answer it, beside the model's answer.

    Attributes:
        request_id: the caller's own identifier.
        binary: all outputs are wanted in binary, where the way in has such a form.
        binary_outputs, json_outputs: names of outputs wanted in one form or the other.
    """

    request_id: str = ""
    binary: bool = False
    binary_outputs: tuple[str, ...] = ()
    json_outputs: tuple[str, ...] = ()


class StoredJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it lies in its table.

    Attributes:
        record: what people see.
        request: the encoded work; None once it is not needed any more.
        result: an encoded response frame with one response.
        form: how that is to be told.
        rows: of the request, as far as its first input tells.
        lane: which of the model's queues it is in.
        ticket: which delivery of that queue it is expected to be; 0 where nobody knows.
        round: how often it was retried by hand.
        queued_us: when it was submitted or retried last.
        key: name of its idempotency key's entry; "" without one.
        keep: seconds for which it is kept after its end.
        webhook: None without one.
    """

    record: JobRecord
    request: DataRef | None
    result: DataRef | None = None
    form: Form = Form()
    rows: int = 1
    lane: int = 0
    ticket: int = 0
    round: int = 0
    queued_us: int = 0
    key: str = ""
    keep: float = DAY
    webhook: Delivery | None = None

    @property
    def ended(self) -> bool:
        return self.record.state in ENDED

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def waits(self) -> bool:
        """Whether it was never begun since it was queued."""
        return self.record.state is JobState.QUEUED and not self.record.attempts

    def queue_ends_us(self) -> int:
        """When its time in the queue is over, Unix microseconds."""
        seconds = self.record.options.max_queue_time or LONGEST_QUEUE
        return self.queued_us + int(min(seconds, LONGEST_QUEUE) * 1e6)


class InferWork(msgspec.Struct, frozen=True, tag="infer", tag_field="kind"):
    """One request, without correlation number and deadline."""

    request: Request

    @property
    def rows(self) -> int:
        """What its first input has as its first dimension; at least 1."""
        shape = self.request.inputs[0].shape if self.request.inputs else []
        return max(1, shape[0]) if shape else 1


class BatchWork(msgspec.Struct, frozen=True, tag="batch", tag_field="kind"):
    """A file of inputs, to become a file of outputs.

    Attributes:
        spec: what was asked for; read by who runs such jobs.
        version: of the model that all rows are scored with.
        tenant: whom the requests are accounted to.
    """

    spec: dict[str, Any]
    version: str = ""
    tenant: str = ""


Work: TypeAlias = InferWork | BatchWork

_job = msgspec.msgpack.Decoder(StoredJob)
_work: msgspec.msgpack.Decoder[Work] = msgspec.msgpack.Decoder(InferWork | BatchWork)
encode = msgspec.msgpack.Encoder().encode
"""Encode a `StoredJob` or `Work`."""


def decode_job(data: bytes) -> StoredJob:
    """Decode what lies in the table of jobs.

    Raises:
        InternalError: it is no job.
    """
    try:
        return _job.decode(data)
    except _UNREADABLE as error:
        raise InternalError(f"the record of a job cannot be read: {error}") from None


def decode_work(data: bytes | bytearray | memoryview) -> Work:
    """Decode a job's work; tensors are views into `data`.

    Raises:
        InternalError: it is none.
    """
    try:
        return _work.decode(data)
    except _UNREADABLE as error:
        raise InternalError(f"the request of a job cannot be read: {error}") from None
