"""The embedded server's configuration file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qinfer.embedded.store import Store
from qinfer.errors import SetupError

HOST = "127.0.0.1"
USER = "qinfer"
MAX_PAYLOAD_LIMIT = 64 * 1024 * 1024
"""Largest message nats-server can be set to accept, in bytes."""

_ANY_PORT = -1
_LOG_SIZE_LIMIT = 16 * 1024 * 1024
_LOG_FILES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an embedded server is configured with; sizes in bytes.

    Attributes:
        name: the server's name, by which it is recognised when it answers.
        password: what clients need beside the user name `USER`.
        port: 0 for any free one.
        max_payload: largest message.
        max_memory, max_storage: what streams may take in memory and on disk; None for the server's
            own choice.
    """

    name: str
    password: str
    port: int
    max_payload: int
    max_memory: int | None = None
    max_storage: int | None = None


def render(settings: Settings, store: Store) -> str:
    """The configuration file's text. NATS reads JSON.

    Raises:
        SetupError: the store's path has characters the format cannot hold.
    """
    if any(ord(character) < 32 for character in str(store.directory)):
        raise SetupError(f"store directory {str(store.directory)!r} has control characters in its name")
    jetstream: dict[str, Any] = {"store_dir": str(store.directory)}
    if settings.max_memory is not None:
        jetstream["max_memory_store"] = settings.max_memory
    if settings.max_storage is not None:
        jetstream["max_file_store"] = settings.max_storage
    return json.dumps(
        {
            "server_name": settings.name,
            "listen": f"{HOST}:{settings.port or _ANY_PORT}",
            "ports_file_dir": str(store.ports),
            "max_payload": settings.max_payload,
            # What may wait for one slow client; at least one message of the largest size must fit.
            "max_pending": 2 * MAX_PAYLOAD_LIMIT,
            "authorization": {"user": USER, "password": settings.password},
            "jetstream": jetstream,
            "log_file": str(store.log),
            "logfile_size_limit": _LOG_SIZE_LIMIT,
            "logfile_max_num": _LOG_FILES,
        },
        indent=2,
        ensure_ascii=False,
    )
