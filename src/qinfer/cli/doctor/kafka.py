"""Kafka as the broker: whether it answers, and lets us do what the bus does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from qinfer.bus.kafka.connection import Connection
from qinfer.bus.kafka.names import RESERVED, KafkaNames
from qinfer.bus.kafka.options import KafkaOptions
from qinfer.bus.kafka.security import KafkaSecurity
from qinfer.cli.doctor.findings import Finding, Status
from qinfer.errors import QInferError
from qinfer.naming import Names

SCHEMES = ("kafka", "kafkas")


async def check(url: str) -> AsyncIterator[Finding]:
    """Look at the cluster of a Kafka URL."""
    try:
        servers, options = KafkaOptions.of(url)
        connection = Connection(
            servers,
            name="qinfer-doctor",
            security=KafkaSecurity.from_environment(tls=url.startswith("kafkas:")),
            largest=options.max_payload + RESERVED,
            replicas=options.replicas,
        )
        await connection.start()
    except QInferError as error:
        yield Finding(
            check="broker",
            status=Status.FAIL,
            detail=error.message,
            advice="start it, or correct the URL in QINFER_NATS and what QINFER_KAFKA_* say",
        )
        return
    try:
        yield await _reached(connection, ",".join(servers))
        yield await _topics(connection, options)
    except QInferError as error:
        yield Finding(check="broker", status=Status.FAIL, detail=error.message)
    finally:
        await connection.close()


async def _reached(connection: Connection, shown: str) -> Finding:
    loop = asyncio.get_running_loop()
    started = loop.time()
    brokers = await connection.brokers()
    took = (loop.time() - started) * 1000
    detail = f"{shown}: Kafka with {brokers} broker{'s' * (brokers != 1)}, round trip {took:.1f} ms"
    return Finding(check="broker", status=Status.OK, detail=detail)


async def _topics(connection: Connection, options: KafkaOptions) -> Finding:
    names = KafkaNames(Names(), max_payload=options.max_payload)
    queue = names.queue_topic(names.queue("doctor"), partitions=options.partitions, replicas=0)
    why = await connection.may_make(queue)
    if why:
        return Finding(
            check="topics",
            status=Status.FAIL,
            detail=f"{queue.name} could not be made: {why}",
            advice="allow this user to create topics whose names begin with 'qinfer.'",
        )
    return Finding(
        check="topics", status=Status.OK, detail=f"can be made, {options.partitions} partitions each"
    )
