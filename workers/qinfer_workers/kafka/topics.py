"""The topics of a pipeline: they are there, or made, before anything is read."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qinfer.errors import BusUnavailable, QInferError, SetupError
from qinfer_workers.kafka.clients import as_error, new_admin
from qinfer_workers.kafka.contract import Pipeline

if TYPE_CHECKING:
    from aiokafka.admin import AIOKafkaAdminClient

logger = logging.getLogger(__name__)

_DEFAULT_MAX_BYTES = 1_048_588  # Kafka's own default of max.message.bytes
_DEFAULT_LEAD_MS = 3_600_000  # likewise of message.timestamp.after.max.ms
_MAX_BYTES = "max.message.bytes"
_MAX_AGE = "message.timestamp.before.max.ms"
_MAX_LEAD = "message.timestamp.after.max.ms"
_TIMEOUT = 60.0  # seconds in which brokers answer, or are away
_PAUSE = 0.1
_UNKNOWN_TOPIC = 3
_EXISTS = 36


@dataclass(frozen=True, slots=True)
class Destination:
    """A topic that is written to.

    Attributes:
        name: of the topic.
        partitions: how many it had when the scorer started; at least one.
        max_bytes: largest batch of records it takes.
        max_age_ms, max_lead_ms: how far the timestamps it takes may lie before and after the broker's time.
    """

    name: str
    partitions: int
    max_bytes: int
    max_age_ms: int = sys.maxsize
    max_lead_ms: int = _DEFAULT_LEAD_MS

    def partition(self, source: int) -> int:
        """Where records of a source partition go: always to the same, so that they keep their order."""
        return source % self.partitions


async def destinations(pipeline: Pipeline) -> tuple[Destination, Destination | None]:
    """Look at the topics, create what may be created; returns output and dead letters.

    Raises:
        SetupError: a topic is missing, or an output is also a source.
        BusUnavailable: the brokers do not answer.
    """
    topics = pipeline.topics
    outputs = [topics.output, topics.dead] if topics.dead else [topics.output]
    for name in outputs:
        if name in topics.sources:
            raise SetupError(f"topic {name!r} is both read and written; expected different ones")
    what = f"Kafka at {pipeline.client.bootstrap}"
    admin = new_admin(pipeline.client)
    try:
        async with asyncio.timeout(_TIMEOUT):
            await admin.start()
            known = await _described(admin, [*topics.sources, *outputs])
            for name in topics.sources:
                if name not in known:
                    raise SetupError(f"topic {name!r} is to be read and does not exist")
            missing = [name for name in outputs if name not in known]
            if missing and not topics.create:
                raise SetupError(
                    f"topic {missing[0]!r} is to be written and does not exist; create it, or have it "
                    "created (create_topics)"
                )
            if missing:
                await _create(admin, pipeline, missing, known[topics.sources[0]])
                known = await _created(admin, known, missing)
            limits = await _limits(admin, outputs)
    except QInferError:
        raise
    except TimeoutError:
        raise BusUnavailable(f"{what}: no answer within {_TIMEOUT:.0f} s") from None
    except Exception as error:
        raise as_error(error, what) from error
    finally:
        await admin.close()
    found = [
        Destination(
            name,
            known[name].partitions,
            limits.get((name, _MAX_BYTES), _DEFAULT_MAX_BYTES),
            limits.get((name, _MAX_AGE), sys.maxsize),
            limits.get((name, _MAX_LEAD), _DEFAULT_LEAD_MS),
        )
        for name in outputs
    ]
    return found[0], found[1] if topics.dead else None


async def source_partitions(pipeline: Pipeline) -> int:
    """How many partitions the sources have together.

    Raises:
        BusUnavailable, SetupError: the brokers do not tell.
    """
    admin = new_admin(pipeline.client)
    what = f"Kafka at {pipeline.client.bootstrap}"
    try:
        async with asyncio.timeout(_TIMEOUT):
            await admin.start()
            known = await _described(admin, pipeline.topics.sources)
    except TimeoutError:
        raise BusUnavailable(f"{what}: no answer within {_TIMEOUT:.0f} s") from None
    except Exception as error:
        raise as_error(error, what) from error
    finally:
        await admin.close()
    return sum(topic.partitions for topic in known.values())


@dataclass(frozen=True, slots=True)
class _Topic:
    """What is known of a topic: partitions, and copies of the first of them."""

    partitions: int
    replicas: int


async def _described(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, _Topic]:
    """Those topics that exist."""
    found: dict[str, _Topic] = {}
    for topic in await admin.describe_topics(list(dict.fromkeys(names))):
        if topic["error_code"] == _UNKNOWN_TOPIC:
            continue
        if topic["error_code"]:
            from aiokafka.errors import for_code

            raise for_code(topic["error_code"])(topic["topic"])
        partitions = topic["partitions"]
        found[topic["topic"]] = _Topic(len(partitions), len(partitions[0]["replicas"]))
    return found


async def _create(
    admin: AIOKafkaAdminClient, pipeline: Pipeline, names: Iterable[str], source: _Topic
) -> None:
    from aiokafka.admin import NewTopic
    from aiokafka.errors import for_code

    topics = pipeline.topics
    replicas = topics.replicas if topics.replicas > 0 else source.replicas
    wanted = [NewTopic(name, topics.create, replicas) for name in names]
    answer = await admin.create_topics(wanted)
    for name, code, *detail in answer.topic_errors:
        if code and code != _EXISTS:  # another scorer may be creating it, too
            raise SetupError(f"topic {name!r} cannot be created: {for_code(code).__name__} {detail}")
        logger.info("topic %s created with %d partitions", name, topics.create)


async def _created(
    admin: AIOKafkaAdminClient, known: Mapping[str, _Topic], names: Iterable[str]
) -> dict[str, _Topic]:
    """What is known once the new topics are: brokers learn of them one after the other."""
    missing = set(names)
    while True:
        found = await _described(admin, missing)
        if missing <= found.keys():
            return {**known, **found}
        await asyncio.sleep(_PAUSE)


async def _limits(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[tuple[str, str], int]:
    """What each topic takes, by its name and that of the setting, where we may know."""
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
    from aiokafka.errors import KafkaError

    wanted = dict.fromkeys((_MAX_BYTES, _MAX_AGE, _MAX_LEAD), "")
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in names]
    limits: dict[tuple[str, str], int] = {}
    try:
        answers: list[Any] = await admin.describe_configs(resources)
    except KafkaError as error:
        logger.info("limits of topics are not known: %s", error)
        return limits
    for answer in answers:
        for code, _, _, name, entries in answer.resources:
            for key, value, *_ in entries:
                if not code and key in wanted and value:
                    limits[name, key] = int(value)
    return limits
