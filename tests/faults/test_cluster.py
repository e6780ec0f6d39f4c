"""A broker of three servers loses one: requests are answered or refused, and all goes on."""

from __future__ import annotations

from pathlib import Path

from qinfer.bus import QueueSpec, connect
from qinfer.naming import Names
from tests.faults.load import MODEL, Load
from tests.helpers.cluster import Cluster, Member
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import eventually


async def lead(cluster: Cluster, namespace: str, model: str) -> Member:
    """Make a model's queue before there is anybody, to know which member leads it."""
    bus = connect(cluster.url, namespace=namespace)
    await bus.start()
    await bus.declare(model, QueueSpec(replicas=3))
    await bus.close()
    return await cluster.leader(Names(namespace).stream(model))


def member_of(cluster: Cluster, running: Fleet) -> Member:
    """The member that the gateway is connected to."""
    url = running.bus._connection.client.connected_url
    assert url is not None
    return next(member for member in cluster.members if member.port == url.port)


async def test_members_that_die_cost_time_or_a_503(
    namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    async with Cluster(tmp_path / "cluster") as cluster:
        leader = await lead(cluster, namespace, MODEL)
        # The gateway knows one member, and must learn of the others.
        door = next(member for member in cluster.members if member is not leader)
        async with fleet(door.url, namespace, served_repository, request_timeout=15.0) as running:
            first = await running.add_worker(MODEL, replicas=3, ack_wait=1.0)
            second = await running.add_worker(MODEL, replicas=3, ack_wait=1.0)
            assert member_of(cluster, running) is door
            async with Load(running.port) as load:
                await load.more()
                await cluster.kill(leader)
                assert await cluster.leader(Names(namespace).stream(MODEL)) is not leader
                await load.more()
                await cluster.start(leader)
                await cluster.formed()
                await cluster.kill(door)
                await eventually(lambda: not running.bus.connected, "the gateway lost its member")
                await load.more()
                await cluster.start(door)
                await cluster.formed()
            assert running.in_flight == 0
            assert {worker.id for worker in running.front.catalog.directory.workers} == {first.id, second.id}
            print(load.refusals, load.answers)
