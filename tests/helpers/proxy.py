"""A TCP link for fault tests: put it between a role and its broker, then cut, stall or slow it down.

async with Proxy(broker.port) as link:
    ...  # connect to 127.0.0.1:link.port
    link.cut()
    link.restore()
"""

from loadtest.chaos.proxy import Proxy

__all__ = ["Proxy"]
