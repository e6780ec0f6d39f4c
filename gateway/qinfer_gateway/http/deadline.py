"""The deadline an HTTP request brings in a header, for clients and proxies that do not write its body."""

from __future__ import annotations

import re

from qinfer.errors import InvalidRequest
from qinfer.headers import TIMEOUT

HEADER = TIMEOUT

_NUMBER = re.compile(rb"\d{1,12}(?:\.\d{1,9})?")


def read_timeout(value: bytes) -> float:
    """Seconds from the header's milliseconds, which may have decimals.

    Raises:
        InvalidRequest: it is no number above 0.
    """
    milliseconds = float(value) if _NUMBER.fullmatch(value) else 0.0
    if not milliseconds:
        shown = value[:40].decode("latin-1")
        raise InvalidRequest(f"header {HEADER} is {shown!r}; expected milliseconds, a decimal number above 0")
    return milliseconds / 1000
