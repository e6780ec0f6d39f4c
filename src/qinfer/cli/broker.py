"""Which broker a command talks to that has no gateway to go through."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from qinfer.cli.options import NATS_VARIABLE, nats_option
from qinfer.embedded import running_url


def broker_option(function: Callable[..., None]) -> Callable[..., None]:
    """`--nats`, or `--store-dir` for the broker that `qinfer serve` started; the function is given `nats`.

    The embedded broker has a free port and a random password, which only its folder tells.
    """

    @nats_option(required=False)
    @click.option(
        "--store-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Instead of --nats: the folder of the broker that a `qinfer serve` of this host runs.",
    )
    @wraps(function)
    def call(*arguments: Any, nats: str | None, store_dir: Path | None, **options: Any) -> None:
        function(*arguments, nats=_choose(nats, store_dir), **options)

    return call


def _choose(nats: str | None, store_dir: Path | None) -> str:
    typed = click.get_current_context().get_parameter_source("store_dir") is _TYPED
    if nats and not (typed and store_dir is not None):
        return nats
    if store_dir is None:
        raise click.UsageError(
            f"Missing option '--nats' (env var: '{NATS_VARIABLE}'), or '--store-dir' for the broker that "
            "`qinfer serve` started; its log names the folder."
        )
    return running_url(store_dir)


_TYPED = click.core.ParameterSource.COMMANDLINE
