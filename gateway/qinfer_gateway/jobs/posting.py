"""Sending a webhook: one request, to a checked address, within a time, whose answer is hardly read."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from yarl import URL

from qinfer.errors import Forbidden
from qinfer_gateway.jobs.guard import Guard, GuardedResolver

TIMEOUT = 10.0
"""Seconds from the look-up of the name to the end of the answer's head."""

_CONNECT_TIMEOUT = 5.0
_MAX_HEAD = 8192
_READ = 4096  # bytes of an answer's body: enough for the connection to be used again
_GONE = 410  # the receiver wants no more
_LONGEST_RETRY_AFTER = 3600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a webhook.

    Attributes:
        problem: why it is not delivered; "" when it is.
        final: another try is in vain.
        well: its receiver is there, whatever it said.
        retry_after: seconds for which the receiver wants to be left alone.
    """

    problem: str = ""
    final: bool = False
    well: bool = True
    retry_after: float = 0.0


class Poster:
    """Sends webhooks.

    Args:
        guard: decides where they may go.
        timeout: see `TIMEOUT`.
        tls: verifies receivers; None for the authorities of the system.
    """

    def __init__(self, guard: Guard, *, timeout: float = TIMEOUT, tls: ssl.SSLContext | None = None) -> None:
        self._guard = guard
        self._timeout = timeout
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Be ready to send. Idempotent."""
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=GuardedResolver(self._guard),
                use_dns_cache=False,
                limit=0,  # the tasks that send are bounded
                ssl=self._tls or ssl.create_default_context(),
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self._timeout, connect=_CONNECT_TIMEOUT),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                max_line_size=_MAX_HEAD,
                max_field_size=_MAX_HEAD,
            )

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Send one webhook. Never raises but for a cancellation."""
        assert self._session is not None
        try:
            target = URL(url)
        except ValueError:
            return Outcome("the URL is none", final=True)
        try:
            # Addresses are not looked up; and what is checked is what will be connected to.
            self._guard.check_host(target.raw_host or "")
            async with self._session.post(
                target, data=body, headers=headers, allow_redirects=False
            ) as answer:
                outcome = _judge(answer)
                await answer.content.read(_READ)
                return outcome
        except Forbidden as error:
            return Outcome(error.message, final=True)
        except TimeoutError:
            return Outcome(f"no answer within {self._timeout:g} s", well=False)
        except aiohttp.InvalidURL:
            return Outcome("the URL is none", final=True)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            refused = _forbidden(error)
            if refused is not None:
                return Outcome(refused.message, final=True)
            return Outcome(f"{type(error).__name__}: {error}"[:500], well=False)


def _judge(answer: aiohttp.ClientResponse) -> Outcome:
    status = answer.status
    if 200 <= status < 300:
        return Outcome()
    if status == _GONE:
        return Outcome("status 410: the receiver wants no more", final=True)
    after = answer.headers.get("retry-after", "")
    seconds = float(after) if after.isdecimal() and len(after) < 7 else 0.0
    return Outcome(
        f"status {status}",
        well=status < 500,
        retry_after=min(seconds, _LONGEST_RETRY_AFTER),
    )


def _forbidden(error: BaseException | None) -> Forbidden | None:
    """The guard's refusal, where the client library has wrapped it."""
    while error is not None:
        if isinstance(error, Forbidden):
            return error
        error = error.__cause__ or error.__context__
    return None
