"""What a gateway's options say about credentials, TLS and the limits of connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qinfer_gateway.auth.access import Access, make_access
from qinfer_gateway.auth.reload import Watched
from qinfer_gateway.http.limits import ConnectionLimits, allow_files
from qinfer_gateway.options import GatewayOptions
from qinfer_gateway.tls import ServerTls


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """What both servers share.

    Attributes:
        access: the credentials that are accepted; None where none are asked for.
        tls: None to speak without.
        limits: what a connection may take.
        watched: files that are read again when they change.
    """

    access: Access | None
    tls: ServerTls | None
    limits: ConnectionLimits
    watched: Sequence[Watched]


def open_security(options: GatewayOptions) -> Security:
    """Read the files that the options name.

    Raises:
        ConfigError: one is wrong.
        BackendUnavailable: JSON Web Tokens are asked for and their library is not installed.
    """
    access, watched = make_access(
        options.keys_file, options.jwt_jwks, issuer=options.jwt_issuer, audience=options.jwt_audience
    )
    tls = None
    if options.tls_cert is not None and options.tls_key is not None:
        tls = ServerTls(options.tls_cert, options.tls_key, options.tls_client_ca)
        watched.append(tls.watched)
    limits = ConnectionLimits(
        connections=options.max_connections, idle=options.idle_timeout, receive=options.receive_timeout
    )
    allow_files((options.http_port >= 0) * limits.connections + (options.grpc_port >= 0) * limits.connections)
    return Security(access=access, tls=tls, limits=limits, watched=watched)
