"""How a process proves to a Kafka cluster who it is, and has the cluster prove who that is.

All of it is named in the environment, which is inherited by the processes that a process starts. Secrets may
lie in the environment or, better, in files.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinfer.errors import SetupError

logger = logging.getLogger(__name__)

VARIABLES: Mapping[str, str] = {
    "ca": "QINFER_KAFKA_CA",
    "cert": "QINFER_KAFKA_CERT",
    "key": "QINFER_KAFKA_KEY",
    "mechanism": "QINFER_KAFKA_SASL_MECHANISM",
    "user": "QINFER_KAFKA_USER",
    "password": "QINFER_KAFKA_PASSWORD",
    "password_file": "QINFER_KAFKA_PASSWORD_FILE",
}
"""Field of `KafkaSecurity` to the environment variable that gives it."""

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
"""Those that need no more than a user and a password."""

_FILES = ("ca", "cert", "key", "password_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSecurity:
    """What a connection to Kafka needs; None for each it does not.

    Attributes:
        tls: whether the connection is encrypted. It is, too, where a certificate is named.
        ca: PEM file of the authorities that may vouch for the brokers; those of the system when it is None.
        cert, key: PEM files of this client's certificate and its private key.
        mechanism: of SASL, one of `MECHANISMS`; SCRAM-SHA-512 where only a user is given.
        user: of SASL.
        password: of the user.
        password_file: file with the password, instead.
    """

    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    mechanism: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None

    @classmethod
    def from_environment(
        cls, *, tls: bool = False, environment: Mapping[str, str] = os.environ
    ) -> KafkaSecurity:
        """What the variables of `VARIABLES` say; an empty one says nothing."""
        told: dict[str, Any] = {name: environment[v] for name, v in VARIABLES.items() if environment.get(v)}
        told.update({name: Path(told[name]) for name in _FILES if name in told})
        return cls(tls=tls, **told)

    def options(self) -> dict[str, Any]:
        """Arguments for aiokafka's clients.

        Raises:
            SetupError: files are missing or cannot be read, or what is given does not belong together.
        """
        given: dict[str, Any] = {}
        encrypted = self.tls or self.ca is not None or self.cert is not None
        if encrypted:
            given["ssl_context"] = self._context()
        if self.user is not None or self.mechanism is not None:
            mechanism = self.mechanism or MECHANISMS[-1]
            if mechanism not in MECHANISMS:
                raise SetupError(
                    f"{VARIABLES['mechanism']}: found {mechanism!r}; expected one of {', '.join(MECHANISMS)}"
                )
            given |= {
                "sasl_mechanism": mechanism,
                "sasl_plain_username": self._needed("user"),
                "sasl_plain_password": self._secret(),
            }
            given["security_protocol"] = "SASL_SSL" if encrypted else "SASL_PLAINTEXT"
            if not encrypted and mechanism == "PLAIN":
                logger.warning("the password goes to Kafka in plain text: expected kafkas:// or a CA file")
        elif encrypted:
            given["security_protocol"] = "SSL"
        return given

    def _context(self) -> ssl.SSLContext:
        if (self.cert is None) != (self.key is None):
            raise SetupError(
                f"{VARIABLES['cert']} and {VARIABLES['key']}: found only one; expected both or neither"
            )
        try:
            # With a file of our own, the system's authorities are not trusted: they vouch for all sorts.
            context = ssl.create_default_context(cafile=None if self.ca is None else self._existing("ca"))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.cert is not None:
                context.load_cert_chain(
                    self._existing("cert"), self._existing("key"), password=_no_passphrase
                )
        except (ssl.SSLError, OSError, ValueError) as error:
            files = ", ".join(f"{VARIABLES[name]} {getattr(self, name)}" for name in ("ca", "cert", "key"))
            raise SetupError(f"{files}: {error}; expected PEM files, the key without a passphrase") from None
        return context

    def _existing(self, name: str) -> str:
        path: Path | None = getattr(self, name)
        if path is None or not path.is_file():
            raise SetupError(f"{VARIABLES[name]}: {path} is no file; expected the name of one")
        return str(path)

    def _needed(self, name: str) -> str:
        value: str | None = getattr(self, name)
        if value is None:
            raise SetupError(f"{VARIABLES[name]} is missing; expected it beside {VARIABLES['mechanism']}")
        return value

    def _secret(self) -> str:
        if self.password_file is None:
            return self._needed("password")
        if self.password is not None:
            raise SetupError(
                f"{VARIABLES['password']} and {VARIABLES['password_file']}: found both; expected one of them"
            )
        path = Path(self._existing("password_file"))
        if path.stat().st_mode & stat.S_IROTH:
            logger.warning("%s can be read by every user of this host, and holds a secret: chmod 600", path)
        return path.read_text().strip()


def _no_passphrase() -> str:
    # Without this OpenSSL would ask on the terminal.
    raise ValueError("the key has a passphrase")
