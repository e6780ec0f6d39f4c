"""Names of topics and groups, and how each kind of topic is kept.

Kafka allows letters, digits, '.', '_' and '-', at most 249 of them, and takes no two topics that differ only
in '.' and '_'. So names are escaped with '-XX', '.' only separates, and '_' is plain nowhere but in the last
part, where nothing can be mistaken for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from qinfer.bus.base import BLOB_LIFETIME
from qinfer.naming import Names, escape

_MAX_TOKEN = 150  # prefix, namespace and kind stay below Kafka's 249 characters beside it
_KEPT = 100  # characters of a longer name that people still see
_SEGMENT_BYTES = 64 << 20
_BLOBS_MAX_BYTES = 2 << 30
_LETTERS_LIFETIME = 30 * 24 * 3600.0
_LETTERS_MAX_BYTES = 64 << 20
_NEWS_LIFETIME = 600.0
_HELD = 16 * 1024
_SHORT = 3600.0  # buckets whose entries live no longer are kept by age alone
RESERVED = 32 * 1024
"""Bytes that a record takes beside its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic to be made.

    Attributes:
        name: of the topic.
        partitions: how many.
        replicas: copies of it; 0 for what the cluster has room for, up to three.
        settings: of the topic.
    """

    name: str
    partitions: int = 1
    replicas: int = 0
    settings: Mapping[str, str]


class KafkaNames:
    """All topics and groups of one namespace."""

    def __init__(self, names: Names, *, max_payload: int) -> None:
        self._names = names
        self._prefix = f"qinfer.{names.namespace.replace('-', '-2D').replace('_', '-5F')}"
        self._max_record = max_payload + RESERVED
        self.queues_bucket = f"qinfer_{names.namespace}_queues"
        self.blobs_bucket = f"qinfer_{names.namespace}_places"
        self.ids_bucket = f"qinfer_{names.namespace}_ids"
        self.letters_bucket = f"qinfer_{names.namespace}_dead"

    def queue(self, model: str, version: str = "") -> str:
        """The topic of the frames for a version of a model, and the group of those who work them off."""
        self._names.requests(model, version)  # raises for names that cannot be
        return f"{self._prefix}.{f'v{version}' if version else 'latest'}.{_token(model)}"

    def queue_topic(self, name: str, *, partitions: int, replicas: int) -> Topic:
        """A queue's topic: nothing in it is forgotten before it is done, and deleted by who did it."""
        keep = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
        return self._topic(name, keep, partitions=partitions, replicas=replicas)

    def replies(self, partitions: int) -> Topic:
        """Where answers arrive, each connection's in one partition."""
        return self._topic(f"{self._prefix}.replies", _for_a_while(_NEWS_LIFETIME), partitions=partitions)

    def control(self) -> Topic:
        """Questions to everybody, and cancellations: read from its end by everybody."""
        return self._topic(f"{self._prefix}.control", _for_a_while(_NEWS_LIFETIME))

    def blobs(self, partitions: int) -> Topic:
        """The data of large tensors, in chunks; `blobs_bucket` knows where."""
        settings = _for_a_while(BLOB_LIFETIME) | {"retention.bytes": str(_BLOBS_MAX_BYTES // partitions)}
        return self._topic(f"{self._prefix}.blobs", settings, partitions=partitions)

    def bucket(self, bucket: str) -> Topic:
        """The log of a registry bucket."""
        name = bucket.removeprefix(f"qinfer_{self._names.namespace}_")
        lifetime = self.lifetime(bucket)
        if lifetime is None:
            settings = {"cleanup.policy": "compact", "min.compaction.lag.ms": str(int(_SHORT * 1000))}
        elif lifetime <= _SHORT:
            settings = _for_a_while(2 * lifetime)
        else:
            settings = _for_a_while(lifetime) | {"cleanup.policy": "compact,delete"}
        return self._topic(f"{self._prefix}.{_token(name)}", settings)

    def lifetime(self, bucket: str) -> float | None:
        """Seconds after which an entry of a bucket is forgotten; None for never."""
        if bucket == self.blobs_bucket:
            return BLOB_LIFETIME
        if bucket == self.ids_bucket:
            return self._names.lifetime(self._names.answers_bucket)
        if bucket == self.letters_bucket:
            return _LETTERS_LIFETIME
        return self._names.lifetime(bucket)

    def capacity(self, bucket: str) -> int | None:
        """Bytes of a bucket's values before the oldest make place for new ones; None for no bound."""
        return _LETTERS_MAX_BYTES if bucket == self.letters_bucket else self._names.capacity(bucket)

    def held(self) -> int:
        """Bytes of the largest value of a bucket that is held in memory; larger ones are read when wanted."""
        return _HELD

    def _topic(
        self, name: str, settings: Mapping[str, str], *, partitions: int = 1, replicas: int = 0
    ) -> Topic:
        common = {
            "message.timestamp.type": "LogAppendTime",  # one clock for what is stored: the broker's
            "segment.bytes": str(_SEGMENT_BYTES),
            "max.message.bytes": str(self._max_record),
        }
        return Topic(name=name, partitions=partitions, replicas=replicas, settings={**common, **settings})


def _for_a_while(seconds: float) -> dict[str, str]:
    milliseconds = str(int(seconds * 1000))
    return {"cleanup.policy": "delete", "retention.ms": milliseconds, "segment.ms": milliseconds}


def _token(name: str) -> str:
    """The last part of a topic's name: what is too long for one is cut and told apart by a digest."""
    escape(name)  # raises for names that cannot be
    token = re.sub(rb"[^A-Za-z0-9_]", lambda match: b"-%02X" % match[0][0], name.encode()).decode()
    if len(token) > _MAX_TOKEN:
        token = f"{token[:_KEPT]}-x{sha256(name.encode()).hexdigest()[:32]}"
    return token
