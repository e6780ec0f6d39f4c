"""Where webhooks may go."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from qinfer.errors import Forbidden, SetupError
from qinfer_gateway.jobs.guard import Guard, GuardedResolver, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "198.18.0.1", "192.0.0.8", "192.0.2.1", "203.0.113.9", "224.0.0.1",
        "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
        "2002:7f00:1::", "2001:0:53aa:64c:0:7f:0:1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_addresses_that_are(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://[::1]:8080/x",
        "http://169.254.169.254/latest",
        "http://[fe80::1%25eth0]/",
    ],
)
def test_addresses_in_urls(url: str) -> None:
    with pytest.raises(Forbidden, match="--webhook-allow"):
        Guard().check_url(url)
    Guard(["0.0.0.0/0", "::/0"]).check_url(url)


def test_what_is_allowed() -> None:
    guard = Guard(["10.1.0.0/16", "Hooks.example.com", "fd00::/8", "192.168.7.7"])
    for host, address in (
        ("x", "10.1.2.3"), ("x", "::ffff:10.1.2.3"), ("hooks.EXAMPLE.com.", "127.0.0.1"), ("x", "fd12::1"),
        ("x", "192.168.7.7"),
    ):  # fmt: skip
        guard.check(host, ip_address(address))
    for host, address in (("x", "10.2.0.1"), ("evil.hooks.example.com", "127.0.0.1"), ("x", "192.168.7.8")):
        with pytest.raises(Forbidden):
            guard.check(host, ip_address(address))


@pytest.mark.parametrize(
    "entry",
    ["10.0.0.0/99", "a b", "http://x", "", "x" * 300, "-a", "a..b", "x" * 40 + "!", "a." * 100 + "!"],
)
def test_what_cannot_be_allowed(entry: str) -> None:
    with pytest.raises(SetupError, match="neither a host nor a network"):
        Guard([entry])


async def test_names_are_looked_up_and_every_address_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    found = ["93.184.216.34", "10.0.0.1"]

    async def look_up(host: str, port: int, **_: object) -> list:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up, raising=False)
    resolver = GuardedResolver(Guard())
    with pytest.raises(Forbidden, match="rebound"):
        await resolver.resolve("rebound.example", 443)
    found.pop()
    (only,) = await resolver.resolve("rebound.example", 443)
    assert (only["host"], only["port"], only["hostname"]) == ("93.184.216.34", 443, "rebound.example")
    assert only["flags"] & socket.AI_NUMERICHOST


@pytest.mark.parametrize("name", ["localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1"])
async def test_other_spellings_of_the_loopback_address(name: str) -> None:
    with pytest.raises((Forbidden, OSError)):
        await GuardedResolver(Guard()).resolve(name, 80)
