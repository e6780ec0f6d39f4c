"""Names on the bus: every subject, stream, consumer and bucket name is built here.

Nothing a client sends reaches a subject raw: model names are escaped to `[A-Za-z0-9_-]` and `=XX` for any
other UTF-8 byte, which is safe in subject tokens, stream names and file names and can be read back.
"""

from __future__ import annotations

import re

from qinfer.errors import InvalidRequest, SetupError

MAX_NAME = 100
"""Longest model name, in characters."""

WORKER_LIFETIME = 7.0
"""Seconds without a renewal after which a worker counts as dead."""

ANSWER_LIFETIME = 600.0
"""Seconds the answer to a request with an idempotency key is kept, and in which the broker knows the key."""

_SUSPECT_LIFETIME = 3600.0
_ANSWERS_CAPACITY = 256 << 20
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_MAX_ESCAPED = 180  # a stream is a folder of the broker: prefix, namespace and this stay below 255 bytes
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,40}")
_VERSION = re.compile(r"[0-9]{1,19}")
_REPLY = re.compile(r"_INBOX\.[A-Za-z0-9_\-=.]{1,200}")
_STORED = re.compile(r"[A-Za-z0-9_-]{1,100}")


def escape(name: str) -> str:
    """Escape a name for use as one subject token. Inverse of `unescape`.

    Raises:
        InvalidRequest: the name is empty, too long, or not valid Unicode.
    """
    if not name or len(name) > MAX_NAME:
        raise InvalidRequest(f"name of {len(name)} characters; expected 1 to {MAX_NAME}")
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"name {name!r} is not valid Unicode") from None
    token = "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in raw)
    if len(token) > _MAX_ESCAPED:
        raise InvalidRequest(
            f"name {name!r} is {len(token)} characters escaped; at most {_MAX_ESCAPED} are allowed"
        )
    return token


def unescape(token: str) -> str:
    """Read an escaped name back."""
    return re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), token.encode()).decode()


def is_version(text: str) -> bool:
    """Whether `text` can be a version of a model: a decimal number of at most 64 bits."""
    return _VERSION.fullmatch(text) is not None


def check_reply(subject: str) -> str:
    """Return `subject` if a worker may publish replies on it.

    A frame says itself where its replies go. Only inboxes are allowed, so that a client cannot have a worker
    publish, with the worker's permissions, on subjects of the broker or of other clients.

    Raises:
        InvalidRequest: it is no inbox.
    """
    if not _REPLY.fullmatch(subject):
        raise InvalidRequest(f"reply subject {subject[:80]!r} is not an inbox; expected _INBOX.<token>")
    return subject


def check_stored(name: str) -> str:
    """Return `name` if it can be that of something stored at the broker: a claim, or a kept answer.

    A frame says itself under which names its tensors and its answer lie, and they become part of a subject.
    One that is too long for a subject would have the broker end the connection of whoever uses it.

    Raises:
        InvalidRequest: it cannot.
    """
    if not _STORED.fullmatch(name):
        raise InvalidRequest(
            f"name {name[:80]!r} of {len(name)} characters, of a claim or a kept answer; expected 1 to 100 "
            "letters, digits, '_' or '-'"
        )
    return name


class Names:
    """All names of one namespace.

    Methods that take a model or a version raise `InvalidRequest` for one that cannot be.
    """

    def __init__(self, namespace: str = "default") -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise SetupError(f"namespace {namespace!r}; expected 1 to 40 letters, digits, '_' or '-'")
        self.namespace = namespace
        self._prefix = f"qinfer.{namespace}"
        self.models_bucket = f"qinfer_{namespace}_models"
        self.workers_bucket = f"qinfer_{namespace}_workers"
        self.suspects_bucket = f"qinfer_{namespace}_suspects"
        self.answers_bucket = f"qinfer_{namespace}_answers"
        self.tensors_bucket = f"qinfer_{namespace}_tensors"
        self.jobs_table = f"qinfer_{namespace}_jobs"
        self.job_data_table = f"qinfer_{namespace}_jobdata"
        self.dead_stream = f"QINFER_{namespace}_DEAD"
        self._lifetimes = {
            self.workers_bucket: WORKER_LIFETIME,
            self.suspects_bucket: _SUSPECT_LIFETIME,
            self.answers_bucket: ANSWER_LIFETIME,
        }

    def lifetime(self, bucket: str) -> float | None:
        """Seconds after which an entry of a bucket is forgotten unless renewed; None for never."""
        return self._lifetimes.get(bucket)

    def capacity(self, bucket: str) -> int | None:
        """Bytes a bucket may take before its oldest entries make place for new ones; None for no bound."""
        return _ANSWERS_CAPACITY if bucket == self.answers_bucket else None

    def stream(self, model: str) -> str:
        """The work-queue stream of a model."""
        return f"QINFER_{self.namespace}={escape(model)}"

    def stream_subjects(self, model: str) -> str:
        """The subjects that stream captures."""
        return f"{self._prefix}.infer.{escape(model)}.*"

    def requests(self, model: str, version: str = "") -> str:
        """Where frames for a model are published; without a version, the worker's newest answers."""
        return f"{self._prefix}.infer.{escape(model)}.{_version(version) or 'latest'}"

    def consumer(self, version: str = "") -> str:
        """The durable consumer within the model's stream."""
        return f"v{_version(version)}" if version else "latest"

    def cancellations(self, model: str) -> str:
        """A core subject on which senders tell a model's workers what nobody waits for any more."""
        return f"{self._prefix}.cancel.{escape(model)}"

    def dead_letters(self, model: str = "") -> str:
        """Where dead letters of a model lie; without a model, those of all."""
        return f"{self._prefix}.dead.{escape(model) if model else '*'}"

    def service(self, model: str) -> str:
        """What tools of the broker call a model. Two may share a name; their metadata tell them apart."""
        return f"qinfer-{self.namespace}-{escape(model).replace('=', '_')}"

    def control(self, topic: str) -> str:
        """A core subject all roles of the namespace listen on, for questions such as statistics."""
        return f"{self._prefix}.control.{topic}"


def _version(text: str) -> str:
    if text and not is_version(text):
        raise InvalidRequest(f"version {text[:40]!r}; expected a decimal number")
    return text
