"""What one HTTP connection may take."""

from __future__ import annotations

from dataclasses import dataclass

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
