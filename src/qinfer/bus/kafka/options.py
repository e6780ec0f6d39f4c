"""What a kafka:// URL says beside the brokers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from urllib.parse import parse_qsl, urlsplit

from qinfer.errors import SetupError

_RANGES = {
    "partitions": (1, 1024),
    "reply_partitions": (1, 1024),
    "replicas": (0, 32),
    "max_payload": (64 << 10, 64 << 20),
    "session_ms": (500, 300_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """How the topics of a namespace are made; all who share it have to say the same.

    Attributes:
        partitions: of each queue: as many workers can share it.
        reply_partitions: of the topic of answers; gateways that share one read each other's answers, too.
        replicas: copies of each topic; 0 for as many as there are brokers, up to three.
        max_payload: largest frame in bytes. The default is what brokers take unless they are told otherwise.
        session_ms: milliseconds of silence after which a worker counts as dead, where the ack wait is less.
            Brokers refuse less than 6000 unless they are told otherwise (`group.min.session.timeout.ms`).
    """

    partitions: int = 8
    reply_partitions: int = 16
    replicas: int = 0
    max_payload: int = 960 * 1024
    session_ms: int = 6000

    @classmethod
    def of(cls, url: str) -> tuple[list[str], KafkaOptions]:
        """The brokers of a URL, and its options.

        Raises:
            SetupError: it has none, or options that do not exist or cannot be.
        """
        parts = urlsplit(url)
        servers = [server for server in parts.netloc.split(",") if server]
        if not servers or "@" in parts.netloc:
            raise SetupError(
                "a Kafka URL is kafka://HOST:PORT[,HOST:PORT]; user and password are told by"
                " QINFER_KAFKA_USER and QINFER_KAFKA_PASSWORD_FILE"
            )
        known = {field.name for field in fields(cls)}
        told: dict[str, int] = {}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name not in known:
                raise SetupError(
                    f"Kafka URL: option {name!r} is unknown; expected {', '.join(sorted(known))}"
                )
            least, most = _RANGES[name]
            if not value.isdecimal() or not least <= int(value) <= most:
                raise SetupError(f"Kafka URL: {name} is {value!r}; expected {least} to {most}")
            told[name] = int(value)
        return servers, cls(**told)
