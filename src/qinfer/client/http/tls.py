"""How a client knows a gateway, and shows who it is itself."""

from __future__ import annotations

import ssl
from pathlib import Path

from qinfer.errors import SetupError


def tls_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """TLS for connections to a gateway.

    Args:
        ca: PEM file of the authorities that may vouch for the server; None for those of the system.
        cert, key: PEM files of the client's certificate and its private key; None for none.

    Raises:
        SetupError: a file cannot be read, or they do not fit.
    """
    if (cert is None) != (key is None):
        raise SetupError("cert and cert_key: found only one of them; expected both or neither")
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as error:
        raise SetupError(f"ca {ca}: {error}; expected certificates in PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is not None:
        try:
            context.load_cert_chain(cert, key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            raise SetupError(
                f"cert {cert}, cert_key {key}: {error}; expected a certificate in PEM and its private key, "
                "without a passphrase"
            ) from None
    return context


def _no_passphrase() -> str:
    # Without this OpenSSL would ask on the terminal.
    raise ValueError("the key has a passphrase")
