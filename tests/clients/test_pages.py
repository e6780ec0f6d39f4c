"""What `docs/languages.md` has its reader type works, and the protocol's page knows what services tell."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from qinfer.naming import Names
from qinfer_workers.discovery import Offering
from tests.clients.built import BUILDERS, EXAMPLES, Built
from tests.docs.pages import blocks, first_column, read, section
from tests.helpers.served_models import IDENTITY, copy
from tests.helpers.system import Fleet, fleet
from tests.streams.models import COUNTS, build

PAGE = read("docs/languages.md")
SHOWN = {
    "node": ["y [ 1, 2 ] Float32Array(2) [ 1.5, 2.5 ]", "0", "1", "2", "invalid_request null"],
    "go": ["y [1 2] [1.5 2.5]", "0", "1", "2", "invalid_request <nil>"],
}
"""What the examples on the page print."""


@pytest_asyncio.fixture
async def running(nats_url: str, served_repository: Path, tmp_path: Path) -> AsyncIterator[Fleet]:
    """The fleet of the page, in the namespace of who names none."""
    repository = build(tmp_path / "repository")
    identity = IDENTITY["FP32"]
    copy(served_repository, repository, identity)
    (repository / identity).rename(repository / "mymodel")
    async with fleet(nats_url, "default", repository) as made:
        await made.add_worker("mymodel", COUNTS)
        yield made


async def run(
    command: Sequence[str], folder: Path, running: Fleet, more: Mapping[str, str] = {}
) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "QINFER_NATS": running.nats, **more},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


@pytest.fixture
def language(built: Built) -> str:
    return "node" if built.ask[-1].endswith(".mjs") else "go"


async def test_examples(built: Built, language: str, running: Fleet) -> None:
    (source,) = blocks(PAGE, {"node": "js", "go": "go"}[language])
    folder = Path(built.ask[-1]).parent if language == "node" else Path(built.ask[0]).parents[1]
    if language == "node":
        (folder / "page.mjs").write_text(source)
        command = [built.ask[0], "page.mjs"]
    else:
        (folder / "page").mkdir(exist_ok=True)
        (folder / "page" / "main.go").write_text(source)
        command = [shutil.which("go") or "go", "run", "./page"]
    environment = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    assert await run(command, folder, running, environment) == SHOWN[language]


async def test_sessions(built: Built, language: str, running: Fleet) -> None:
    """Every `ask` of the page prints what is below it."""
    found = re.search(rf"<!-- {language} -->\n```console\n(.*?)```", PAGE, re.DOTALL)
    assert found
    prompts = found[1].split("$ ")[1:]
    sessions = [prompt.splitlines() for prompt in prompts]
    asked = {command: shown for command, *shown in sessions if " ask.mjs" in command or "./ask" in command}
    assert asked
    for command, shown in asked.items():
        words = re.split(r"ask\.mjs|\./ask", command)[1].split()
        assert sorted(await run([*built.ask, *words], Path.cwd(), running)) == shown
    (folder,) = [command.split()[1] for command, *_ in sessions if command.startswith("cd ")]
    assert folder == f"examples/clients/{EXAMPLES.joinpath(language).name}"


def test_every_client_is_named() -> None:
    for language in BUILDERS:
        for path in (EXAMPLES / language).glob("*"):
            if path.suffix in (".mjs", ".go") and path.stem != "ask":
                assert f"](../examples/clients/{language}/{path.name})" in PAGE


async def test_metadata_of_services(running: Fleet) -> None:
    table = section(read("docs/protocol.md"), "As services of NATS")
    worker = running.workers[0]
    versions = [served for service in worker.services.values() for served in service.versions.values()]
    for service in Offering(Names("default"), worker.id).of(versions):
        assert [f"`{key}`" for key in service.metadata] == first_column(table)
        assert service.metadata["decoupled"] == str(service.metadata["model"] == COUNTS).lower()
