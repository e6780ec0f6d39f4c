"""Services as tools of the broker see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import nats
import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.service import NAME_REGEX, SEMVER_REGEX, ServiceInfo, ServicePing, ServiceStats

from qinfer.bus import Bus, connect
from qinfer.bus.nats import NatsBus
from qinfer.bus.services import Service, ServiceCounters
from tests.bus.contract import make_service
from tests.helpers.waiting import PATIENCE, eventually


@pytest_asyncio.fixture
async def bus(nats_url: str, namespace: str) -> AsyncIterator[Bus]:
    bus = connect(nats_url, namespace=namespace)
    await bus.start()
    yield bus
    await bus.close()


@pytest_asyncio.fixture
async def tool(nats_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(nats_url)
    yield client
    await client.close()


@pytest.fixture
def service(namespace: str) -> Service:
    return make_service(f"qinfer-{namespace}-m")


async def ask(tool: Client, subject: str) -> dict[str, Any]:
    """One answer; a `NoRespondersError` where the broker knows nobody who would give one."""
    answer: dict[str, Any] = json.loads((await tool.request(subject, b"", timeout=PATIENCE)).data)
    return answer


async def heard(bus: Bus) -> None:
    """Wait until the broker knows what the bus has subscribed to and given up."""
    await bus.ask("nobody", b"", answers=1, timeout=PATIENCE)


def subjects(verb: str, service: Service) -> list[str]:
    return [f"$SRV.{verb}.{service.name}", f"$SRV.{verb}.{service.name}.{service.id}"]


async def test_each_verb_is_answered_in_its_form(bus: Bus, tool: Client, service: Service) -> None:
    counted = ServiceCounters(
        requests=4, errors=1, last_error="model_failed", processing_ns=4002, data={"rows": 9}
    )
    service = make_service(service.name, counters=lambda: counted)
    await bus.advertise([service])
    await heard(bus)
    identity = {"name": service.name, "id": service.id, "version": "3.0.0", "metadata": {"model": "m"}}
    endpoint = {"name": "infer", "subject": "qinfer.x.infer.m.3", "queue_group": "v3"}
    for subject in subjects("PING", service):
        assert await ask(tool, subject) == {"type": "io.nats.micro.v1.ping_response", **identity}
    for subject in subjects("INFO", service):
        assert await ask(tool, subject) == {
            "type": "io.nats.micro.v1.info_response",
            **identity,
            "description": "what it is",
            "endpoints": [{**endpoint, "metadata": {}}],
        }
    for subject in subjects("STATS", service):
        assert await ask(tool, subject) == {
            "type": "io.nats.micro.v1.stats_response",
            **identity,
            "started": "2026-01-02T03:04:05.000Z",
            "endpoints": [
                {
                    **endpoint,
                    "num_requests": 4,
                    "num_errors": 1,
                    "last_error": "model_failed",
                    "processing_time": 4002,
                    "average_processing_time": 1000,
                    "data": {"rows": 9},
                }
            ],
        }


async def test_the_library_of_the_broker_can_read_them(bus: Bus, tool: Client, service: Service) -> None:
    await bus.advertise([service])
    await heard(bus)
    ping, info, stats = [
        form.from_dict(await ask(tool, f"$SRV.{verb}.{service.name}"))
        for verb, form in (("PING", ServicePing), ("INFO", ServiceInfo), ("STATS", ServiceStats))
    ]
    for told in (ping, info, stats):
        assert NAME_REGEX.match(told.name)
        assert SEMVER_REGEX.match(told.version)
        assert told.id == service.id
    assert stats.endpoints[0].average_processing_time == 0


async def test_all_who_offer_answer_and_each_for_all_it_offers(
    bus: Bus, tool: Client, namespace: str, nats_url: str
) -> None:
    other = connect(nats_url, namespace=namespace)
    await other.start()
    mine = [make_service(f"qinfer-{namespace}-{model}", id=f"a-{model}") for model in "mn"]
    theirs = [make_service(f"qinfer-{namespace}-m", id="b-m")]
    await bus.advertise(mine)
    await other.advertise(theirs)
    await heard(bus)
    await heard(other)
    seen: list[tuple[str, str]] = []

    async def receive(message: Msg) -> None:
        told = json.loads(message.data)
        if told["name"].startswith(f"qinfer-{namespace}-"):  # the broker is shared
            seen.append((told["name"], told["id"]))

    inbox = tool.new_inbox()
    await tool.subscribe(inbox, cb=receive)
    await tool.publish("$SRV.PING", b"", reply=inbox)
    await eventually(lambda: len(seen) >= 3, "three services are told of")
    assert sorted(seen) == sorted((each.name, each.id) for each in [*mine, *theirs])
    seen.clear()
    await tool.publish(f"$SRV.PING.{theirs[0].name}", b"", reply=inbox)
    await eventually(lambda: len(seen) >= 2, "both are told of")
    assert sorted(identity for _, identity in seen) == ["a-m", "b-m"]
    await other.close()


async def test_what_is_no_longer_offered_is_unknown_at_once(bus: Bus, tool: Client, service: Service) -> None:
    """The broker says so: nobody is left who subscribes to it."""
    await bus.advertise([service])
    await heard(bus)
    await ask(tool, subjects("PING", service)[0])
    await bus.advertise([])
    await heard(bus)
    for subject in subjects("PING", service):
        with pytest.raises(nats.errors.NoRespondersError):
            await ask(tool, subject)


async def test_only_inboxes_are_answered(bus: Bus, tool: Client, service: Service) -> None:
    """A worker may publish more than who asks: to streams, for instance."""
    await bus.advertise([service])
    await heard(bus)
    elsewhere: list[Msg] = []

    async def hear(message: Msg) -> None:
        elsewhere.append(message)

    await tool.subscribe("some.subject", cb=hear)
    await tool.publish(subjects("PING", service)[0], b"", reply="some.subject")
    await tool.publish(subjects("PING", service)[0], b"")
    assert (await ask(tool, subjects("PING", service)[0]))["id"] == service.id
    await tool.flush()
    assert not elsewhere


async def test_an_unknown_verb_is_not_answered(bus: Bus, tool: Client, service: Service) -> None:
    await bus.advertise([service])
    await heard(bus)
    answered = await tool.subscribe(tool.new_inbox())
    await tool.publish(subjects("SCHEMA", service)[0], b"", reply=answered.subject)
    await tool.publish(subjects("PING", service)[0], b"", reply=answered.subject)
    assert b"ping_response" in (await answered.next_msg(PATIENCE)).data


async def test_it_is_offered_again_after_a_lost_connection(bus: Bus, tool: Client, service: Service) -> None:
    assert isinstance(bus, NatsBus)
    await bus.advertise([service])
    back = asyncio.Event()
    bus.on_reconnect(back.set)
    await bus._connection.client.force_reconnect()
    async with asyncio.timeout(PATIENCE):
        await back.wait()
    await heard(bus)
    assert (await ask(tool, subjects("INFO", service)[0]))["id"] == service.id
