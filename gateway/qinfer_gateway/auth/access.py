"""Who may ask this gateway for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import time

from qinfer.errors import Unauthenticated
from qinfer.keys import KeyEntry, Permission, digest, read_keys
from qinfer_gateway.auth.keyring import KeyRing
from qinfer_gateway.auth.principal import Principal
from qinfer_gateway.auth.reload import Watched
from qinfer_gateway.auth.tokens import Tokens, read_jwks

CREDENTIAL_HEADERS = (b"authorization", b"x-api-key")
"""Headers, and gRPC metadata, that credentials come in."""

CHALLENGE = 'Bearer realm="qinfer"'
"""Value of `WWW-Authenticate` beside status 401 (RFC 6750)."""

_BEARER = b"bearer "


class Access:
    """The credentials this gateway accepts.

    Args:
        keys: entries of API keys.
        tokens: checks JSON Web Tokens; None where there are none.
    """

    def __init__(self, keys: Sequence[KeyEntry] = (), tokens: Tokens | None = None) -> None:
        self._ring = KeyRing(keys)
        self._tokens = tokens

    def use_keys(self, keys: Sequence[KeyEntry]) -> None:
        """Go on with other keys; those that are not among them are refused from now on."""
        self._ring = KeyRing(keys, self._ring)

    def identify(
        self, headers: Mapping[bytes, bytes], certificate: Sequence[str], permission: Permission
    ) -> Principal:
        """Find out who sends a request, and whether they may send such a request at all.

        A bearer token comes before `X-Api-Key`, and both before the connection's certificate.

        Args:
            headers: at least those of `CREDENTIAL_HEADERS` that the request has, names in lower case.
            certificate: names of the client's certificate, which TLS has verified; empty for none.
            permission: what the request needs.

        Raises:
            Unauthenticated: no credentials, or none that are good.
            Forbidden: good ones that do not allow this.
        """
        authorization = headers.get(b"authorization", b"")
        if authorization[:7].lower() == _BEARER:
            principal = self._by_secret(authorization[7:].strip())
        elif b"x-api-key" in headers:
            principal = self._by_secret(headers[b"x-api-key"].strip())
        else:
            principal = self._by_certificate(certificate)
        if principal.expires <= time():
            raise Unauthenticated(f"the key of {principal.name} has expired")
        principal.require(permission)
        return principal

    def _by_secret(self, secret: bytes) -> Principal:
        hashed = digest(secret)
        principal = self._ring.by_digest(hashed)
        if principal is not None:
            return principal
        if self._tokens is not None:
            return self._tokens.find(hashed, secret)
        raise Unauthenticated("the key is not known here")

    def _by_certificate(self, names: Sequence[str]) -> Principal:
        principal = self._ring.by_certificate(names) if names else None
        if principal is None:
            raise Unauthenticated("no credentials; expected Authorization: Bearer KEY, or X-Api-Key: KEY")
        return principal


def make_access(
    keys_file: Path | None, jwks_file: Path | None, *, issuer: str, audience: str
) -> tuple[Access | None, list[Watched]]:
    """What the options ask for, and the files to watch for it; None when everybody may do everything.

    Raises:
        ConfigError: a file is wrong.
        BackendUnavailable: JSON Web Tokens are asked for and PyJWT is not installed.
    """
    watched: list[Watched] = []
    tokens = None
    if jwks_file is not None:
        jwks = Watched("the JSON Web Key Set", (jwks_file,), partial(read_jwks, jwks_file))
        tokens = Tokens(jwks.first(), issuer=issuer, audience=audience)
        jwks.on_change(tokens.use)
        watched.append(jwks)
    if keys_file is None:
        return (Access(tokens=tokens) if tokens is not None else None), watched
    keys = Watched("the file of API keys", (keys_file,), partial(read_keys, keys_file))
    access = Access(keys.first(), tokens)
    keys.on_change(access.use_keys)
    watched.append(keys)
    return access, watched
