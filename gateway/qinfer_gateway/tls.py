"""TLS of the HTTP and gRPC servers, from the same files."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinfer.errors import ConfigError
from qinfer_gateway.auth.reload import Watched

logger = logging.getLogger(__name__)

# TLS 1.2 with forward secrecy and authenticated encryption only; those of TLS 1.3 are so by themselves.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate chain and its key, in PEM."""

    certificate: bytes
    key: bytes


class ServerTls:
    """What the servers show to clients, and ask of them.

    A certificate that changes is used for new connections; a changed `client_ca` needs a new process.

    Args:
        certificate: PEM file of the certificate, followed by those between it and the root.
        key: PEM file of its private key, without a passphrase.
        client_ca: PEM file of the authorities whose clients are let in; None to ask for no certificate.

    Raises:
        ConfigError: a file cannot be read, or they do not fit.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = None if client_ca is None else _read(client_ca)
        self.watched = Watched("the TLS certificate", (certificate, key), self._load)
        self._pair: _Pair = self.watched.first()
        self._shown = self._pair
        self.context = self._context()
        """For servers that speak TLS with Python's `ssl`."""
        if client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            _load_authorities(self.context, client_ca)
        self.watched.on_change(self._use)

    def grpc_credentials(self) -> Any:
        """For grpcio's servers."""
        import grpc

        return grpc.dynamic_ssl_server_credentials(
            self._grpc_configuration(), self._grpc_news, require_client_authentication=bool(self._client_ca)
        )

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_RENEGOTIATION
        self._load_into(context)
        return context

    def _load(self) -> _Pair:
        """Read the files and make sure that they fit, before anybody is shown them."""
        self._load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        return _Pair(_read(self._certificate), _read(self._key))

    def _load_into(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_passphrase)
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise ConfigError(
                f"--tls-cert {self._certificate}, --tls-key {self._key}: {reason}; expected a certificate in"
                " PEM and its private key, without a passphrase"
            ) from None

    def _use(self, pair: _Pair) -> None:
        self._load_into(self.context)
        self._pair = pair

    def _grpc_configuration(self) -> Any:
        import grpc

        pair = self._pair
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], self._client_ca)

    def _grpc_news(self) -> Any:
        """Called by grpcio for each new connection, in a thread of its own; None when nothing changed."""
        pair = self._pair
        if pair is self._shown:
            return None
        self._shown = pair
        return self._grpc_configuration()


def certificate_names(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Common and alternative names of a verified certificate, as `ssl` gives it."""
    if not certificate:
        return ()
    common = [
        value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"
    ]
    return (*common, *(value for _, value in certificate.get("subjectAltName", ())))


def _no_passphrase() -> str:
    # Without this OpenSSL would ask on the terminal.
    raise ValueError("the key has a passphrase")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected a PEM file") from None


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--tls-client-ca {path}: {error}; expected certificates in PEM") from None
