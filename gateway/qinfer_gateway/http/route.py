"""Which URLs ask a model."""

from __future__ import annotations

import re
from typing import TypeAlias
from urllib.parse import unquote

_INFER = re.compile(rb"(?:(?i:https?)://[^/?]*)?/v2/models/([^/?]+)(?:/versions/([^/?]+))?/infer(?:\?.*)?")
_MAX_ROUTES = 1024
_MAX_CACHED_URL = 512

Route: TypeAlias = tuple[str, str]
"""Model and version; an empty version is the one that is served."""


def infer_route(routes: dict[bytes, Route | None], url: bytes) -> Route | None:
    """Model and version of an infer URL; None for any other URL."""
    try:
        return routes[url]
    except KeyError:
        pass
    match = _INFER.fullmatch(url)
    if match is None:
        return None
    route = (_text(match[1]), _text(match[2] or b""))
    if len(url) <= _MAX_CACHED_URL:
        if len(routes) >= _MAX_ROUTES:
            routes.clear()
        routes[url] = route
    return route


def _text(raw: bytes) -> str:
    return unquote(raw.decode("ascii", "replace"), errors="replace")
