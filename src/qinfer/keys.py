"""The file of API keys: what each key may do. The keys themselves are not in it, only their SHA-256.

    keys:
      - name: ci
        sha256: 6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090
        tenant: team-a
        models: [mlp, "text-*"]

A key is 256 random bits, so nobody can find it by trying: a slow hash, which protects what people can
remember, would protect nothing here and cost every request milliseconds.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import translate
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from qinfer.errors import ConfigError

logger = logging.getLogger(__name__)

PREFIX = "qk_"
"""What keys begin with, so that scanners for leaked secrets know them."""

_SECRET_BYTES = 32
_MAX_FILE_BYTES = 8 * 1024 * 1024
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_AT = re.compile(r" - at `\$\.?(.*)`$")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there


class Permission(StrEnum):
    """What a caller may do."""

    INFERENCE = "inference"  # ask models, and see which there are
    MANAGEMENT = "management"  # load and unload them


Positive = Annotated[float, msgspec.Meta(gt=0)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key or a token allows.

    Attributes:
        tenant: whom its requests are accounted to; empty for the name of the key or the subject of the token.
        models: patterns of model names, as in a shell ("*", "text-*"); none allows no model.
        permissions: what it may do.
        rate: requests a second, on average; None for no limit.
        burst: requests that may come at once; None for those of one second.
        priority_ceiling: the most urgent priority it may ask for, 1 being the highest; 0 for no limit.
    """

    tenant: Annotated[str, msgspec.Meta(max_length=200)] = ""
    models: tuple[Text, ...] = ()
    permissions: tuple[Permission, ...] = (Permission.INFERENCE,)
    rate: Positive | None = None
    burst: Annotated[int, msgspec.Meta(ge=1)] | None = None
    priority_ceiling: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0


class KeyEntry(Grant, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the file.

    Attributes:
        name: what logs and messages call it; unique in the file.
        sha256: hex SHA-256 of the key; empty for an entry that only a certificate names.
        certificate: common or alternative name (DNS, e-mail, URI) of a client certificate that stands for the
            key; empty for none.
        expires: when it ends; None for never.
    """

    name: Text
    sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-fA-F]{64})?$")] = ""
    certificate: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[KeyEntry] | None = None


def new_key() -> str:
    """A key: the prefix and 256 random bits, 46 characters."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def digest(key: bytes) -> bytes:
    """What is kept of a key: its SHA-256, 32 bytes."""
    return hashlib.sha256(key).digest()


def pattern_of(globs: Sequence[str]) -> re.Pattern[str]:
    """One expression that matches what any of the patterns does; it matches nothing when there are none."""
    return re.compile("|".join(map(translate, globs)) or r"(?!)")


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """Read a file of keys.

    Raises:
        ConfigError: it cannot be read, others may write to it, or what it says is wrong. Hashes are not in
            the message.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; expected a file of API keys (make one with"
            " `qinfer keys create`)"
        ) from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: not a regular file; expected a file of API keys")
    if mode & _WRITABLE:
        raise ConfigError(
            f"{path}: mode {stat.S_IMODE(mode):04o}; expected a file that only its owner can write to:"
            " whoever else can may give themselves a key (chmod 600)"
        )
    if mode & stat.S_IROTH:
        logger.warning("%s can be read by every user of this host; chmod 600 would hide who has keys", path)
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_FILE_BYTES} bytes; expected at most that")
    return parse_keys(data, str(path))


def parse_keys(data: bytes | str, source: str) -> tuple[KeyEntry, ...]:
    """Read the text of a file of keys; `source` is what messages call it.

    Raises:
        ConfigError: what it says is wrong.
    """
    try:
        document = yaml.load(data, Loader=_LOADER)  # noqa: S506 - the safe loader, under either name
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: {_place(error)}: expected YAML") from None
    try:
        entries = msgspec.convert(document or {}, _File).keys or []
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {field_of(error)}") from None
    _check(entries, source)
    return tuple(entries)


def field_of(error: msgspec.ValidationError) -> str:
    """The error as messages have it: field first."""
    text = str(error)
    found = _AT.search(text)
    return f"{found[1]}: {text[: found.start()]}" if found else text


def _place(error: Exception) -> str:
    # YAML's own message quotes the line, which may hold a key that was put there by mistake.
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}" if mark is not None else type(error).__name__


def _check(entries: Sequence[KeyEntry], source: str) -> None:
    seen: dict[tuple[str, str], int] = {}
    for index, entry in enumerate(entries):
        where = f"{source}: keys[{index}]"
        if not entry.sha256 and not entry.certificate:
            raise ConfigError(f"{where}: neither sha256 nor certificate; expected at least one of them")
        if entry.burst is not None and entry.rate is None:
            raise ConfigError(f"{where}.burst: found {entry.burst}; expected rate beside it")
        for field in ("name", "sha256", "certificate"):
            value = getattr(entry, field).lower() if field == "sha256" else getattr(entry, field)
            if value and seen.setdefault((field, value), index) != index:
                shown = repr(value) if field != "sha256" else "the same key"
                raise ConfigError(f"{where}.{field}: found {shown} twice; expected each once")
