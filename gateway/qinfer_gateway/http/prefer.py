"""What a request prefers (RFC 7240), and the headers with the options of the job that it may become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qinfer.errors import InvalidRequest
from qinfer.jobs import JobOptions
from qinfer.jobs.options import MAX_URL, check_options

PREFER = b"prefer"
APPLIED = "preference-applied"

LONGEST_WAIT = 600.0
"""Seconds for which an answer may be waited for on one connection; who asks for more gets this."""

OPTION_PREFIX = "x-qinfer-job-"
NUMBERS = ("max-queue-time", "timeout", "max-attempts", "keep")
"""Options that are numbers, with their headers' names behind the prefix."""
WEBHOOK, SPARE = "webhook", "spare"

JOB_HEADERS = frozenset(f"{OPTION_PREFIX}{name}".encode() for name in (*NUMBERS, WEBHOOK, SPARE))

_PREFERENCE = re.compile(
    r"""\s*(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)
        (?:\s*=\s*(?P<value>"[^"]*"|[^\s",;]*))?
        (?:\s*;[^",]*(?:"[^"]*"[^",]*)*)?\s*(?:,|$)""",
    re.VERBOSE,
)
_SECONDS = re.compile(r"\d{1,9}")
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Preference:
    """That a request may become a job.

    Attributes:
        wait: seconds for which the caller waits for the result before that.
        applied: value of `Preference-Applied`.
    """

    wait: float
    applied: str


def read_preference(value: bytes) -> Preference | None:
    """What a `Prefer` header says of jobs; None where that is nothing.

    What cannot be read is as if it were not there, as the RFC wants it.
    """
    found: dict[str, str] = {}
    text, position = value.decode("latin-1"), 0
    while position < len(text):
        match = _PREFERENCE.match(text, position)
        if match is None:
            position = text.find(",", position) + 1
            if not position:
                break
            continue
        found.setdefault(match["name"].lower(), (match["value"] or "").strip('"'))
        position = match.end()
    asked = found.get("wait", "")
    wait = min(float(asked), LONGEST_WAIT) if _SECONDS.fullmatch(asked) else None
    if wait is None and "respond-async" not in found:
        return None
    applied = ["respond-async"] if "respond-async" in found else []
    if wait is not None:
        applied.append(f"wait={wait:g}")
    return Preference(wait or 0.0, ", ".join(applied))


def read_options(headers: Mapping[bytes, bytes]) -> JobOptions:
    """The options of a job, from headers.

    Raises:
        InvalidRequest: a header says something that cannot be.
    """
    told: dict[str, Any] = {}
    for name in NUMBERS:
        text = _text(headers, name)
        if text is None:
            continue
        whole = name == "max-attempts"
        if not (_SECONDS if whole else _NUMBER).fullmatch(text):
            what = "a whole number" if whole else "seconds, a decimal number"
            raise InvalidRequest(f"header {OPTION_PREFIX}{name} is {text[:40]!r}; expected {what}")
        told[name.replace("-", "_")] = int(text) if whole else float(text)
    spare = _text(headers, SPARE)
    if spare is not None:
        if spare.lower() not in _SWITCH:
            raise InvalidRequest(f"header {OPTION_PREFIX}{SPARE} is {spare[:40]!r}; expected true or false")
        told[SPARE] = _SWITCH[spare.lower()]
    told[WEBHOOK] = _text(headers, WEBHOOK) or ""
    return check_options(JobOptions(**told))


def read_wait(text: str | None) -> float:
    """Seconds of a query's `wait`; 0 where it has none.

    Raises:
        InvalidRequest: it is no number.
    """
    if text is None:
        return 0.0
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(f"query parameter wait is {text[:40]!r}; expected seconds, a decimal number")
    return min(float(text), LONGEST_WAIT)


def _text(headers: Mapping[bytes, bytes], name: str) -> str | None:
    value = headers.get(f"{OPTION_PREFIX}{name}".encode())
    return None if value is None else value[: MAX_URL + 1].decode("latin-1").strip()
