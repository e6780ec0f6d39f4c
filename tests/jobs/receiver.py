"""A receiver of webhooks, well or badly behaved."""

from __future__ import annotations

import asyncio
import hmac
import json
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

SECRET = b"0123456789abcdef0123456789abcdef"


def secret_line(secret: bytes = SECRET) -> str:
    return f"whsec_{b64encode(secret).decode()}\n"


def secret_file(folder: Path, *secrets: bytes) -> Path:
    path = folder / "webhook-secrets"
    path.write_text("# ours\n" + "".join(map(secret_line, secrets or (SECRET,))))
    return path


def verify(secret: bytes, headers: Any, body: bytes) -> bool:
    """As the specification of Standard Webhooks has receivers do it."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = hmac.new(secret, content, "sha256").digest()
    signatures = [each.split(",", 1) for each in headers["webhook-signature"].split()]
    return any(
        version == "v1" and hmac.compare_digest(b64decode(value), expected) for version, value in signatures
    )


Behave = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def well(_: web.Request) -> web.StreamResponse:
    return web.Response(text="thanks")


@dataclass
class Receiver:
    """What came, and what is answered."""

    behave: Behave = well
    port: int = 0
    came: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    invalid: int = 0
    paths: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.paths.append(request.path)
        if not verify(SECRET, request.headers, body):
            self.invalid += 1
        self.came.append(json.loads(body))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        return await self.behave(request)


@asynccontextmanager
async def receiving(behave: Behave = well, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a free port of this host."""
    receiver = Receiver(behave)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    assert site._server is not None
    receiver.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield receiver
    finally:
        await asyncio.wait_for(runner.cleanup(), 10)
