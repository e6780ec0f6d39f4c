"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    INFO = "info"  # neither good nor bad, for instance an extra that is not installed
    WARN = "warn"  # works, but not as well as it could
    FAIL = "fail"  # serving, or serving this model, does not work


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result.

    Attributes:
        check: what was looked at.
        status: how serious it is.
        detail: what was found.
        advice: what to do; empty when nothing needs to be done.
    """

    check: str
    status: Status
    detail: str
    advice: str = ""
