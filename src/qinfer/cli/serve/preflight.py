"""What must be right before anything is started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from qinfer.cli import security
from qinfer.cli.options import NATS_FILES
from qinfer.cli.serve.options import ServeOptions
from qinfer.control import EVERYTHING
from qinfer.embedded import find_binary
from qinfer.errors import SetupError
from qinfer.keys import read_keys
from qinfer.repository import Problem, Repository

_ROLES = {"gateway", "worker"}
_SCHEMES = ("nats", "tls", "ws", "wss", "kafka", "kafkas")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What will be served.

    Attributes:
        models: names of the models to be loaded.
        problems: what is wrong with others.
    """

    models: Sequence[str]
    problems: Sequence[Problem]


def check(options: ServeOptions) -> Findings:
    """Check the options and the model repositories.

    Raises:
        SetupError: something is wrong that starting could not heal.
    """
    _check_network(options)
    _check_roles()
    return _check_models(options)


def _check_network(options: ServeOptions) -> None:
    security.check(options)
    if options.keys_file is not None:
        read_keys(options.keys_file)
    if options.nats is None:
        find_binary()
        if files := [option for option, variable in NATS_FILES.items() if os.environ.get(variable)]:
            raise SetupError(
                f"{', '.join(files)}: expected --nats beside it; the broker started here needs none"
            )
    elif urlsplit(options.nats).scheme not in _SCHEMES:
        raise SetupError(f"--nats: expected a URL that starts with one of {', '.join(_SCHEMES)}")
    ports = {
        "--http-port": options.http_port,
        "--grpc-port": options.grpc_port,
        "--metrics-port": options.metrics_port,
    }
    fixed = [port for port in ports.values() if port > 0]
    if len(set(fixed)) < len(fixed):
        given = ", ".join(f"{name} {port}" for name, port in ports.items())
        raise SetupError(f"{given}: expected three different ports")


def _check_roles() -> None:
    missing = _ROLES - {point.name for point in entry_points(group="qinfer.commands")}
    if missing:
        raise SetupError(
            f"the commands of the roles {', '.join(sorted(missing))} are not installed; reinstall qinfer"
        )


def _check_models(options: ServeOptions) -> Findings:
    for path in options.repositories:
        if not path.is_dir():
            found = "is not a directory" if path.exists() else "does not exist"
            raise SetupError(f"model repository {path} {found}; expected a directory of model directories")
    entries, problems = Repository(*options.repositories).scan()
    names = [entry.config.name for entry in entries]
    broken = {problem.model: problem for problem in problems}
    everything = EVERYTHING in options.models
    named = [name for name in options.models if name != EVERYTHING]
    for name in named:
        if name in broken:
            raise SetupError(f"--model {name}: {broken[name].error.message}")
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise SetupError(f"--model {name}: no such model in the repository; there are: {known}")
    if named and not everything:
        names = [name for name in names if name in named]
        problems = []
    if options.model_control_mode == "explicit" and not named and not everything:
        names, problems = [], []  # others will say what is to be loaded
    elif not names and options.model_control_mode != "poll":
        where = ", ".join(str(path) for path in options.repositories)
        why = "".join(f"\n  {problem.model}: {problem.error.message}" for problem in problems)
        versions = {problem.path for problem in problems if problem.model.isdecimal()}
        why += "".join(
            f"\n{model} looks like a model; serve the folder it is in: {model.parent}"
            for model in sorted({version.parent for version in versions})
        )
        raise SetupError(f"no model to serve in {where}{':' if why else ''}{why}")
    return Findings(models=tuple(names), problems=tuple(problems))
