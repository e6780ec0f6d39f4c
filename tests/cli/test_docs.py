"""The page about the command line knows every command and option."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from qinfer.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


@pytest.mark.parametrize("name", app.list_commands(click.Context(app)))
def test_every_option_is_documented(name: str) -> None:
    command = app.get_command(click.Context(app), name)
    assert command is not None
    assert f"qinfer {name}" in PAGE
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert {option for option in options if f"`{option}" not in PAGE and f"{option} " not in PAGE} == set()
