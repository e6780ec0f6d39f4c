"""The command line.

`serve`, `models`, `infer` and `doctor` live here. The roles bring their own commands: every entry point of
the group `qinfer.commands` is one, so that this package never imports a role.
"""

from qinfer.cli.app import main

__all__ = ["main"]
