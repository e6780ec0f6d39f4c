"""From a URL to a bus."""

from __future__ import annotations

from urllib.parse import urlsplit

from qinfer.bus.base import Bus
from qinfer.bus.security import NatsSecurity
from qinfer.errors import SetupError
from qinfer.naming import Names


def connect(
    url: str, *, namespace: str = "default", name: str = "qinfer", security: NatsSecurity | None = None
) -> Bus:
    """The bus for a URL; `start()` it next.

    Args:
        url: "nats://host:port" (or tls, ws, wss; several separated by commas), "kafka://host:port,host:port"
            (or kafkas for TLS; options behind a '?', see `KafkaOptions`), or "memory://NAME" for the bus
            shared by everything in this process that uses the same NAME.
        namespace: the fleet's namespace.
        name: what the broker shows this connection as.
        security: files for TLS and credentials at NATS; those that the environment names when it is None.

    Raises:
        SetupError: no bus speaks the URL's scheme, or the files are wrong.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("nats", "tls", "ws", "wss"):
        from qinfer.bus.nats import NatsBus

        if security is None:
            security = NatsSecurity.from_environment()
        return NatsBus(url.split(","), names=Names(namespace), name=name, security=security)
    if scheme in ("kafka", "kafkas"):
        from qinfer.bus.kafka import KafkaBus
        from qinfer.bus.kafka.options import KafkaOptions
        from qinfer.bus.kafka.security import KafkaSecurity

        servers, options = KafkaOptions.of(url)
        credentials = KafkaSecurity.from_environment(tls=scheme == "kafkas")
        return KafkaBus(servers, names=Names(namespace), name=name, options=options, security=credentials)
    if scheme == "memory":
        from qinfer.bus.memory import MemoryBus

        return MemoryBus(urlsplit(url).netloc, names=Names(namespace))
    raise SetupError(
        f"no bus for URL scheme {scheme!r}; expected nats, tls, ws, wss, kafka, kafkas or memory"
    )
