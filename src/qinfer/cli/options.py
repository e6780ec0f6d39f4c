"""Options that several commands share, and the rules for all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from qinfer.bus.security import VARIABLES

ENVIRONMENT = "QINFER"
"""Prefix of the environment variables: `--http-port` is `QINFER_HTTP_PORT` for every command that has it."""

NATS_VARIABLE = f"{ENVIRONMENT}_NATS"

_NATS_FILES = {
    "ca": "Authorities that may vouch for the broker, in PEM; it has to speak TLS then.",
    "cert": "This client's certificate, in PEM.",
    "key": "Its private key.",
    "creds": "Credentials of a NATS user, as nsc makes them.",
    "nkey": "Seed of a NATS user's nkey.",
}

NATS_FILES = {f"--nats-{name}": variable for name, variable in VARIABLES.items()}
"""Options that name files for the connection to the broker, each with its environment variable."""

DEFAULT_URL = "http://127.0.0.1:8000"

# The prefix is the same for all commands and not, as click has it, one with the command's name: what is set
# for `serve` then reaches the roles it starts.
CONTEXT: dict[str, Any] = {
    "auto_envvar_prefix": ENVIRONMENT,
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}

_Function = TypeVar("_Function", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


class Size(click.ParamType[int]):
    """A number of bytes, with units: 65536, 64KiB, 64K, 8MiB, 1G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size; expected for instance 1048576, 64KiB or 8MiB", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


class Port(click.IntRange):
    """A TCP port."""

    name = "port"

    def __init__(self, *, lowest: int = 0) -> None:
        super().__init__(lowest, 65535)


def nats_option(*, required: bool) -> Callable[[_Function], _Function]:
    """`--nats URL` and the files of its security, which reach `qinfer.bus.connect` by the environment.

    The URL is preferably given as QINFER_NATS: a command line can be read by every user of the host.
    """
    url = click.option(
        "--nats",
        "--bus",
        "nats",
        metavar="URL",
        envvar=NATS_VARIABLE,
        show_envvar=True,
        required=required,
        help="The broker, nats://HOST:PORT; several separated by commas. Put credentials into the variable, "
        "not on the command line. With kafka://HOST:PORT everything goes over Kafka.",
    )
    return stacked(url, *(_nats_file(f"--nats-{name}", name, text) for name, text in _NATS_FILES.items()))


def _nats_file(option: str, name: str, text: str) -> Callable[[_Function], _Function]:
    return click.option(
        option,
        type=click.Path(exists=True, dir_okay=False),
        envvar=VARIABLES[name],
        expose_value=False,
        callback=_export,
        help=text,
    )


def _export(ctx: click.Context, param: click.Parameter, value: str | None) -> None:  # noqa: ARG001 (click's)
    """Hand a file's name on to this process's connections, and to the processes it starts."""
    if value is not None:
        os.environ[str(param.envvar)] = str(Path(value).absolute())


namespace_option = click.option(
    "--namespace",
    default="default",
    show_default=True,
    help="Fleets that share a broker are told apart by their namespaces.",
)

