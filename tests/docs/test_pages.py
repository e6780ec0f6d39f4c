"""What the pages say is there: links, options, numbers, configurations."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import get_args

import click
import pytest

from qinfer.bus.nats import confirmations
from qinfer.bus.nats import connection as nats_connection
from qinfer.cli.app import app
from qinfer.errors import BY_REASON
from qinfer.repository import pbtxt
from qinfer.repository.validate import check
from qinfer.telemetry.stats import CloseReason
from qinfer_gateway.grpc import stream
from tests.docs.pages import PAGES, ROOT, blocks, first_column, prose, read, section

IDS = [str(path.relative_to(ROOT)) for path in PAGES]
CONTEXT = click.Context(app)
COMMANDS = {name: app.get_command(CONTEXT, name) for name in app.list_commands(CONTEXT)}


def anchors(text: str) -> set[str]:
    """What the headings of a page are linked by."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def options(name: str) -> set[str]:
    """Those of a command; of a group, those of all its commands."""
    command = COMMANDS[name]
    assert command is not None
    commands = [command, *command.commands.values()] if isinstance(command, click.Group) else [command]
    given = (
        option
        for command in commands
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    )
    return {option for option in given if option.startswith("-")} | {"--help", "-h"}


def commands_typed(text: str) -> list[list[str]]:
    """The `qinfer` command lines in the fenced blocks of a page, as the shell would take them apart."""
    lines = [line for block in blocks(text, "", "sh", "console", "bash") for line in block.splitlines()]
    typed = [re.sub(r"^(\$ )?(\w+=\S+ )*", "", line) for line in lines]
    inline = re.findall(r"`(qinfer [a-z]+ [^`]*)`", prose(text))
    chosen = [line for line in typed if line.startswith("qinfer ")] + inline
    return [shlex.split(line, comments=True)[1:] for line in chosen]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    text = prose(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_have_the_options_they_are_given(page: Path) -> None:
    for command, *arguments in commands_typed(page.read_text(encoding="utf-8")):
        if not command.startswith("-"):
            assert command in COMMANDS
            given = {word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)}
            assert given <= options(command), f"qinfer {command} {' '.join(arguments)}"


@pytest.mark.parametrize(
    "name",
    [
        *("docs/cli.md", "docs/http-grpc.md", "docs/architecture.md", "docs/batching.md"),
        *("docs/idempotency.md", "docs/large-tensors.md", "docs/scoring.md"),
    ],
)
def test_options_that_are_named_exist(name: str) -> None:
    known = set().union(*(options(command) for command in COMMANDS))
    named = {word.partition("=")[0] for word in re.findall(r"`(--[a-z][a-z-]*[^`\s]*)", prose(read(name)))}
    assert named <= known


def test_the_check_of_commands_sees_commands() -> None:
    found = commands_typed("a `qinfer serve models/ --x`\n```console\n$ A=b qinfer infer m --y=1 # z\n```\n")
    assert found == [["infer", "m", "--y=1"], ["serve", "models/", "--x"]]
    typed = [line for page in PAGES for line in commands_typed(page.read_text(encoding="utf-8"))]
    assert {line[0] for line in typed} >= {"serve", "gateway", "worker", "models", "infer", "doctor"}


@pytest.mark.parametrize("name", ["docs/batching.md", "docs/gpu.md"])
def test_configurations_are_valid(name: str) -> None:
    (text,) = blocks(read(name), "protobuf")
    batched = text if "max_batch_size" in text else f"max_batch_size: 1 {text}"
    assert check(pbtxt.read(f'backend: "onnxruntime" {batched}', name).message) == []


def test_reasons_of_batches_are_those_of_the_code() -> None:
    listed = first_column(section(read("docs/batching.md"), "When a batch leaves"))
    assert {cell.strip("`") for cell in listed} == set(get_args(CloseReason))


def test_statuses_are_those_of_the_errors() -> None:
    listed = {int(cell) for cell in first_column(section(read("docs/http-grpc.md"), "Errors"))}
    gone = 499  # nobody is left to read it
    assert listed == {error.http_status for error in BY_REASON.values()} - {gone}


def test_bounds_are_those_of_the_code() -> None:
    bounds = section(read("docs/architecture.md"), "Bounds")
    assert f"| {nats_connection._BUFFER_LIMIT >> 20} MiB a connection |" in bounds
    assert f"| {confirmations.MAX_UNCONFIRMED} a connection |" in bounds
    assert f"most {stream.MAX_IN_FLIGHT} requests of a stream" in read("docs/http-grpc.md").replace("\n", " ")


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
    for name in names:
        assert read(f"docs/decisions/{name}").startswith(f"# {name[:4]}: ")


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_it_is_installed_from_the_clone(name: str) -> None:
    """The name on PyPI is another project's; a reader who has nothing yet must not be sent there."""
    typed = "\n".join(blocks(read(name), "sh", "console"))
    (extras,) = re.findall(r"pip install -c constraints.txt '\.\[([a-z,]+)\]'", typed)
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert set(extras.split(",")) <= set(tomllib.load(file)["project"]["optional-dependencies"])
    assert "pip install 'qinfer" not in typed


def test_make_has_the_targets_that_are_named() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in re.findall(r"\bmake ([a-z]+)\b", "\n".join(code(page.read_text(encoding="utf-8"))))
    }
    assert {"demo", "test", "serve", "bench"} <= named <= targets


def code(text: str) -> list[str]:
    """Everything of a page that is to be typed."""
    return [*blocks(text, "", "sh", "console", "bash"), *re.findall(r"`([^`]+)`", prose(text))]
