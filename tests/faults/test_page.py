"""The page about failures names tests that exist, and figures that are the code's."""

from __future__ import annotations

import ast
import re

import pytest

from qinfer.bus.nats import confirmations, connection, consumer
from qinfer.errors import BY_REASON
from qinfer.naming import WORKER_LIFETIME
from tests.docs.pages import ROOT, first_column, read, section

PAGE = "docs/failures.md"
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read(PAGE))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert name in {function.name for function in functions}


@pytest.mark.parametrize("title", ["What was promised", "Trouble with the broker"])
def test_each_row_names_its_test(title: str) -> None:
    rows = [line for line in section(read(PAGE), title).splitlines() if line.startswith("|")][2:]
    assert rows
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py::\w+`", row), row


def test_figures_are_those_of_the_code() -> None:
    text = " ".join(read(PAGE).split())
    silence = connection._SILENT_LOOKS * connection.LOOK
    assert f"silent for {silence:.0f} seconds" in text
    assert f"confirm within {confirmations._PATIENCE * connection.LOOK:.0f} seconds" in text
    assert f"at the broker after {consumer.PULL_EXPIRES:.0f} seconds" in text
    assert f"heard for {consumer.PULL_EXPIRES + consumer._GRACE:.0f} seconds" in text
    assert f"its record for {WORKER_LIFETIME:.0f} seconds" in text


def test_reasons_are_reasons() -> None:
    reasons = {cell.strip("`") for cell in first_column(section(read(PAGE), "What is wrong now"))}
    assert reasons
    assert reasons <= BY_REASON.keys()
