from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from tests.helpers.system import Fleet, fleet
from tests.streams.models import build
from tests.streams.stage import Stage

MakeFleet: TypeAlias = Callable[..., AbstractAsyncContextManager[Fleet]]


@pytest.fixture(scope="session")
def streaming_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("streaming"))


@pytest_asyncio.fixture
async def stage(namespace: str, streaming_repository: Path) -> AsyncIterator[Stage]:
    stage = Stage(namespace, streaming_repository)
    await stage.start()
    yield stage
    await stage.stack.aclose()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a model notes what it has done."""
    return tmp_path / "journal"


@pytest.fixture
def make_fleet(nats_url: str, namespace: str, streaming_repository: Path) -> MakeFleet:
    """A gateway on a real broker, and a worker when models are named."""

    @asynccontextmanager
    async def make(*models: str, **options: Any) -> AsyncIterator[Fleet]:
        told = {"grpc_port": 0, **options}
        async with fleet(nats_url, namespace, streaming_repository, **told) as made:
            if models:
                await made.add_worker(*models)
            yield made

    return make
