"""Fixtures that every folder uses."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from qinfer.embedded import EmbeddedServer
from tests.helpers import kafka as kafka_cluster
from tests.helpers import served_models
from tests.helpers.system import System, serving


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> None:
    """Under nohup, or behind a shell's `&`, all we start would ignore the signals that tests send it.

    What is ignored is ignored by children, too; what has a handler that does nothing is not.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_url() -> AsyncIterator[str]:
    """A real nats-server with JetStream, shared by the tests; each takes a namespace of its own."""
    async with EmbeddedServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka_cluster.KafkaCluster]:
    """A real Kafka that we started, shared by the tests; for what another cluster may not have."""
    if reason := kafka_cluster.unavailable():
        pytest.skip(reason)
    with kafka_cluster.KafkaCluster(tmp_path_factory.mktemp("kafka") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> str:
    """Bootstrap servers of a real Kafka, shared by the tests; each takes topics and groups of its own."""
    given = kafka_cluster.required()
    if given:
        return given
    cluster: kafka_cluster.KafkaCluster = request.getfixturevalue("own_kafka")
    return cluster.bootstrap


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def served_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model repository of the system tests (`tests.helpers.served_models`); only to be read."""
    return served_models.build(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def system(served_repository: Path) -> Iterator[System]:
    """One `qinfer serve` in processes of its own for all tests that break nothing."""
    with serving(served_repository) as running:
        yield running
