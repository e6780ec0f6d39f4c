"""`qinfer serve --nats URL`: the same roles, several of each, around a broker that was there before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.helpers import http, served_models
from tests.helpers.http import infer, tensor
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import _forget, serving

MODEL = IDENTITY["INT16"]


@pytest_asyncio.fixture
async def own_namespace(nats_url: str, namespace: str) -> AsyncIterator[str]:
    yield namespace
    await _forget(nats_url, namespace)


def children(pid: int) -> list[str]:
    """Command lines of a process's children."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in found]


async def test_two_of_each(
    nats_url: str, own_namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    repository = served_models.copy(served_repository, tmp_path / "models", MODEL)
    told = (f"--nats={nats_url}", f"--namespace={own_namespace}", "--gateways=2", "--workers=2")
    with serving(repository, *told, "--storage=memory") as system:
        started = children(system.pid)
        assert len([line for line in started if " gateway " in line]) == 2
        assert len([line for line in started if " worker " in line]) == 2
        assert len(started) == 4, "a broker was named: none is started"
        for value in range(16):  # a connection each: they meet both gateways
            async with http.connect(system.http_port) as connection:
                answer = await connection.ask(infer(MODEL, {"inputs": [tensor([value], "INT16", [1, 1])]}))
                (model,) = (await connection.ask(http.get("/v2/models"))).json()["models"]
            assert answer.outputs() == {"y": [value]}
            assert (model["name"], model["state"], len(model["workers"])) == (MODEL, "READY", 2)
