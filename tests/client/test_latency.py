"""The way without a gateway is the shorter one."""

from __future__ import annotations

import pytest
from loadtest.ways_in import by_turns

from qinfer.client import connect
from tests.helpers.system import Fleet

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_over_nats_p50_is_lower_than_over_http(running: Fleet) -> None:
    async with (
        connect(running.nats, namespace=running.namespace) as direct,
        connect(f"http://127.0.0.1:{running.port}") as through_gateway,
    ):
        clients = {"nats": direct, "http": through_gateway}
        nats, http = await by_turns(clients, requests=20, in_flight=1, turns=10)
    assert (nats.requests, http.requests) == (200, 200)
    assert nats.p50_ms < http.p50_ms
