"""The `qinfer` command: finds the subcommands, and turns errors into messages and exit statuses."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from qinfer import __version__
from qinfer.cli.options import CONTEXT
from qinfer.errors import QInferError, SetupError

ENTRY_POINTS = "qinfer.commands"
"""Entry point group through which a role brings its command."""

EXIT_FAILURE = 1
EXIT_SETUP = 2
"""Exit status after a `SetupError`, the same as for a wrong command line: starting again cannot help."""

_BUILT_IN = {
    "dlq": "qinfer.cli.dlq:dlq",
    "doctor": "qinfer.cli.doctor:doctor",
    "infer": "qinfer.cli.infer:infer",
    "jobs": "qinfer.cli.jobs:jobs",
    "keys": "qinfer.cli.keys:keys",
    "models": "qinfer.cli.models:models",
    "score": "qinfer.cli.score:score",
    "serve": "qinfer.cli.serve:serve",
}

_EPILOG = """\b
Try it:
  qinfer doctor                        is everything there?
  qinfer serve models/                 serve a model repository
  qinfer models                        what is being served
  qinfer infer mlp --input x=@x.npy    ask a model

Every option can be set in the environment: --http-port as QINFER_HTTP_PORT."""


class _Failure(click.ClickException):
    exit_code = EXIT_FAILURE


class _SetupFailure(click.ClickException):
    exit_code = EXIT_SETUP


class Commands(click.Group):
    """The built-in commands and those of the installed roles, each imported only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Names of all commands."""
        return sorted({*_BUILT_IN, *(point.name for point in _role_commands())})

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 (click's signature)
        cmd_name: str,
    ) -> click.Command | None:
        """Import and return one command."""
        command: Any
        if cmd_name in _BUILT_IN:
            module, _, attribute = _BUILT_IN[cmd_name].partition(":")
            command = getattr(import_module(module), attribute)
        else:
            point = next((point for point in _role_commands() if point.name == cmd_name), None)
            if point is None:
                return None
            command = point.load()
        if not isinstance(command, click.Command):
            raise SetupError(f"entry point {cmd_name!r} of group {ENTRY_POINTS} is not a click command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; the errors of qinfer become messages without a traceback."""
        try:
            return super().invoke(ctx)
        except SetupError as error:
            raise _SetupFailure(error.message) from error
        except QInferError as error:
            raise _Failure(error.message) from error


def _role_commands() -> list[EntryPoint]:
    return list(entry_points(group=ENTRY_POINTS))


@click.group(cls=Commands, context_settings=CONTEXT, epilog=_EPILOG)
@click.version_option(__version__, prog_name="qinfer")
def app() -> None:
    """Model serving whose scheduler queue is a real message broker."""


def main() -> None:
    """Entry point of the `qinfer` command."""
    app(prog_name="qinfer")
