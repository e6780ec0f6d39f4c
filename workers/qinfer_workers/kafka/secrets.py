"""Secrets of a pipeline: from files or the environment, never from the pipeline itself."""

from __future__ import annotations

import logging
import re
import stat
from pathlib import Path
from typing import Any

from qinfer.errors import BackendUnavailable, SetupError
from qinfer_workers.kafka.document import Document

logger = logging.getLogger(__name__)

FIELDS = {"password": "password_file", "token": "token_file", "key_password": "key_password_file"}
"""Names of fields that hold a secret, and of those that name a file with it."""

_MAX_BYTES = 64 * 1024
_IN_URL = re.compile(r"^[a-z+]+://[^/@]*:([^/@]*)@")
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


def check(document: Document) -> None:
    """Note a fault for each secret that stands in the file, and for each that is given twice."""
    _check(document, document.root, "")


def _check(document: Document, value: Any, path: str) -> None:
    if isinstance(value, list):
        for place, element in enumerate(value):
            _check(document, element, f"{path}[{place}]")
        return
    if not isinstance(value, dict):
        if isinstance(value, str):
            _check_url(document, path, value)
        return
    for name, inner in value.items():
        below = f"{path}.{name}" if path else name
        if name in FIELDS and path and not isinstance(inner, dict | list) and not path.startswith("models"):
            if inner not in (None, "") and not document.is_reference(below):
                document.fault(
                    below, f"found a secret; expected ${{NAME}}, or the name of a file in {FIELDS[name]}"
                )
            if inner not in (None, "") and value.get(FIELDS[name]):
                document.fault(below, f"given beside {FIELDS[name]}; expected one of the two")
        else:
            _check(document, inner, below)


def _check_url(document: Document, path: str, value: str) -> None:
    if path.startswith("models"):
        return
    found = _IN_URL.match(document.texts.get(path, value))
    if found and not _REFERENCE.fullmatch(found[1]):
        document.fault(path, "found a password in a URL; expected ${NAME} in its place")


def read(path: Path) -> str:
    """The secret in a file, without the end of its line.

    Raises:
        SetupError: it cannot be read, or is empty or no text.
    """
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1).decode()
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}; expected a file with a secret") from None
    except UnicodeDecodeError:
        raise SetupError(f"{path}: expected a secret in UTF-8") from None
    if len(text) > _MAX_BYTES or not text.rstrip("\r\n"):
        raise SetupError(f"{path}: expected a secret of 1 to {_MAX_BYTES} bytes; found {len(text)}")
    if mode & stat.S_IROTH:
        logger.warning("%s can be read by every user of this host, and holds a secret: chmod 600", path)
    return text.rstrip("\r\n")


def token_provider(path: Path) -> Any:
    """What aiokafka asks for a token for OAUTHBEARER: the file's content of that moment.

    Raises:
        SetupError: it cannot be read now.
        BackendUnavailable: aiokafka is not installed.
    """
    try:
        from aiokafka.abc import AbstractTokenProvider
    except ImportError as error:
        raise BackendUnavailable(f"Kafka needs a library: pip install 'qinfer[kafka]': {error}") from error

    class TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
        async def token(self) -> str:
            return read(path)

    read(path)
    return TokenFile()
