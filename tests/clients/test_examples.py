"""The examples as their readers get them: what they print, how long they are, where packages come from."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.clients.built import DRIVERS, EXAMPLES, Built
from tests.helpers.served_models import IDENTITY, PICKY, VERSIONS
from tests.helpers.system import Fleet, fleet

MODEL = IDENTITY["FP32"]
LINES = 100
"""No client has as many, all in one file."""


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, served_repository: Path) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, served_repository) as made:
        await made.add_worker(MODEL, IDENTITY["INT32"], IDENTITY["INT64"], IDENTITY["BYTES"], PICKY)
        yield made


async def ask(built: Built, running: Fleet, *words: str) -> tuple[int, str, str]:
    """Run the example's own program: its status, output, and complaints."""
    process = await asyncio.create_subprocess_exec(
        *built.ask,
        *words,
        env={**os.environ, "QINFER_NATS": running.nats, "QINFER_NAMESPACE": running.namespace},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_it_lists_and_asks(built: Built, running: Fleet) -> None:
    status, out, _ = await ask(built, running)
    assert status == 0
    assert f'{MODEL} 1 [{{"name":"x","datatype":"FP32","dims":[-1]}}]' in out.splitlines()
    for words, shown in (
        ([MODEL, "x", "FP32", "1,2", "1.5", "2.5"], "y FP32 1,2 1.5 2.5"),
        ([IDENTITY["INT64"], "x", "INT64", "1,2", "9223372036854775807", "-1"],
         "y INT64 1,2 9223372036854775807 -1"),
        ([IDENTITY["INT32"], "x", "INT32", "1,2", "2147483647", "-1"], "y INT32 1,2 2147483647 -1"),
        ([IDENTITY["BYTES"], "x", "BYTES", "1,1", "zwölf"], "y BYTES 1,1 zwölf"),
    ):  # fmt: skip
        status, out, err = await ask(built, running, *words)
        assert (status, out, err) == (0, f"{shown}\n", ""), words


async def test_models_are_found(built: Built, served_repository: Path, nats_url: str, namespace: str) -> None:
    """Those of its own namespace, once for each worker and version."""
    async with (
        fleet(nats_url, namespace, served_repository) as own,
        fleet(nats_url, f"{namespace}x", served_repository) as another,
    ):
        assert await ask(built, own) == (0, "", "")
        await own.add_worker(PICKY, VERSIONS)
        await own.add_worker(PICKY)
        await another.add_worker(MODEL)
        status, out, err = await ask(built, own)
    assert (status, err) == (0, "")
    found = sorted(tuple(line.split()[:2]) for line in out.splitlines())
    assert found == [(PICKY, "1"), (PICKY, "1"), (VERSIONS, "1"), (VERSIONS, "2")]


async def test_it_says_what_went_wrong(built: Built, running: Fleet) -> None:
    for words, told in (
        ([PICKY, "x", "FP32", "1,1", "13"], "model_failed: .*thirteen"),
        ([PICKY, "x", "FP32", "1,2", "1", "2"], "invalid_request: .*'x'"),
        (["nobody knows"], "no_worker: "),
    ):
        status, out, err = await ask(built, running, *words)
        assert (status, out) == (1, ""), words
        assert re.match(told, err)
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("path", ["node/client.mjs", "go/client.go"])
def test_a_client_is_one_short_file(path: str) -> None:
    client = EXAMPLES / path
    assert len(client.read_text().splitlines()) < LINES
    sources = [each.name for each in client.parent.glob(f"*{client.suffix}") if each.stem != "ask"]
    assert sources == [client.name]


def test_locked_packages_come_from_wherever_npm_is_told() -> None:
    lock = (EXAMPLES / "node" / "package-lock.json").read_text()
    assert "resolved" not in lock
    packages = json.loads(lock)["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)


def test_go_is_formatted() -> None:
    gofmt = shutil.which("gofmt")
    if gofmt is None:
        pytest.skip("gofmt not installed")
    folders = [str(EXAMPLES / "go"), str(DRIVERS)]
    done = subprocess.run([gofmt, "-l", *folders], capture_output=True, text=True, check=True)
    assert done.stdout == ""