url_option = click.option(
    "--url",
    default=DEFAULT_URL,
    show_default=True,
    help="The gateway's HTTP address.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def prefers_broker() -> bool:
    """Whether a client command that has both goes to the broker and not to a gateway.

    A --url on the command line beats a broker from the environment.
    """
    source = click.get_current_context().get_parameter_source
    typed = click.core.ParameterSource.COMMANDLINE
    return source("url") is not typed or source("nats") is typed


def stacked(*options: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Several options as one decorator, shown in this order."""

    def decorate(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


logging_options = stacked(
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="Lowest level that is logged, on standard error.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="One line of text or of JSON for each record.",
    ),
)

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_security_options = (
    click.option(
        "--keys-file",
        type=_FILE,
        help="API keys that are accepted (`qinfer keys`); read again when it changes.",
    ),
    click.option(
        "--jwt-jwks", type=_FILE, help="Accept JSON Web Tokens signed with one of these public keys."
    ),
    click.option("--jwt-issuer", default="", help="What their claim `iss` has to say."),
    click.option("--jwt-audience", default="", help="What their claim `aud` has to say."),
    click.option(
        "--tls-cert", type=_FILE, help="Certificate of the servers, in PEM; read again when it changes."
    ),
    click.option("--tls-key", type=_FILE, help="Its private key."),
    click.option(
        "--tls-client-ca", type=_FILE, help="Let in only clients with a certificate of these authorities."
    ),
    click.option(
        "--max-connections",
        type=click.IntRange(1),
        default=8192,
        show_default=True,
        help="HTTP connections, and gRPC connections, at once; more are turned away.",
    ),
    click.option(
        "--idle-timeout",
        type=click.FloatRange(0.1, 86400),
        default=75.0,
        show_default=True,
        help="Seconds an HTTP connection may do nothing between two requests.",
    ),
    click.option(
        "--receive-timeout",
        type=click.FloatRange(0.1, 86400),
        default=30.0,
        show_default=True,
        help="Seconds a TLS handshake or a request may take to arrive; one more for each KiB of a body.",
    ),
    click.option(
        "--insecure", is_flag=True, help="Allow a --host that other hosts can reach without keys and TLS."
    ),
)

gateway_options = stacked(
    click.option(
        "--lame-duck",
        type=click.FloatRange(0, 86400),
        default=10.0,
        show_default=True,
        help="Seconds after SIGTERM in which clients are sent away by and by; gRPC connections are renewed "
        "more often than that.",
    ),
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option(
        "--http-port", type=Port(), default=8000, show_default=True, help="Port for HTTP; 0 for any free one."
    ),
    click.option(
        "--grpc-port",
        type=Port(lowest=-1),
        default=8001,
        show_default=True,
        help="Port for gRPC; 0 for any free one, -1 for none.",
    ),
    click.option(
        "--max-body",
        "max_body_bytes",
        type=Size(),
        default=64 * 1024 * 1024,
        show_default="64MiB",
        help="Largest request body, before and after decompression.",
    ),
    click.option(
        "--idempotent-request-ids/--no-idempotent-request-ids",
        default=False,
        show_default=True,
        help="Take the id of a request for its Idempotency-Key, where it has none: the same id is run once.",
    ),
    click.option(
        "--request-timeout",
        type=click.FloatRange(0.001, 86400),
        default=30.0,
        show_default=True,
        help="Deadline in seconds of a request that names none.",
    ),
    click.option(
        "--max-in-flight",
        type=click.IntRange(1),
        default=4096,
        show_default=True,
        help="Requests a gateway holds at once; more are answered 429.",
    ),
    click.option(
        "--max-queue-rows",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Rows a gateway holds at once for one model; more are answered 429. 0 for no limit.",
    ),
    click.option(
        "--broker-patience",
        type=click.FloatRange(0, 86400),
        default=10.0,
        show_default=True,
        help="Seconds that requests in flight wait for a broker that is away, before they are answered 503.",
    ),
    click.option(
        "--batch-root",
        "batch_roots",
        multiple=True,
        metavar="NAME=FOLDER",
        help="A folder whose files batch jobs may read and write, as NAME/path. May be repeated.",
    ),
    click.option(
        "--log-requests/--no-log-requests", default=False, help="Log one line a request.", show_default=True
    ),
    *_security_options,
)

worker_options = stacked(
    click.option(
        "--model-control-mode",
        type=click.Choice(["none", "poll", "explicit"]),
        default="none",
        show_default=True,
        help="When models are loaded and unloaded after the start: never, when the repository changes, or "
        "when somebody asks; in mode explicit only --model is loaded at the start.",
    ),
    click.option(
        "--repository-poll-secs",
        type=click.FloatRange(0.1, 86400),
        default=15.0,
        show_default=True,
        help="How often the repositories are looked at in mode poll.",
    ),
    click.option(
        "--ack-wait",
        type=click.FloatRange(0.1, 86400),
        default=5.0,
        show_default=True,
        help="Seconds without a sign of life after which a worker's requests go to another.",
    ),
    click.option(
        "--hang-timeout",
        type=click.FloatRange(0, 86400),
        default=120.0,
        show_default=True,
        help="Seconds after which an instance hangs whose batch nobody waits for any more: the worker ends, "
        "to be started anew. 0 for never.",
    ),
    click.option(
        "--max-deliver",
        type=click.IntRange(1),
        default=3,
        show_default=True,
        help="Deliveries after which a request that kills its workers is given up: see qinfer dlq.",
    ),
    click.option(
        "--storage",
        type=click.Choice(["memory", "file"]),
        default="file",
        show_default=True,
        help="Where the broker keeps queued requests.",
    ),
    click.option(
        "--replicas",
        type=click.IntRange(1, 5),
        default=1,
        show_default=True,
        help="Copies of the queues a NATS cluster keeps.",
    ),
    click.option(
        "--max-queue-messages",
        type=click.IntRange(1),
        default=65536,
        show_default=True,
        help="Messages the broker queues for a model before more are answered 429.",
    ),
    click.option(
        "--max-queue-bytes",
        type=Size(),
        default=64 * 1024 * 1024,
        show_default="64MiB",
        help="Bytes the broker reserves and queues for a model before more are answered 429.",
    ),
)

claims_option = click.option(
    "--max-claim-bytes",
    type=Size(),
    default=512 * 1024 * 1024,
    show_default="512MiB",
    help="What a process holds at once of tensors that are too large for a message of the broker. Requests "
    "beyond are answered 429 by a gateway and wait at a worker; 413 where one alone is larger.",
)

drain_option = click.option(
    "--drain-timeout",
    type=click.FloatRange(0, 86400),
    default=30.0,
    show_default=True,
    help="Seconds that work in hand may take to finish when the process is stopped.",
)

metrics_options = stacked(
    click.option(
        "--metrics-host", default="127.0.0.1", show_default=True, help="Address /metrics listens on."
    ),
    click.option(
        "--metrics-port",
        type=Port(lowest=-1),
        default=-1,
        show_default=True,
        help="Port of /metrics; 0 for any free one, -1 for none.",
    ),
)
