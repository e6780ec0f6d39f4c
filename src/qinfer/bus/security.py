"""How a process proves to a NATS server who it is, and has the server prove who that is.

All of it lies in files. They are named in the environment, which is inherited: what `qinfer serve` is told
holds for the gateways and workers it starts.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinfer.errors import BackendUnavailable, SetupError

logger = logging.getLogger(__name__)

VARIABLES: Mapping[str, str] = {
    "ca": "QINFER_NATS_CA",
    "cert": "QINFER_NATS_CERT",
    "key": "QINFER_NATS_KEY",
    "creds": "QINFER_NATS_CREDS",
    "nkey": "QINFER_NATS_NKEY",
}
"""Field of `NatsSecurity` to the environment variable that names its file."""

INBOX_VARIABLE = "QINFER_NATS_INBOX"
"""Environment variable with what the subjects begin with on which a process gets its answers."""

_INBOX = re.compile(r"_INBOX(\.[A-Za-z0-9_-]{1,50}){0,3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSecurity:
    """Files that a connection to NATS needs; None for each it does not.

    Attributes:
        ca: PEM file of the authorities that may vouch for the server; those of the system when it is None.
        cert, key: PEM files of this client's certificate and its private key.
        creds: credentials file as `nsc` makes it, with a user's JWT and seed.
        nkey: file with a user's nkey seed.
        inbox: what the subjects of answers begin with: "_INBOX", or more tokens after it, so that
            a server can keep users from each other's answers.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    creds: Path | None = None
    nkey: Path | None = None
    inbox: str = "_INBOX"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> NatsSecurity:
        """What the variables of `VARIABLES` say; an empty one says nothing."""
        files = {name: Path(environment[v]) for name, v in VARIABLES.items() if environment.get(v)}
        return cls(**files, inbox=environment.get(INBOX_VARIABLE) or "_INBOX")

    @property
    def wants_tls(self) -> bool:
        """Whether the connection has to be encrypted, whatever the server says of itself."""
        return self.ca is not None or self.cert is not None

    def context(self) -> ssl.SSLContext:
        """TLS for the connection.

        Raises:
            SetupError: a file cannot be read, or they do not fit.
        """
        # With a file of our own, the system's authorities are not trusted: they vouch for all sorts.
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else _existing(self, "ca"))
        except (ssl.SSLError, OSError) as error:
            raise SetupError(f"{VARIABLES['ca']} {self.ca}: {error}; expected certificates in PEM") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.renew(context)
        return context

    def renew(self, context: ssl.SSLContext) -> None:
        """Read the client certificate again, for the connections that follow.

        Raises:
            SetupError: a file cannot be read, or they do not fit.
        """
        if self.cert is None:
            return
        try:
            context.load_cert_chain(_existing(self, "cert"), _existing(self, "key"), password=_no_passphrase)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise SetupError(
                f"{VARIABLES['cert']} {self.cert}, {VARIABLES['key']} {self.key}: {error}; expected a"
                " certificate in PEM and its private key, without a passphrase"
            ) from None

    def options(self) -> dict[str, Any]:
        """Arguments for nats-py's `connect`.

        Raises:
            SetupError: files are missing, or do not belong together.
            BackendUnavailable: nkeys are wanted and their library is not installed.
        """
        if (self.cert is None) != (self.key is None):
            raise SetupError(
                f"{VARIABLES['cert']} and {VARIABLES['key']}: found only one; expected both or neither"
            )
        if self.creds is not None and self.nkey is not None:
            raise SetupError(
                f"{VARIABLES['creds']} and {VARIABLES['nkey']}: found both; expected one of them"
            )
        if not _INBOX.fullmatch(self.inbox):
            raise SetupError(f"{INBOX_VARIABLE}: found {self.inbox!r}; expected _INBOX or _INBOX.NAME")
        given: dict[str, Any] = {"inbox_prefix": self.inbox}
        if self.wants_tls:
            given["tls"] = self.context()
        if self.creds is not None:
            given["user_credentials"] = _secret(self, "creds")
        if self.nkey is not None:
            given["nkeys_seed"] = _secret(self, "nkey")
        if given.keys() & {"user_credentials", "nkeys_seed"}:
            _check_library()
        return given


def _existing(security: NatsSecurity, name: str) -> str:
    path: Path | None = getattr(security, name)
    if path is None or not path.is_file():
        raise SetupError(f"{VARIABLES[name]}: {path} is no file; expected the name of one")
    return str(path)


def _secret(security: NatsSecurity, name: str) -> str:
    path = _existing(security, name)
    if Path(path).stat().st_mode & stat.S_IROTH:
        logger.warning("%s can be read by every user of this host, and holds a secret: chmod 600", path)
    return path


def _check_library() -> None:
    try:
        importlib.import_module("nkeys")
    except ImportError as error:
        raise BackendUnavailable(
            f"credentials and nkeys of NATS need a library: pip install 'qinfer[security]': {error}"
        ) from error


def _no_passphrase() -> str:
    # Without this OpenSSL would ask on the terminal.
    raise ValueError("the key has a passphrase")
