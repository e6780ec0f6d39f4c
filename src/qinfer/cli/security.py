"""What a server has to be told before others may reach it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Protocol

from qinfer.errors import SetupError


class SecurityOptions(Protocol):
    """Options that `serve` and `gateway` have in common."""

    @property
    def host(self) -> str: ...
    @property
    def keys_file(self) -> Path | None: ...
    @property
    def jwt_jwks(self) -> Path | None: ...
    @property
    def jwt_issuer(self) -> str: ...
    @property
    def jwt_audience(self) -> str: ...
    @property
    def tls_cert(self) -> Path | None: ...
    @property
    def tls_key(self) -> Path | None: ...
    @property
    def tls_client_ca(self) -> Path | None: ...
    @property
    def insecure(self) -> bool: ...


def check(options: SecurityOptions) -> None:
    """Refuse options that do not belong together, and an address that lets in whoever reaches it.

    Raises:
        SetupError: they do not, or it would.
    """
    if (options.tls_cert is None) != (options.tls_key is None):
        raise SetupError("--tls-cert and --tls-key: found only one of them; expected both or neither")
    if options.tls_client_ca is not None and options.tls_cert is None:
        raise SetupError("--tls-client-ca: expected --tls-cert and --tls-key beside it")
    if len({bool(options.jwt_jwks), bool(options.jwt_issuer), bool(options.jwt_audience)}) > 1:
        raise SetupError(
            "--jwt-jwks, --jwt-issuer and --jwt-audience: expected all three or none: without an audience,"
            " tokens that were made for other services would be good here, too"
        )
    if options.insecure or is_loopback(options.host):
        return
    asks = options.keys_file is not None or options.jwt_jwks is not None or options.tls_client_ca is not None
    missing = []
    if not asks:
        missing.append("it asks nobody for a key (--keys-file, --jwt-jwks or --tls-client-ca)")
    if options.tls_cert is None:
        missing.append("what it is sent can be read on the way (--tls-cert and --tls-key)")
    if missing:
        raise SetupError(
            f"--host {options.host}: other hosts could reach the server, and {' and '.join(missing)};"
            " expected both, or a loopback address such as 127.0.0.1, or --insecure to allow it"
        )


def is_loopback(host: str) -> bool:
    """Whether only processes of this host can connect to the address."""
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return all(address == "::1" or address.startswith("127.") for address in addresses)
