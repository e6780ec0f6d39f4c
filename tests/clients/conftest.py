from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.clients import driven
from tests.clients.built import BUILDERS, Built


@pytest.fixture(scope="session", params=sorted(BUILDERS))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Each client in turn; skipped where its language is not installed or its packages cannot be had."""
    return BUILDERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest_asyncio.fixture
async def client(built: Built, nats_url: str, namespace: str) -> AsyncIterator[driven.Client]:
    async with driven.client(built, nats_url, namespace) as made:
        yield made
