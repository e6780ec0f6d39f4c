"""What one HTTP connection may take."""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass

logger = logging.getLogger(__name__)

MIN_RATE = 1024
"""Bytes a second that a request has to arrive with, beyond the time it is given anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits of the connections of one gateway; times in seconds.

    Attributes:
        connections: at once; further ones are answered 503 and closed.
        idle: for how long a connection may do nothing between two requests.
        receive: how long a TLS handshake may take, a connection's first request from its beginning, and any
            other from its first byte; a request has a second more for each `MIN_RATE` bytes.
    """

    connections: int = 8192
    idle: float = 75.0
    receive: float = 30.0


_OTHER_FILES = 512  # the broker's connection, logs, models' files, and what is only just accepted


def allow_files(connections: int) -> None:
    """Raise the process's limit of open files, as far as it may, so that `connections` fit under it.

    Without that the limit of most systems, 1024, would be reached first, and nobody be told so.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError) as error:
        logger.warning("the limit of open files stays at %d: %s", soft, error)
        return
    if allowed < wanted:
        logger.warning(
            "this process may open %d files, fewer than %d connections take (ulimit -n)", allowed, connections
        )
