"""A broker that goes and comes back, and one that wants to know who is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qinfer.bus import QueueSpec, connect
from qinfer.bus.kafka import KafkaBus
from qinfer.errors import BusUnavailable, SetupError
from tests.helpers import kafka as kafka_cluster
from tests.helpers.kafka import KafkaCluster
from tests.helpers.waiting import Mailbox, eventually

SPEC = QueueSpec(ack_wait=1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A Kafka of our own, whose node may be killed."""
    if reason := kafka_cluster.unavailable():
        pytest.skip(reason)
    with KafkaCluster(tmp_path_factory.mktemp("kafka") / "cluster") as running:
        yield running


async def test_a_coordinator_that_is_loading_does_not_say_that_nothing_is_done(
    kafka: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = connect(f"kafka://{kafka}?partitions=2&reply_partitions=1", namespace=namespace)
    assert isinstance(bus, KafkaBus)
    await bus.start()
    try:
        await bus.declare("m", SPEC)
        ask = bus._connection._admin.list_consumer_group_offsets
        asked = 0

        async def loading(*arguments: Any, **options: Any) -> Any:
            nonlocal asked
            asked += 1
            return {} if asked == 1 else await ask(*arguments, **options)

        monkeypatch.setattr(bus._connection._admin, "list_consumer_group_offsets", loading)
        assert await bus.queued("m", "") == 0
        assert asked > 1
    finally:
        await bus.close()


async def test_work_goes_on_after_the_broker_was_killed(
    cluster: KafkaCluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.bus.kafka.connection.LOOK", 0.1)
    monkeypatch.setattr("qinfer.bus.kafka.connection.SILENCE", 0.5)
    url = f"kafka://{cluster.bootstrap}?partitions=2&reply_partitions=1&session_ms=1000"
    worker, gateway = connect(url, namespace=namespace), connect(url, namespace=namespace)
    await worker.start()
    await gateway.start()
    try:
        inbox, replies, seen, lost, back = Mailbox(), Mailbox(), Mailbox(), Mailbox(), Mailbox()
        gateway.on_reply(replies)
        gateway.on_disconnect(lambda: lost("gateway"))
        gateway.on_reconnect(lambda: back("gateway"))
        worker.on_reconnect(lambda: back("worker"))
        await worker.declare("m", SPEC)
        (await worker.consume("m", "", inbox)).grant(100)
        await gateway.watch(gateway.names.models_bucket, seen)
        gateway.publish("m", "", b"held", Mailbox())
        (held,) = await inbox.take()
        (node,) = cluster.nodes
        node.kill()
        worker.reply(gateway.reply_to, b"answer while nobody listens")
        held.ack()
        refused = Mailbox()
        gateway.publish("m", "", b"on its way", refused)
        await lost.take()
        assert not gateway.connected
        with pytest.raises(BusUnavailable, match="down"):
            gateway.publish("m", "", b"refused", refused)
        with pytest.raises(BusUnavailable, match="down"):
            await gateway.get(gateway.names.models_bucket, "m.1")
        cluster.spawn(node)
        assert sorted(await back.take(2)) == ["gateway", "worker"]
        assert await replies.take() == [b"answer while nobody listens"]
        await eventually(
            lambda: b"on its way" in {delivery.payload for delivery in inbox.items}, "the frame on its way"
        )
        gateway.publish("m", "", b"after", refused)
        await eventually(lambda: b"after" in {delivery.payload for delivery in inbox.items}, "another frame")
        await worker.put(worker.names.models_bucket, "m.1", b"record")
        await eventually(lambda: ("m.1", b"record") in seen.items, "an entry")
        assert not refused.items
    finally:
        await worker.close()
        await gateway.close()


async def test_brokers_may_want_a_password_over_tls(
    cluster: KafkaCluster,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    password = tmp_path / "password"
    password.write_text(f"{kafka_cluster.PASSWORD}\n")
    password.chmod(0o600)
    url = f"kafkas://{cluster.secure_bootstrap}?partitions=1&reply_partitions=1"
    monkeypatch.setenv("QINFER_KAFKA_CA", str(cluster.authority))
    monkeypatch.setenv("QINFER_KAFKA_USER", kafka_cluster.USER)
    monkeypatch.setenv("QINFER_KAFKA_SASL_MECHANISM", "PLAIN")
    monkeypatch.setenv("QINFER_KAFKA_PASSWORD_FILE", str(password))
    bus = connect(url, namespace=namespace)
    await bus.start()
    try:
        inbox = Mailbox()
        await bus.declare("m", SPEC)
        (await bus.consume("m", "", inbox)).grant(1)
        bus.publish("m", "", b"frame", Mailbox())
        (delivery,) = await inbox.take()
        delivery.ack()
    finally:
        await bus.close()
    monkeypatch.setattr("qinfer.bus.kafka.connection.CONNECT_TIMEOUT", 0.5)
    password.write_text("wrong")
    stranger = connect(url, namespace=namespace)
    with pytest.raises(BusUnavailable, match="no Kafka broker answers"):
        await stranger.start()
    monkeypatch.delenv("QINFER_KAFKA_CA")
    with pytest.raises(BusUnavailable):  # nobody this host trusts vouches for the broker
        await connect(url, namespace=namespace).start()
    password.unlink()
    with pytest.raises(SetupError, match="QINFER_KAFKA_PASSWORD_FILE"):
        await connect(url, namespace=namespace).start()
    assert kafka_cluster.PASSWORD not in caplog.text


async def test_no_broker_is_said_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("aiokafka")
    monkeypatch.setattr("qinfer.bus.kafka.connection.CONNECT_TIMEOUT", 0.1)
    bus = connect("kafka://127.0.0.1:1")
    with pytest.raises(BusUnavailable, match=r"^no Kafka broker answers at 127\.0\.0\.1:1: "):
        await bus.start()
    assert not caplog.records
    await bus.close()
