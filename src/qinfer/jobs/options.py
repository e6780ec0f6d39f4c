"""Limits of jobs, and the options that are within them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address
from math import isfinite
from urllib.parse import urlsplit

from qinfer.errors import InvalidRequest
from qinfer.jobs.record import JobOptions
from qinfer.jobs.stored import DAY, LONGEST_QUEUE

LONGEST_KEEP = 7 * DAY
"""Seconds for which a job may be kept after its end."""

LONGEST_TIMEOUT = DAY
"""Seconds that an attempt may take."""

MOST_ATTEMPTS = 100
MAX_URL = 2048

_NUMERIC = re.compile(r"[0-9.]+|0[xX][0-9a-fA-F]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """What a namespace takes in; times in seconds.

    Attributes:
        max_jobs: jobs that wait or run; more are refused with `QueueFull`.
        max_bytes: what requests and results may take at the broker; 0 where only the broker knows.
        timeout: what an attempt may take that does not say.
        keep: how long a job is kept after its end that does not say.
    """

    max_jobs: int = 100_000
    max_bytes: int = 0
    timeout: float = 600.0
    keep: float = DAY


def check_options(options: JobOptions) -> JobOptions:
    """Return options that can be met.

    Raises:
        InvalidRequest: they cannot; the message names the option.
    """
    for name, most in (
        ("max_queue_time", LONGEST_QUEUE),
        ("timeout", LONGEST_TIMEOUT),
        ("keep", LONGEST_KEEP),
    ):
        value = getattr(options, name)
        if not isfinite(value) or not 0 <= value <= most:
            raise InvalidRequest(f"job option {name} is {value!r}; expected 0 to {most:g} seconds")
    if not 1 <= options.max_attempts <= MOST_ATTEMPTS:
        raise InvalidRequest(
            f"job option max_attempts is {options.max_attempts}; expected 1 to {MOST_ATTEMPTS}"
        )
    if options.webhook:
        check_url(options.webhook)
    return options


def check_url(url: str) -> str:
    """Return a URL that a webhook may have.

    Raises:
        InvalidRequest: it is none.
    """
    shown = url[:100]
    if len(url) > MAX_URL or not (url.isascii() and url.isprintable()) or " " in url:
        raise InvalidRequest(
            f"job option webhook is {shown!r} of {len(url)} characters; expected a URL of at most {MAX_URL} "
            "printable ASCII characters"
        )
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (it is checked when it is read)
    except ValueError as error:
        raise InvalidRequest(f"job option webhook is {shown!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"job option webhook is {shown!r}; expected http://HOST… or https://HOST…")
    if _NUMERIC.fullmatch(parts.hostname) and not _is_address(parts.hostname):
        raise InvalidRequest(f"job option webhook is {shown!r}; expected a name, or an address as 192.0.2.1")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest("job option webhook has a user or password in it; webhooks are signed instead")
    return url


def _is_address(host: str) -> bool:
    try:
        IPv4Address(host)
    except ValueError:
        return False
    return True
