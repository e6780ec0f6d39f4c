"""Every process of a server is replaced under load: no request fails, no answer is wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.steady import SteadyLoad, write_model
from tests.helpers.system import System, serving
from tests.helpers.waiting import eventually

LAME_DUCK = "--lame-duck=2"


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    root = write_model(tmp_path / "models", number=10)
    with serving(root, LAME_DUCK) as running:  # one of each: nobody else would be there
        yield running


def takeovers(system: System) -> int:
    return system.log.read_text().count("takes over from")


async def test_everything_is_restarted_by_sighup(system: System) -> None:
    async with SteadyLoad(system.http_port, system.grpc_port) as load:
        await load.more()
        os.kill(system.pid, signal.SIGHUP)
        for count in range(1, 3):
            await eventually(lambda count=count: takeovers(system) >= count or load.wrong, f"{count} new")
            await load.more()
        done = "all workers and gateways are restarted"
        await eventually(lambda: done in system.log.read_text() or load.wrong, done)
        await load.more()
    load.check()
    assert set(load.numbers) == {10}
