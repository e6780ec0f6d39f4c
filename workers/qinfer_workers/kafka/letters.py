"""Dead letters: the record as it was, and why it was not scored, in headers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qinfer_workers.kafka.contract import Headers, Record
from qinfer_workers.kafka.group import Dead

REASON = "qinfer-reason"
MESSAGE = "qinfer-message"
TOPIC = "qinfer-topic"
PARTITION = "qinfer-partition"
OFFSET = "qinfer-offset"
ATTEMPTS = "qinfer-attempts"
GROUP = "qinfer-group"
OMITTED = "qinfer-omitted-bytes"
"""Header of a letter that was too large for its topic: how many bytes of the record it lacks."""
TIMESTAMP = "qinfer-timestamp"
"""Header of what is written with the time of writing: the record's own timestamp, which the topic refuses."""

_OURS = frozenset((REASON, MESSAGE, TOPIC, PARTITION, OFFSET, ATTEMPTS, GROUP, OMITTED, TIMESTAMP))
_MAX_MESSAGE = 2048  # characters; models may raise whatever they like


@dataclass(frozen=True, slots=True)
class Letter:
    """What is written of a record that cannot be scored."""

    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def letter(record: Record, dead: Dead, group: str, fits: Callable[[Letter], bool]) -> Letter:
    """The dead letter of a record: all of it; where that does not fit, without its value; where that does
    not, without its headers; at last without its key, too.

    Args:
        record: the record.
        dead: why it was not scored.
        group: the consumer group that tried.
        fits: whether the topic takes a letter.
    """
    ours = _ours(record, dead, group)
    theirs = [header for header in record.headers if header[0] not in _OURS]
    whole = Letter(record.timestamp, record.key, record.value, (*theirs, *ours))
    if fits(whole):
        return whole
    value = None if record.value is None else b""
    omitted = len(record.value or b"")
    if omitted and fits(less := _less(record.timestamp, record.key, value, (*theirs, *ours), omitted)):
        return less
    omitted += sum(len(name.encode()) + len(content or b"") for name, content in theirs)
    less = _less(record.timestamp, record.key, value, ours, omitted)
    if fits(less):
        return less
    return _less(record.timestamp, None, value, ours, omitted + len(record.key or b""))


def _less(timestamp: int, key: bytes | None, value: bytes | None, headers: Headers, omitted: int) -> Letter:
    return Letter(timestamp, key, value, (*headers, (OMITTED, b"%d" % omitted)))


def _ours(record: Record, dead: Dead, group: str) -> Headers:
    return (
        (REASON, dead.bad.reason.encode()),
        (MESSAGE, dead.bad.message[:_MAX_MESSAGE].encode(errors="replace")),
        (TOPIC, record.topic.encode()),
        (PARTITION, b"%d" % record.partition),
        (OFFSET, b"%d" % record.offset),
        (ATTEMPTS, b"%d" % dead.attempts),
        (GROUP, group.encode()),
    )
