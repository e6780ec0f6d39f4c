"""Makes aiokafka's clients of a pipeline, and errors of qinfer of theirs.

Everything that imports aiokafka is imported after `require`.
"""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qinfer.errors import BusUnavailable, QInferError, SetupError
from qinfer.telemetry.logs import hold_back_secrets
from qinfer_workers.kafka.contract import Client, Pipeline

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient

BATCH_BYTES = 512 * 1024
"""Most that is written at once to one partition."""

_MAX_POLL_INTERVAL = 300.0  # seconds without a poll after which a member counts as hung
_METADATA_AGE = 30.0  # seconds after which new partitions are noticed
_REBALANCE_SLACK = 10.0  # seconds to finish what is in flight, and some
_HEARTBEATS = 3  # within a session timeout


def require() -> None:
    """Check that aiokafka is installed.

    Raises:
        SetupError: it is not; names the extra.
    """
    try:
        importlib.import_module("aiokafka")
    except ImportError as error:
        raise SetupError(f"Kafka needs aiokafka: pip install 'qinfer[kafka]' ({error})") from None


def new_consumer(pipeline: Pipeline) -> AIOKafkaConsumer:
    """A consumer of the pipeline's group that commits nothing by itself. It is not subscribed yet."""
    from aiokafka import AIOKafkaConsumer
    from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

    client, limits = pipeline.client, pipeline.limits
    session = client.session_timeout
    return AIOKafkaConsumer(
        **{
            "group_id": pipeline.group,
            "enable_auto_commit": False,
            # Where a group begins is said by the session. This is for what was deleted before it was read:
            # go on with what is left, and skip none of that.
            "auto_offset_reset": "earliest",
            "isolation_level": "read_committed",
            # Eager, as all of aiokafka's are, but partitions mostly stay where they are.
            # It keeps what a member had in its class: each member has one of its own.
            "partition_assignment_strategy": (type("Sticky", (StickyPartitionAssignor,), {}),),
            "session_timeout_ms": _ms(session),
            "heartbeat_interval_ms": _ms(session / _HEARTBEATS),
            "rebalance_timeout_ms": _ms(max(session, limits.drain_timeout + _REBALANCE_SLACK)),
            "max_poll_interval_ms": _ms(_MAX_POLL_INTERVAL),
            "metadata_max_age_ms": _ms(_METADATA_AGE),
            **_common(client),
            **client.consumer,
        }
    )


def max_poll_interval(client: Client) -> float:
    """Seconds without a poll after which a member counts as hung."""
    given = client.consumer.get("max_poll_interval_ms")
    return float(given) / 1000 if given else _MAX_POLL_INTERVAL


def new_producer(pipeline: Pipeline, *, max_batch_size: int, transactional_id: str = "") -> AIOKafkaProducer:
    """An idempotent producer, transactional if it gets an id. It is not started yet."""
    from aiokafka import AIOKafkaProducer

    client = pipeline.client
    transactional: Mapping[str, Any] = {}
    if transactional_id:
        transactional = {
            "transactional_id": transactional_id,
            "transaction_timeout_ms": _ms(client.transaction_timeout),
        }
    return AIOKafkaProducer(
        **{
            "enable_idempotence": True,
            "acks": "all",
            "max_batch_size": max_batch_size,
            "metadata_max_age_ms": _ms(_METADATA_AGE),
            **transactional,
            **_common(client),
            **client.producer,
        }
    )


def new_admin(client: Client) -> AIOKafkaAdminClient:
    """A client that looks at topics and creates them. It is not started yet."""
    from aiokafka.admin import AIOKafkaAdminClient

    return AIOKafkaAdminClient(**_common(client))


def as_error(error: BaseException, what: str) -> QInferError:
    """What an error of aiokafka means: `SetupError` where no retry will help.

    Args:
        error: the error.
        what: what was tried, for the message.
    """
    from aiokafka import errors

    if isinstance(error, QInferError):
        return error
    if isinstance(error, errors.InconsistentGroupProtocolError):
        return SetupError(
            f"{what}: the consumer group has members of another kind; expected a group of its own for each "
            "pipeline (group)"
        )
    refused = (
        errors.TopicAuthorizationFailedError,
        errors.GroupAuthorizationFailedError,
        errors.ClusterAuthorizationFailedError,
        errors.TransactionalIdAuthorizationFailed,
        errors.AuthenticationFailedError,
        errors.SaslAuthenticationFailed,
        errors.UnsupportedSaslMechanismError,
        errors.AuthenticationMethodNotSupported,
        errors.UnsupportedCodecError,
    )
    text = f"{what}: {type(error).__name__}: {error}"
    return SetupError(text) if isinstance(error, refused) else BusUnavailable(text)


def _common(client: Client) -> dict[str, Any]:
    hold_back_secrets()
    options = {"bootstrap_servers": client.bootstrap, "client_id": "qinfer-kafka-score", **client.options}
    if "SSL" in str(options.get("security_protocol", "")).upper():
        options["ssl_context"] = _tls(client)
    return options


def _tls(client: Client) -> ssl.SSLContext:
    """A context that checks whom it talks to.

    Raises:
        SetupError: a file cannot be read, or is not what it should be.
    """
    context = ssl.create_default_context()
    field = "ca_file"
    try:
        if client.ca_file:
            context.load_verify_locations(cafile=client.ca_file)
        if client.cert_file:
            field = "cert_file"
            context.load_cert_chain(client.cert_file, client.key_file or None, client.key_password or None)
    except (OSError, ssl.SSLError, ValueError) as error:
        path = getattr(client, field)
        raise SetupError(f"{field}: {path}: {error}; expected a PEM file that can be read") from None
    return context


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
