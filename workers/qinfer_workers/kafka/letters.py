"""Dead letters: the record as it was, and why it was not scored, in headers."""

from __future__ import annotations

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
"""Header of a letter whose value was too large for its topic: how large it was."""

_OURS = frozenset((REASON, MESSAGE, TOPIC, PARTITION, OFFSET, ATTEMPTS, GROUP, OMITTED))
_MAX_MESSAGE = 2048  # characters; models may raise whatever they like


def letter_headers(record: Record, dead: Dead, group: str) -> Headers:
    """The headers of a dead letter: the record's own, but for those of an earlier death, and ours.

    Args:
        record: the record.
        dead: why it was not scored.
        group: the consumer group that tried.
    """
    return (
        *[header for header in record.headers if header[0] not in _OURS],
        (REASON, dead.bad.reason.encode()),
        (MESSAGE, dead.bad.message[:_MAX_MESSAGE].encode(errors="replace")),
        (TOPIC, record.topic.encode()),
        (PARTITION, b"%d" % record.partition),
        (OFFSET, b"%d" % record.offset),
        (ATTEMPTS, b"%d" % dead.attempts),
        (GROUP, group.encode()),
    )
