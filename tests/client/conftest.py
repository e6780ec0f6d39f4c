"""A gateway and a worker that all tests of a module share; each client is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.helpers import served_models
from tests.helpers.served_models import (
    AUTO,
    GATED,
    IDENTITY,
    MLP,
    PICKY,
    SAYS_ALL,
    SCALAR,
    VERSIONS,
    WHOLE,
)
from tests.helpers.system import Fleet, fleet
from tests.streams.models import COUNTS, GENERATES, ONE, SQUARE
from tests.streams.models import build as build_streaming

GONE = served_models.IDENTITY["INT8"]
"""A model that the fleet knows and nobody serves."""

MODELS = (
    *(IDENTITY[datatype] for datatype in ("FP32", "FP16", "BF16", "BYTES", "BOOL", "INT64", "UINT16")),
    *(AUTO, GATED, MLP, PICKY, SAYS_ALL, SCALAR, VERSIONS, WHOLE),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    nats_url: str, served_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    repository = served_models.copy(served_repository, tmp_path_factory.mktemp("models"), *MODELS, GONE)
    build_streaming(repository)
    async with fleet(nats_url, f"test-{uuid4().hex[:12]}", repository) as made:
        await made.add_worker(*MODELS, COUNTS, GENERATES, ONE, SQUARE)
        former = await made.add_worker(GONE)
        await former.drain()
        await made.unknown(former.id)
        yield made
