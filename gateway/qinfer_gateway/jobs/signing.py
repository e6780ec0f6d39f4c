"""Signatures of webhooks, as Standard Webhooks has them (https://www.standardwebhooks.com)."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from pathlib import Path

from qinfer.errors import ConfigError

SECRET_PREFIX = "whsec_"  # noqa: S105 (what secrets begin with is none)
_SHORTEST, _LONGEST = 24, 64  # bytes of a secret


def signed(secrets: Sequence[bytes], message_id: str, unix_seconds: int, body: bytes) -> dict[str, str]:
    """Headers that go with a webhook, with one signature for each secret.

    Args:
        secrets: those that its receiver may have.
        message_id: the same for all tries.
        unix_seconds: when it is sent.
        body: as it is sent.
    """
    content = b"%b.%d.%b" % (message_id.encode(), unix_seconds, body)
    signatures = (b64encode(hmac.digest(secret, content, "sha256")).decode() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(unix_seconds),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def read_secrets(paths: Sequence[Path]) -> tuple[bytes, ...]:
    """The secrets of some files, one a line; empty lines and those that begin with # are none.

    Raises:
        ConfigError: a file cannot be read, has no secret, or something else.
    """
    return tuple(secret for path in paths for secret in _read(path))


def _read(path: Path) -> list[bytes]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; expected secrets of webhooks") from None
    secrets = [
        _secret(line.strip(), path, number)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#")
    ]
    if not secrets:
        raise ConfigError(f"{path}: has no secret; expected a line {SECRET_PREFIX}BASE64")
    return secrets


def _secret(line: str, path: Path, number: int) -> bytes:
    expected = f"expected {SECRET_PREFIX} and the base64 of {_SHORTEST} to {_LONGEST} random bytes"
    if not line.startswith(SECRET_PREFIX):
        raise ConfigError(f"{path}: line {number} is no secret; {expected}")
    try:
        secret = b64decode(line.removeprefix(SECRET_PREFIX), validate=True)
    except (Base64Error, ValueError):
        raise ConfigError(f"{path}: line {number} is no base64; {expected}") from None
    if not _SHORTEST <= len(secret) <= _LONGEST:
        raise ConfigError(f"{path}: line {number} has {len(secret)} bytes; {expected}")
    return secret
