"""JSON Web Tokens (RFC 7519), signed by an issuer whose public keys lie in a file.

Only asymmetric signatures: whoever can check a token with a shared secret can make one.
"""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from pathlib import Path
from time import time
from typing import Any

import msgspec

from qinfer.errors import BackendUnavailable, ConfigError, Unauthenticated
from qinfer.keys import Grant, field_of
from qinfer_gateway.auth.limiter import RateLimit
from qinfer_gateway.auth.principal import Principal

ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512", "ES256K"),
    "OKP": ("EdDSA",),
}
"""Signature algorithms that are accepted, by the `kty` of the key."""

CLAIM = "qinfer"
"""The claim that says what a token allows: an object with the fields of `qinfer.keys.Grant`."""

LEEWAY = 30.0
"""Seconds by which the clocks of issuer and gateway may differ."""

_MAX_TOKEN_BYTES = 8192
_MAX_FILE_BYTES = 1024 * 1024
_MAX_KNOWN = 4096
_SHOWN = 200  # characters of a subject that logs and messages repeat
_MIN_RSA_BITS = 2048


class Jwks:
    """An issuer's public keys (RFC 7517).

    Raises:
        ConfigError: the document is no set of public keys.
        BackendUnavailable: PyJWT is not installed.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self._keys: dict[str | None, list[tuple[Any, tuple[str, ...]]]] = {}
        jwt = library()
        try:
            keys = json.loads(data)["keys"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ConfigError(f'{source}: expected a JSON Web Key Set, {{"keys": [...]}}') from None
        for index, key in enumerate(keys if isinstance(keys, list) else ()):
            where = f"{source}: keys[{index}]"
            if not isinstance(key, dict):
                raise ConfigError(f"{where}: found no object; expected a key")
            if key.get("use", "sig") != "sig":
                continue
            allowed = _algorithms(key, where)
            self._keys.setdefault(key.get("kid"), []).append(
                (_public_key(jwt, key, allowed[0], where), allowed)
            )
        if not self._keys:
            raise ConfigError(f"{source}: no key; expected at least one for signatures")

    def candidates(self, kid: object) -> list[tuple[Any, tuple[str, ...]]]:
        """The keys a token may be signed with, each with its algorithms; all, if it does not say which."""
        if isinstance(kid, str):
            return self._keys.get(kid, [])
        return [pair for pairs in self._keys.values() for pair in pairs]


def read_jwks(path: Path) -> Jwks:
    """Read a file of public keys.

    Raises:
        ConfigError: it cannot be read, or is none.
        BackendUnavailable: PyJWT is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected a JSON Web Key Set") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_FILE_BYTES} bytes; expected at most that")
    return Jwks(data, str(path))


class Tokens:
    """Checks tokens. One that was good is not checked again until it ends or the keys change.

    Args:
        jwks: the issuer's keys.
        issuer, audience: what the claims `iss` and `aud` have to say.
    """

    def __init__(self, jwks: Jwks, *, issuer: str, audience: str) -> None:
        self._jwt = library()
        self._issuer = issuer
        self._audience = audience
        self._jwks = jwks
        self._known: OrderedDict[bytes, Principal] = OrderedDict()
        self._limits: OrderedDict[str, RateLimit] = OrderedDict()

    def use(self, jwks: Jwks) -> None:
        """Go on with other keys; every token is checked anew."""
        self._jwks = jwks
        self._known.clear()

    def find(self, digest: bytes, token: bytes) -> Principal:
        """Who a token says its bearer is; `digest` is the token's SHA-256.

        Raises:
            Unauthenticated: it is not good, or not any more.
        """
        principal = self._known.get(digest)
        if principal is not None and principal.expires > time():
            return principal
        principal = self._read(token)
        self._known[digest] = principal
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return principal

    def _read(self, token: bytes) -> Principal:
        if len(token) > _MAX_TOKEN_BYTES:
            raise Unauthenticated(f"the token is longer than {_MAX_TOKEN_BYTES} bytes")
        errors = self._jwt.exceptions
        try:
            kid = self._jwt.get_unverified_header(token).get("kid")
        except errors.PyJWTError:
            raise Unauthenticated("neither a key that is known here nor a JSON Web Token") from None
        for key, algorithms in self._jwks.candidates(kid):
            try:
                return self._principal(self._verify(token, key, algorithms))
            except (errors.InvalidSignatureError, errors.InvalidAlgorithmError, errors.InvalidKeyError):
                continue  # another key's, perhaps
            except errors.PyJWTError as error:
                raise Unauthenticated(f"the token is not accepted: {error}") from None
        raise Unauthenticated("the token is not accepted: it is signed with no key known here")

    def _verify(self, token: bytes, key: Any, algorithms: tuple[str, ...]) -> dict[str, Any]:
        claims: dict[str, Any] = self._jwt.decode(
            token,
            key,
            algorithms=list(algorithms),
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return claims

    def _principal(self, claims: dict[str, Any]) -> Principal:
        try:
            grant = msgspec.convert(claims.get(CLAIM, {}), Grant)
        except msgspec.ValidationError as error:
            raise Unauthenticated(f"the token's claim {CLAIM!r} is wrong: {field_of(error)}") from None
        subject = str(claims["sub"])
        return Principal(
            subject[:_SHOWN], grant, self._limit(subject, grant), expires=float(claims["exp"]) + LEEWAY
        )

    def _limit(self, subject: str, grant: Grant) -> RateLimit | None:
        """The rate belongs to the subject: a new token is no new allowance."""
        if grant.rate is None:
            return None
        limit = RateLimit(grant.rate, grant.burst)
        old = self._limits.pop(subject, None)
        if old is not None and (old.rate, old.burst) == (limit.rate, limit.burst):
            limit = old
        self._limits[subject] = limit
        if len(self._limits) > _MAX_KNOWN:
            self._limits.popitem(last=False)
        return limit


def library() -> Any:
    """PyJWT with its cryptography.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        importlib.import_module("cryptography")
        return importlib.import_module("jwt")
    except ImportError as error:
        raise BackendUnavailable(
            f"JSON Web Tokens need PyJWT and cryptography: pip install 'qinfer[security]': {error}"
        ) from error


def _public_key(jwt: Any, key: dict[str, Any], algorithm: str, where: str) -> Any:
    if "d" in key:
        raise ConfigError(f"{where}: found a private key; expected public ones only")
    try:
        made = jwt.PyJWK(key, algorithm=algorithm).key
    except (jwt.exceptions.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{where}: no usable public key: {error}") from None
    if key["kty"] == "RSA" and made.key_size < _MIN_RSA_BITS:
        raise ConfigError(f"{where}: found {made.key_size} bits; expected at least {_MIN_RSA_BITS}")
    return made


def _algorithms(key: dict[str, Any], where: str) -> tuple[str, ...]:
    kind, algorithm = key.get("kty"), key.get("alg")
    allowed = ALGORITHMS.get(kind) if isinstance(kind, str) else None
    if allowed is None:
        raise ConfigError(f"{where}.kty: found {kind!r}; expected one of {', '.join(ALGORITHMS)}")
    if algorithm is None:
        return _natural(key, allowed)
    if algorithm not in allowed:
        raise ConfigError(f"{where}.alg: found {algorithm!r}; expected one of {', '.join(allowed)}")
    return (str(algorithm),)


def _natural(key: dict[str, Any], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The algorithms of a key that does not name its own: an elliptic curve has just one."""
    curves = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "secp256k1": "ES256K"}
    curve = curves.get(str(key.get("crv"))) if key.get("kty") == "EC" else None
    return (curve,) if curve is not None else allowed
