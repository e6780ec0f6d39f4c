"""Gateways that ask who is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from qinfer_gateway.auth import reload
from tests.helpers.system import Fleet, fleet
from tests.security.credentials import Authority

MakeFleet: TypeAlias = Callable[..., AbstractAsyncContextManager[Fleet]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at often, so that tests need not wait."""
    monkeypatch.setattr(reload, "INTERVAL", 0.02)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom servers and clients of the tests trust."""
    return Authority(tmp_path_factory.mktemp("pki"), "trusted")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom nobody trusts."""
    return Authority(tmp_path_factory.mktemp("pki"), "stranger")


@pytest.fixture
def make_fleet(nats_url: str, namespace: str, served_repository: Path) -> MakeFleet:
    """A gateway, and a worker when models are named: `async with make_fleet("mlp", keys_file=...)`."""

    @asynccontextmanager
    async def make(*models: str, **options: Any) -> AsyncIterator[Fleet]:
        async with fleet(nats_url, namespace, served_repository, **options) as made:
            if models:
                await made.add_worker(*models)
            yield made

    return make
