"""Fixtures that every folder uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from qinfer.embedded import EmbeddedServer


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_url() -> AsyncIterator[str]:
    """A real nats-server with JetStream, shared by the tests; each takes a namespace of its own."""
    async with EmbeddedServer() as server:
        yield server.url


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid4().hex[:12]}"
