"""JSON Web Tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio

from qinfer.errors import ConfigError, Forbidden, RateLimited, Unauthenticated
from qinfer.keys import Permission, digest
from qinfer_gateway.auth.access import Access
from qinfer_gateway.auth.tokens import Jwks, Tokens, read_jwks
from tests.helpers import http
from tests.helpers.http import floats, infer
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import Fleet
from tests.helpers.waiting import eventually
from tests.security.conftest import MakeFleet
from tests.security.credentials import AUDIENCE, ISSUER, Issuer, bearer, write_jwks, write_keys

MODEL = IDENTITY["FP32"]


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


def tokens(*keys: dict[str, Any]) -> Tokens:
    return Tokens(Jwks(json.dumps({"keys": keys}).encode(), "jwks"), issuer=ISSUER, audience=AUDIENCE)


def find(checker: Tokens, token: str) -> Any:
    return checker.find(digest(token.encode()), token.encode())


@pytest.mark.parametrize("algorithm", ["RS256", "PS384", "ES256", "EdDSA"])
def test_tokens_of_every_kind_of_key(algorithm: str) -> None:
    issuer = Issuer(algorithm)
    principal = find(tokens(issuer.jwk()), issuer.token())
    assert principal.name == "somebody"
    unnamed = issuer.jwk()
    del unnamed["alg"], unnamed["kid"], unnamed["use"]
    if not algorithm.startswith("PS"):  # an RSA key that does not say so may sign in either way
        assert find(tokens({**unnamed, "kid": "one"}), issuer.token()).name == "somebody"


def test_claims_say_what_a_token_allows(issuer: Issuer) -> None:
    grant = {
        "tenant": "a",
        "models": ["m*"],
        "permissions": ["management"],
        "priority_ceiling": 2,
        "rate": 0.001,
        "burst": 1,
    }
    checker = tokens(issuer.jwk())
    principal = find(checker, issuer.token(grant, sub="robot"))
    assert (principal.name, principal.tenant, principal.priority_ceiling) == ("robot", "a", 2)
    assert principal.allows("mlp")
    assert not principal.allows("bert")
    principal.require(Permission.MANAGEMENT)
    with pytest.raises(Forbidden):
        principal.require(Permission.INFERENCE)
    principal.take()
    with pytest.raises(RateLimited):  # a new token is no new allowance
        find(checker, issuer.token(grant, sub="robot", jti="another")).take()
    find(checker, issuer.token(grant, sub="other robot")).take()


def test_a_token_that_says_nothing_allows_no_model(issuer: Issuer) -> None:
    principal = find(tokens(issuer.jwk()), issuer.token(qinfer=None))
    assert not principal.allows("mlp")


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": None}, "exp"),
        ({"exp": 1_700_000_000}, "expired"),
        ({"exp": "soon"}, "exp"),
        ({"nbf": 10_000_000_000, "exp": 10_000_000_060}, "not yet valid"),
        ({"iss": "https://evil.test"}, "issuer"),
        ({"iss": None}, "iss"),
        ({"aud": "another"}, "udience"),
        ({"aud": None}, "aud"),
        ({"sub": None}, "sub"),
        ({"qinfer": {"models": "*"}}, "models"),
        ({"qinfer": {"admin": True}}, "admin"),
        ({"qinfer": []}, "qinfer"),
    ],
)
def test_claims_that_are_not_good(issuer: Issuer, claims: dict[str, Any], why: str) -> None:
    with pytest.raises(Unauthenticated, match=why):
        find(tokens(issuer.jwk()), issuer.token(**claims))


def test_a_token_for_ever(issuer: Issuer) -> None:
    """Its end is beyond what dates can express."""
    assert find(tokens(issuer.jwk()), issuer.token(exp=1e300)).expires > time.time()


def test_clocks_may_differ_a_little(issuer: Issuer) -> None:
    assert find(tokens(issuer.jwk()), issuer.token(exp=time.time() - 10)).name == "somebody"


def test_forged_tokens(issuer: Issuer) -> None:
    """Unsigned, signed by others, and with the public key taken for a shared secret."""
    checker = tokens(issuer.jwk())
    good = issuer.token()
    head, body, signature = good.split(".")
    none = jwt.encode(jwt.decode(good, options={"verify_signature": False}), "", algorithm="none")
    secret = json.dumps(issuer.jwk()).encode()
    shared = b".".join((_part({"alg": "HS256", "kid": "one"}), body.encode()))
    mac = base64.urlsafe_b64encode(hmac.digest(secret, shared, hashlib.sha256)).rstrip(b"=")
    forged = [
        none,
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"{head}.{_part({'iss': ISSUER, 'aud': AUDIENCE, 'sub': 'x', 'exp': 9e9}).decode()}.{signature}",
        (shared + b"." + mac).decode(),
        Issuer(kid="one").token(),
        Issuer(kid="two").token(),
        Issuer("RS256", kid="one").token(),
        good + "x" * 9000,
        "", ".", "..", "a.b", "a.b.c", "\xff.\xff.\xff",
    ]  # fmt: skip
    for token in forged:
        with pytest.raises(Unauthenticated):
            find(checker, token)
    assert find(checker, good).name == "somebody"


def _part(document: dict[str, Any]) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=")


def test_a_token_ends_while_it_is_known(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    checker = tokens(issuer.jwk())
    access = Access(tokens=checker)
    token = issuer.token(exp=time.time() + 60)
    headers = {b"authorization": b"Bearer " + token.encode()}
    assert access.identify(headers, (), Permission.INFERENCE).name == "somebody"
    later = time.time() + 60 + 31
    monkeypatch.setattr("qinfer_gateway.auth.tokens.time", lambda: later)
    monkeypatch.setattr("jwt.api_jwt.datetime", _Clock(later))
    with pytest.raises(Unauthenticated, match="expired"):
        access.identify(headers, (), Permission.INFERENCE)


class _Clock:
    """Stands for the class `datetime` where only the present is asked for."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self, tz: Any = None) -> Any:
        from datetime import datetime

        return datetime.fromtimestamp(self._now, tz)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ("", "JSON Web Key Set"),
        ("[]", "JSON Web Key Set"),
        ('{"keys": []}', "no key"),
        ('{"keys": [7]}', r"keys\[0\]"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', r"keys\[0\].kty"),
        ('{"keys": [{"kty": "RSA", "alg": "HS256", "n": "AQAB", "e": "AQAB"}]}', r"keys\[0\].alg"),
        ('{"keys": [{"kty": "RSA", "alg": "none", "n": "AQAB", "e": "AQAB"}]}', r"keys\[0\].alg"),
        ('{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}', r"keys\[0\]"),
        ('{"keys": [{"kty": "EC", "crv": "P-256"}]}', r"keys\[0\]"),
        ('{"keys": [{"kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB"}]}', "no key"),
    ],
)
def test_files_that_are_no_set_of_public_keys(tmp_path: Path, document: str, field: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(document)
    with pytest.raises(ConfigError, match=field):
        read_jwks(path)


def test_private_and_short_keys_are_refused(issuer: Issuer) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    with pytest.raises(ConfigError, match="private"):
        tokens(issuer.jwk(d="AQAB"))
    short = Issuer("RS256")
    short.key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(ConfigError, match="1024 bits"):
        tokens(short.jwk())


@pytest_asyncio.fixture
async def guarded(make_fleet: MakeFleet, tmp_path: Path, issuer: Issuer) -> AsyncIterator[Fleet]:
    async with make_fleet(
        MODEL,
        jwt_jwks=write_jwks(tmp_path / "jwks.json", issuer.jwk()),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        keys_file=write_keys(tmp_path / "keys.yaml", alice={"models": ["*"]}),
    ) as made:
        yield made


async def test_tokens_and_keys_are_accepted_side_by_side(guarded: Fleet, issuer: Issuer) -> None:
    async with http.connect(guarded.port) as connection:
        for headers, status in (
            ((bearer(issuer.token()),), 200),
            ((f"x-api-key: {issuer.token()}",), 200),
            ((bearer("key-of-alice"),), 200),
            ((bearer(issuer.token({"models": ["other"]})),), 403),
        ):
            answer = await connection.ask(infer(MODEL, floats(1.0), *headers))
            assert answer.status == status, answer
    async with http.connect(guarded.port) as connection:
        refused = await connection.ask(infer(MODEL, floats(1.0), bearer(issuer.token(exp=1))))
        assert refused.status == 401
        assert "expired" in refused.error


async def test_keys_of_the_issuer_are_changed(guarded: Fleet, issuer: Issuer, tmp_path: Path) -> None:
    """The new one is good as soon as it is read, and what the old one signed is not, known or not."""
    successor = Issuer("EdDSA", kid="two")
    old = infer(MODEL, floats(1.0), bearer(issuer.token()))
    new = infer(MODEL, floats(1.0), bearer(successor.token()))

    async def status(request: bytes) -> int:
        async with http.connect(guarded.port) as connection:
            return (await connection.ask(request)).status

    assert (await status(old), await status(new)) == (200, 401)
    access = guarded.front.access
    assert access is not None
    assert access._tokens is not None
    before = access._tokens._jwks
    write_jwks(tmp_path / "jwks.json", successor.jwk())
    await eventually(lambda: access._tokens._jwks is not before, "the file was read again")  # type: ignore[union-attr]
    assert (await status(old), await status(new)) == (401, 200)
