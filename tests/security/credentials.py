"""Keys, tokens and certificates to test with."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import trustme
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from qinfer.keys import digest

ISSUER, AUDIENCE = "https://issuer.test", "qinfer"


def write_keys(path: Path, **entries: Mapping[str, Any]) -> Path:
    """A file of keys; an entry's key is "key-of-NAME" unless it has a certificate."""
    rows = []
    for name, fields in entries.items():
        row = {"name": name, **fields}
        if "certificate" not in row:
            row.setdefault("sha256", digest(key_of(name).encode()).hex())
        rows.append(row)
    # As a new file: one that is changed in place may be looked at half written.
    made = path.with_suffix(".new")
    made.touch(0o600)
    made.write_text(yaml.safe_dump({"keys": rows}))
    return made.rename(path)


def key_of(name: str) -> str:
    return f"key-of-{name}"


def bearer(secret: str) -> str:
    return f"authorization: Bearer {secret}"


class Issuer:
    """Signs tokens and publishes its keys.

    Args:
        algorithm: "RS256", "ES256" or "EdDSA".
        kid: name of its key.
    """

    def __init__(self, algorithm: str = "ES256", kid: str = "one") -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.key: Any
        if algorithm.startswith(("RS", "PS")):
            self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        elif algorithm == "EdDSA":
            self.key = ed25519.Ed25519PrivateKey.generate()
        else:
            self.key = ec.generate_private_key(ec.SECP256R1())

    def jwk(self, **more: Any) -> dict[str, Any]:
        family = jwt.get_algorithm_by_name(self.algorithm)
        public: dict[str, Any] = json.loads(family.to_jwk(self.key.public_key()))
        return {**public, "kid": self.kid, "use": "sig", "alg": self.algorithm, **more}

    def token(self, grant: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A token that is good for a minute, but for what is said otherwise; a claim of None is left out."""
        body = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "somebody",
            "exp": time.time() + 60,
            "qinfer": {"models": ["*"]} if grant is None else dict(grant),
            **claims,
        }
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(body, self.key, algorithm=self.algorithm, headers={"kid": self.kid})


def write_jwks(path: Path, *keys: Mapping[str, Any]) -> Path:
    made = path.with_suffix(".new")
    made.write_text(json.dumps({"keys": list(keys)}))
    return made.rename(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """Files of a certificate."""

    cert: Path
    key: Path


class Authority:
    """Makes certificates and puts them into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._authority = trustme.CA(organization_name=name)
        self._folder = folder
        self._name = name
        self.ca = folder / f"{name}.ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, *names: str, common_name: str | None = None, stem: str = "") -> Pem:
        """A certificate for these DNS names, addresses or e-mail addresses."""
        made = self._authority.issue_cert(*names, common_name=common_name)
        stem = stem or f"{self._name}.{common_name or names[0]}"
        pem = Pem(cert=self._folder / f"{stem}.cert.pem", key=self._folder / f"{stem}.key.pem")
        pem.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        pem.key.touch(0o600)
        pem.key.write_bytes(made.private_key_pem.bytes())
        return pem
