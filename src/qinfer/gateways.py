"""What gateways tell over the bus of themselves, for those who cannot ask them as clients do."""

from __future__ import annotations

import socket

import msgspec

from qinfer.bus import Bus

STATE = "gateways"
"""Topic of `Bus.ask` on which every gateway tells its state."""

_MANY = 1024
_SECONDS = 0.5


class GatewayState(msgspec.Struct, array_like=True, frozen=True):
    """The state of one gateway.

    Attributes:
        host: where it runs.
        ready: whether requests for every model it knows can be answered.
        models: names of the models that it knows to be served.
    """

    host: str
    ready: bool
    models: list[str]


_decode = msgspec.msgpack.Decoder(GatewayState).decode


def state_of(*, ready: bool, models: list[str]) -> bytes:
    """A gateway's answer."""
    return msgspec.msgpack.encode(GatewayState(socket.gethostname(), ready, models))


async def gateways_here(bus: Bus, *, alone: int = 0) -> list[GatewayState]:
    """The gateways of this host.

    Args:
        bus: a started bus.
        alone: how many there are, if there are no others on other hosts to wait for; 0 if that is not known.

    Raises:
        BusUnavailable: they cannot be asked.
    """
    answers = await bus.ask(STATE, b"", answers=alone or _MANY, timeout=_SECONDS)
    states = []
    for answer in answers:
        try:
            states.append(_decode(answer))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # of another version
    return [state for state in states if state.host == socket.gethostname()]
