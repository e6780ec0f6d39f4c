"""A real Apache Kafka on loopback, in KRaft mode, whose nodes can be killed and brought back.

Maven resolves its jars once into the user's cache folder; after that nothing is downloaded. A cluster that
`KAFKA_BOOTSTRAP_SERVERS` names is used instead, where its nodes need not be touched.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from qinfer.embedded.guard import guarded

VERSION = "4.1.1"
"""Of Apache Kafka."""

HOST = "127.0.0.1"
VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
USER, PASSWORD = "qinfer", "not-for-logs"
"""Of the listener that asks for SASL (mechanism PLAIN) over TLS."""

_PATIENCE = 60.0  # seconds for a JVM on a busy machine
_RESOLVE_TIMEOUT = 600.0
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
# ApiVersions v0 without a client id: length, key 18, version 0, correlation id 0, null string.
_ANYBODY_THERE = bytes.fromhex("0000000a0012000000000000ffff")
_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>qinfer.tests</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{kafka}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


def unavailable() -> str:
    """Why no Kafka can be started here; "" when one can."""
    missing = [program for program in ("java", "mvn") if shutil.which(program) is None]
    if not missing or (missing == ["mvn"] and _complete(_cache()).exists()):
        return ""
    return f"no {' and no '.join(missing)}: a real Kafka cannot be started (or set {VARIABLE})"


def jars() -> Path:
    """The folder of Kafka's jars, filled by Maven on first use.

    Raises:
        RuntimeError: Maven could not resolve them.
    """
    cache = _cache()
    if _complete(cache).exists():
        return cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
        pom = Path(scratch) / "pom.xml"
        pom.write_text(_POM.format(kafka=VERSION))
        library = Path(scratch) / "lib"
        command = ["mvn", "-B", "-q", "-f", str(pom), _PLUGIN, f"-DoutputDirectory={library}"]
        command.append("-DincludeScope=runtime")
        for offline in (["-o"], []):
            done = subprocess.run(
                [*command, *offline],
                check=False,
                timeout=_RESOLVE_TIMEOUT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"maven could not resolve Kafka {VERSION}:\n{done.stdout[-2000:]}")
        _complete(library).touch()
        with suppress(OSError):  # another process was quicker
            library.rename(cache)
    return cache


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "qinfer" / f"kafka-{VERSION}"


def _complete(library: Path) -> Path:
    return library / ".complete"


@dataclass(slots=True)
class Node:
    """One combined broker and controller.

    Attributes:
        id: from 1.
        port, secure_port, controller_port: where plain and SASL_SSL clients and the other nodes connect;
            the same after a restart.
        directory: its configuration, data and log.
    """

    id: int
    port: int
    secure_port: int
    controller_port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self.directory / "log").read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL. Idempotent."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """SIGTERM: it hands its partitions over first. Idempotent."""
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            finally:
                process.kill()


class KafkaCluster:
    """One or several real Kafka nodes. A context manager, which returns when they answer.

    Args:
        directory: an empty folder for what they store.
        nodes: how many; three go on with one less.
        heap: Java heap of each.
        quick: have the JVM start quickly rather than run fast: for tests, not for figures.
        settings: of the brokers, beside and over our own.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 1,
        heap: str = "384m",
        quick: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        self._heap = heap
        self._quick = quick
        self._settings = dict(settings or {})
        ports = iter(_free_ports(3 * nodes))
        self.nodes = [
            Node(number, next(ports), next(ports), next(ports), directory / f"node-{number}")
            for number in range(1, nodes + 1)
        ]
        self._authority = trustme.CA()

    @property
    def bootstrap(self) -> str:
        """All nodes, as Kafka clients take them."""
        return ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    @property
    def secure_bootstrap(self) -> str:
        """Their listeners that ask for SASL over TLS."""
        return ",".join(f"{HOST}:{node.secure_port}" for node in self.nodes)

    @property
    def authority(self) -> Path:
        """PEM file of the certificate authority of those listeners."""
        return self._directory / "ca.pem"

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._authority.cert_pem.write_to_path(self.authority)
        try:
            identity = secrets.token_urlsafe(12)[:16].encode()
            cluster = uuid.UUID(bytes=identity)
            for node in self.nodes:
                self._format(node, cluster)
            for node in self.nodes:
                self.spawn(node)
            for node in self.nodes:
                self.wait(node)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all nodes. Idempotent."""
        for node in self.nodes:
            node.kill()

    def spawn(self, node: Node) -> None:
        """Start a node that does not run, with the data it had; it may not answer yet."""
        assert node.process is None
        with (node.directory / "log").open("ab") as log:
            node.process = subprocess.Popen(
                guarded([*self._java(), "kafka.Kafka", str(node.directory / "server.properties")]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, node: Node) -> None:
        """Wait until a node answers."""
        give_up = time.monotonic() + _PATIENCE
        while not self._answers(node, give_up):
            time.sleep(0.05)

    async def ready(self, node: Node) -> None:
        """Wait until a node answers, without holding the event loop up."""
        give_up = time.monotonic() + _PATIENCE
        while not await asyncio.to_thread(self._answers, node, give_up):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)

    def _answers(self, node: Node, give_up: float) -> bool:
        assert node.process is not None
        if node.process.poll() is not None:
            raise RuntimeError(f"Kafka ended with status {node.process.returncode}:\n{node.log[-3000:]}")
        if time.monotonic() > give_up:
            raise TimeoutError(f"Kafka did not answer within {_PATIENCE:.0f} s:\n{node.log[-3000:]}")
        try:
            with socket.create_connection((HOST, node.port), timeout=2) as connection:
                connection.sendall(_ANYBODY_THERE)
                return bool(connection.recv(4))
        except OSError:
            return False

    def _java(self) -> list[str]:
        speed = ["-XX:TieredStopAtLevel=1"] if self._quick else []
        return [
            "java",
            f"-Xmx{self._heap}",
            "-Xms64m",
            "-XX:+UseSerialGC",
            *speed,
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-cp",
            f"{jars()}/*",
        ]

    def _format(self, node: Node, cluster: uuid.UUID) -> None:
        node.directory.mkdir(parents=True)
        properties = node.directory / "server.properties"
        certificate = self._authority.issue_cert(HOST)
        (node.directory / "server.pem").write_bytes(_keystore(certificate))
        lines = [f"{name}={value}" for name, value in self._properties(node).items()]
        properties.write_text("\n".join(lines) + "\n")
        done = subprocess.run(
            [
                *self._java(),
                "kafka.tools.StorageTool",
                "format",
                "-t",
                _kafka_uuid(cluster),
                "-c",
                properties,
            ],
            check=False,
            timeout=_PATIENCE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"Kafka's storage could not be formatted:\n{done.stdout[-3000:]}")

    def _properties(self, node: Node) -> dict[str, str]:
        copies = str(len(self.nodes))
        enough = str(len(self.nodes) // 2 + 1)
        voters = ",".join(f"{each.id}@{HOST}:{each.controller_port}" for each in self.nodes)
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.id),
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{node.port},SECURE://{HOST}:{node.secure_port},"
            f"CONTROLLER://{HOST}:{node.controller_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secure.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain."
            f'PlainLoginModule required user_{USER}="{PASSWORD}";',
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(node.directory / "server.pem"),
            "log.dirs": str(node.directory / "data"),
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": enough,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "2",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": enough,
            "transaction.state.log.num.partitions": "2",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": enough,
            # Things that take seconds or minutes elsewhere happen at once here.
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "500",
            "broker.session.timeout.ms": "1500",
            "broker.heartbeat.interval.ms": "250",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
            # Small: many tests share two cores.
            "num.network.threads": "2",
            "num.io.threads": "2",
            "background.threads": "2",
            "log.cleaner.dedupe.buffer.size": str(8 << 20),
            "log.cleaner.backoff.ms": "1000",
            "log.index.size.max.bytes": str(1 << 20),
            "metrics.num.samples": "1",
            **self._settings,
        }


def _keystore(certificate: trustme.LeafCert) -> bytes:
    """A certificate with its key in the one form that Java reads."""
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem + b"".join(blob.bytes() for blob in certificate.cert_chain_pems)


def _kafka_uuid(value: uuid.UUID) -> str:
    return base64.urlsafe_b64encode(value.bytes).decode().rstrip("=")


def _free_ports(count: int) -> Sequence[int]:
    """Ports nobody uses now. The nodes must know each other's before they start."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def required() -> str:
    """The cluster that `KAFKA_BOOTSTRAP_SERVERS` names, or ""; skips the test where there can be none."""
    given = os.environ.get(VARIABLE, "")
    if not given and (reason := unavailable()):
        pytest.skip(reason)
    return given


def topic_name(stem: str = "test") -> str:
    """A name that no other test has."""
    return f"{stem}-{secrets.token_hex(6)}"


async def create_topics(
    bootstrap: str,
    *names: str,
    partitions: int = 1,
    replicas: int = 1,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Create topics and wait until the cluster knows leaders of all their partitions."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        topics = [NewTopic(name, partitions, replicas, topic_configs=dict(settings or {})) for name in names]
        answer = await admin.create_topics(topics)
        failed = [entry for entry in answer.topic_errors if entry[1]]
        assert not failed, failed
        give_up = time.monotonic() + _PATIENCE
        while True:
            found = await admin.describe_topics(list(names))
            leaders = [
                partition["leader"]
                for topic in found
                if not topic["error_code"]
                for partition in topic["partitions"]
                if not partition["error_code"]
            ]
            if len(leaders) == partitions * len(names) and min(leaders) >= 0:
                return
            assert time.monotonic() < give_up, found
            await asyncio.sleep(0.02)
    finally:
        await admin.close()
