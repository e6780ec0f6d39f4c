"""W3C trace context (https://www.w3.org/TR/trace-context-2/), read without the OpenTelemetry SDK."""

from __future__ import annotations

import re
from typing import NamedTuple

_SAMPLED = 0x01
_MAX_TRACESTATE = 512
# Version ff and ids of zeros are invalid; only versions after 00 may append fields.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{53}-)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
_valid = _TRACEPARENT.fullmatch
_ODD = frozenset("13579bdf")
_FLAG_POSITION = 54
_LENGTH = 55


class TraceParent(NamedTuple):
    """What a valid `traceparent` says."""

    trace_id: int
    span_id: int
    flags: int

    @property
    def sampled(self) -> bool:
        return bool(self.flags & _SAMPLED)


def parse(traceparent: str | None) -> TraceParent | None:
    """Read a `traceparent`; None when there is none or it is invalid, which means the same: no parent."""
    if not traceparent:
        return None
    if not _valid(traceparent):
        return None
    return TraceParent(int(traceparent[3:35], 16), int(traceparent[36:52], 16), int(traceparent[53:55], 16))


def sampled_flag(traceparent: str) -> bool | None:
    """Whether a caller's `traceparent` has its sampled flag set; None when it is invalid."""
    return traceparent[_FLAG_POSITION] in _ODD if _valid(traceparent) else None


def is_sampled(traceparent: str) -> bool:
    """Whether a `traceparent` written by a qinfer gateway or client has its sampled flag set.

    Looks at the one character that tells and does not validate: for hot paths that `parse` later.
    """
    return len(traceparent) >= _LENGTH and traceparent[_FLAG_POSITION] in _ODD


def trace_id(traceparent: str) -> str:
    """The trace id's 32 hex digits, sampled or not, for logs; "" when `traceparent` is invalid."""
    parent = parse(traceparent)
    return f"{parent.trace_id:032x}" if parent else ""


def format_traceparent(trace_id: int, span_id: int, flags: int) -> str:
    """Write a `traceparent` of version 00."""
    return f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"


def usable_tracestate(tracestate: str | None) -> str:
    """`tracestate` if it is short enough to be passed on; vendors may drop a longer one, and here it is."""
    return tracestate if tracestate and len(tracestate) <= _MAX_TRACESTATE else ""
