"""From a URL to a client."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import urlsplit

from qinfer.bus.security import NatsSecurity
from qinfer.client.base import AsyncClient
from qinfer.client.transport import Settings
from qinfer.errors import SetupError

KEY_VARIABLE = "QINFER_API_KEY"
"""Environment variable with the key that gateways are shown: a command line is no place for it."""

_HTTP = ("http", "https")


class ConnectOptions(TypedDict, total=False):
    """Options of `connect`, for whoever passes them on."""

    namespace: str
    key: str | None
    ca: str | Path | None
    cert: str | Path | None
    cert_key: str | Path | None
    creds: str | Path | None
    nkey: str | Path | None
    timeout: float
    retries: int
    max_in_flight: int
    when_full: Literal["wait", "raise"]
    max_connections: int
    max_claim_bytes: int
    name: str


def connect(
    url: str,
    *,
    namespace: str = "default",
    key: str | None = None,
    ca: str | Path | None = None,
    cert: str | Path | None = None,
    cert_key: str | Path | None = None,
    creds: str | Path | None = None,
    nkey: str | Path | None = None,
    timeout: float = 30.0,
    retries: int = 4,
    max_in_flight: int = 1024,
    when_full: Literal["wait", "raise"] = "wait",
    max_connections: int = 128,
    max_claim_bytes: int = 512 << 20,
    name: str = "qinfer client",
) -> AsyncClient:
    """A client for a URL, to be used with `async with`.

    Args:
        url: "http://HOST:PORT" or https for a gateway; "nats://HOST:PORT" (or tls, ws, wss; several separated
            by commas) for the broker itself.
        namespace: of the fleet, at the broker.
        key: API key or token for a gateway; None for the one in `QINFER_API_KEY`, "" for none.
        ca: PEM file of the authorities that may vouch for the server; None for those of the system.
        cert, cert_key: PEM files of this client's certificate and its private key.
        creds, nkey: files with the credentials, or the seed of the nkey, of a NATS user.
        timeout: seconds that a request may take which does not say, all its tries together.
        retries: how often a request is tried again after an error that says that this is safe.
        max_in_flight: requests on their way at once.
        when_full: whether a request beyond that waits for its turn, or is refused with `QueueFull`.
        max_connections: to a gateway at once; requests wait for one.
        max_claim_bytes: bytes held at once of tensors that are too large for a message of the broker.
        name: what the broker shows this connection as.

    Files that are not named here are those of the environment, for the broker (`QINFER_NATS_CA` and so on).

    Raises:
        SetupError: the URL is none, an option does not go with it, or a file is wrong.
    """
    settings = Settings(timeout=timeout, retries=retries, max_in_flight=max_in_flight, when_full=when_full)
    if urlsplit(url).scheme in _HTTP:
        _refuse(url, "the broker", namespace=namespace != "default", creds=creds, nkey=nkey)
        return _over_http(url, settings, key, (ca, cert, cert_key), max_connections)
    _refuse(url, "a gateway", key=key)
    named = {"ca": ca, "cert": cert, "key": cert_key, "creds": creds, "nkey": nkey}
    return _over_broker(url, settings, namespace, named, max_claim_bytes, name)


def _over_http(
    url: str,
    settings: Settings,
    key: str | None,
    files: tuple[str | Path | None, str | Path | None, str | Path | None],
    max_connections: int,
) -> AsyncClient:
    from qinfer.client.http import HttpClient
    from qinfer.client.http.tls import tls_context

    parts = urlsplit(url)
    try:
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None:
        raise SetupError(f"URL {url!r}: expected http://HOST:PORT or https://HOST:PORT")
    secure = parts.scheme == "https"
    if not secure:
        _refuse(url, "https", ca=files[0], cert=files[1], cert_key=files[2])
    return HttpClient(
        url,
        settings,
        key=os.environ.get(KEY_VARIABLE, "") if key is None else key,
        tls=tls_context(*(None if file is None else Path(file) for file in files)) if secure else None,
        max_connections=max_connections,
    )


def _over_broker(
    url: str,
    settings: Settings,
    namespace: str,
    files: dict[str, str | Path | None],
    max_claim_bytes: int,
    name: str,
) -> AsyncClient:
    from qinfer.bus import connect as connect_bus
    from qinfer.client.nats import NatsClient

    given: dict[str, Any] = {name: Path(file) for name, file in files.items() if file is not None}
    security = replace(NatsSecurity.from_environment(), **given)
    bus = connect_bus(url, namespace=namespace, name=name, security=security)
    return NatsClient(bus, settings, max_claim_bytes=max_claim_bytes)


def _refuse(url: str, where: str, **given: object) -> None:
    """Raise for options that go with something else: what they were to do would not be done."""
    found = [name for name, value in given.items() if value]
    if found:
        raise SetupError(f"{', '.join(found)}: found with {urlsplit(url).scheme}://; expected with {where}")
