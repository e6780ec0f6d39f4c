"""From a URL to a bus."""

from __future__ import annotations

from urllib.parse import urlsplit

from qinfer.bus.base import Bus
from qinfer.errors import SetupError
from qinfer.naming import Names


def connect(url: str, *, namespace: str = "default", name: str = "qinfer") -> Bus:
    """The bus for a URL; `start()` it next.

    Args:
        url: "nats://host:port" (or tls, ws, wss; several separated by commas), or "memory://NAME" for the
            bus shared by everything in this process that uses the same NAME.
        namespace: the fleet's namespace.
        name: what the broker shows this connection as.

    Raises:
        SetupError: no bus speaks the URL's scheme.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("nats", "tls", "ws", "wss"):
        from qinfer.bus.nats import NatsBus

        return NatsBus(url.split(","), names=Names(namespace), name=name)
    if scheme == "memory":
        from qinfer.bus.memory import MemoryBus

        return MemoryBus(urlsplit(url).netloc, names=Names(namespace))
    raise SetupError(f"no bus for URL scheme {scheme!r}; expected nats, tls, ws, wss or memory")
