from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.streams.models import build
from tests.streams.stage import Stage


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
