"""Clients of a running `qinfer serve`, and gateways with gRPC in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from tests.gateway.grpc.calls import CHANNEL, Calls, Gate
from tests.helpers.system import Fleet, System, fleet

MakeFleet: TypeAlias = Callable[..., AbstractAsyncContextManager[Fleet]]


@pytest.fixture(scope="session")
def calls(system: System) -> Iterator[Calls]:
    made = Calls(system.grpc)
    with made.channel:
        yield made


@pytest.fixture(scope="session")
def client(system: System) -> Iterator[triton.InferenceServerClient]:
    """An unmodified client."""
    with triton.InferenceServerClient(system.grpc, channel_args=CHANNEL) as made:
        yield made


@pytest_asyncio.fixture
async def aio_client(system: System) -> AsyncIterator[triton_aio.InferenceServerClient]:
    """An unmodified asyncio client."""
    async with triton_aio.InferenceServerClient(system.grpc, channel_args=CHANNEL) as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.open()  # or a test that failed would hold the model up


@pytest.fixture
def make_fleet(nats_url: str, namespace: str, served_repository: Path) -> MakeFleet:
    """A gateway with gRPC, and a worker when models are named: `async with make_fleet("mlp", option=...)`."""

    @asynccontextmanager
    async def make(*models: str, **options: Any) -> AsyncIterator[Fleet]:
        told = {"http_port": 0, "grpc_port": 0, **options}
        async with fleet(nats_url, namespace, served_repository, **told) as made:
            if models:
                await made.add_worker(*models)
            yield made

    return make


def address(made: Fleet) -> str:
    """Where a fleet's gRPC listens."""
    assert made.gateway.grpc is not None
    return f"127.0.0.1:{made.gateway.grpc.port}"


def client_of(made: Fleet) -> triton_aio.InferenceServerClient:
    """An unmodified asyncio client of a fleet."""
    return triton_aio.InferenceServerClient(address(made), channel_args=CHANNEL)
