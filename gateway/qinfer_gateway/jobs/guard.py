"""Where webhooks may go: to the public internet, and to what the operator allows.

Whoever may submit a job may have this gateway send a request to a URL. Without a guard that would reach what
only the gateway can: metadata services of clouds, admin ports on the loopback interface, hosts behind the
firewall. So a host's addresses are looked up here, each of them is checked, and the connection is made to one
of those, not to what the name may stand for a moment later.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

from qinfer.errors import Forbidden, SetupError

Address: TypeAlias = IPv4Address | IPv6Address

_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
_LONGEST_HOST = 253

# Addresses of IPv6 that stand for one of IPv4: mapped, translated (RFC 6052), compatible.
_EMBEDDING = tuple(IPv6Network(text) for text in ("::ffff:0:0/96", "64:ff9b::/96", "::/96"))
# What Python's tables take for global, and is not.
_LOCAL = tuple(
    ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


class Guard:
    """Decides which hosts and addresses may be connected to.

    Args:
        allowed: names of hosts, and networks as `10.1.0.0/16`, that are allowed beside public addresses.

    Raises:
        SetupError: one is neither.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._hosts: set[str] = set()
        for each in allowed:
            try:
                self._networks.append(ip_network(each, strict=False))
            except ValueError:
                if len(each) > _LONGEST_HOST or _HOST.fullmatch(each) is None:
                    raise SetupError(
                        f"--webhook-allow {each!r} is neither a host nor a network; expected for instance "
                        "hooks.example.com or 10.1.0.0/16"
                    ) from None
                self._hosts.add(each.lower().rstrip("."))

    def check_url(self, url: str) -> None:
        """Refuse a URL whose host is an address that may not be connected to; names are not looked up.

        Raises:
            Forbidden: it is.
        """
        self.check_host(urlsplit(url).hostname or "")

    def check_host(self, host: str) -> None:
        """Refuse a host that is an address which may not be connected to; names are not looked up.

        Raises:
            Forbidden: it is.
        """
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return
        self.check(host, address)

    def check(self, host: str, address: Address) -> None:
        """Refuse an address of a host that may not be connected to.

        Raises:
            Forbidden: it may not.
        """
        if host.lower().rstrip(".") in self._hosts or is_public(address):
            return
        plain = _embedded(address) or address
        if any(each in network for each in (address, plain) for network in self._networks):
            return
        raise Forbidden(
            f"a webhook may not go to {host!r}, whose address is not a public one; the operator can allow it "
            "(--webhook-allow)"
        )


class GuardedResolver(AbstractResolver):
    """Looks up names of hosts, and refuses those with an address that may not be connected to.

    Args:
        guard: decides.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a host.

        Raises:
            OSError: it has none.
            Forbidden: one of them may not be connected to.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        results: list[ResolveResult] = []
        for kind, _, protocol, _, place in found:
            text = str(place[0])
            self._guard.check(host, ip_address(text.partition("%")[0]))
            results.append(
                ResolveResult(
                    hostname=host,
                    host=text,
                    port=port,
                    family=kind,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        """Nothing is held."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet."""
    plain = _embedded(address)
    if plain is not None:
        return is_public(plain)
    if any(address in network for network in _LOCAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _embedded(address: Address) -> IPv4Address | None:
    """The address of IPv4 that one of IPv6 stands for."""
    if isinstance(address, IPv6Address) and any(address in network for network in _EMBEDDING):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
