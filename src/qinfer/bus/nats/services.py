"""Discovery over the NATS services API (ADR-32): answers to `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`.

`nats.micro` would subscribe to each endpoint's subject, and take requests away from the stream that captures
them. So only its forms of the answers are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.service import EndpointInfo, EndpointStats, ServiceInfo, ServicePing, ServiceStats

from qinfer.bus.nats.connection import Connection
from qinfer.bus.nats.trouble import unavailable
from qinfer.bus.services import Service
from qinfer.errors import QInferError
from qinfer.naming import check_reply

ENDPOINT = "infer"
"""Name of the one endpoint that each service has."""

logger = logging.getLogger(__name__)


class Services:
    """What this process offers, for whoever asks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._services: Sequence[Service] = ()
        self._subscriptions: dict[str, Subscription] = {}
        self._changing = asyncio.Lock()

    async def replace(self, services: Iterable[Service]) -> None:
        """Offer these from now on. Without a connection they are offered when it is back.

        Raises:
            BusUnavailable: the connection is closed.
        """
        async with self._changing:
            self._services = tuple(services)
            wanted = _subjects(self._services)
            try:
                for subject in self._subscriptions.keys() - wanted:
                    await self._subscriptions.pop(subject).unsubscribe()
                for subject in wanted - self._subscriptions.keys():
                    self._subscriptions[subject] = await self._connection.client.subscribe(
                        subject, cb=self._receive
                    )
            except (nats.errors.Error, OSError) as error:
                raise unavailable(error) from error

    async def _receive(self, message: Msg) -> None:
        _, verb, *chosen = message.subject.split(".")
        answer = _ANSWERS.get(verb)
        if answer is None or not message.reply:
            return
        with contextlib.suppress(QInferError):  # who asked, asked for no inbox, or the connection has gone
            for service in self._services:
                if [service.name, service.id][: len(chosen)] == chosen:
                    told = json.dumps(answer(service)).encode()
                    self._connection.publish(check_reply(message.reply), told)


def _subjects(services: Iterable[Service]) -> set[str]:
    """Exactly those that are answered: to ask for what nobody offers is told by the broker at once."""
    subjects: set[str] = set()
    for service in services:
        subjects |= {"$SRV.*", f"$SRV.*.{service.name}", f"$SRV.*.{service.name}.{service.id}"}
    return subjects


def _ping(service: Service) -> dict[str, Any]:
    return ServicePing(**_identity(service)).to_dict()


def _info(service: Service) -> dict[str, Any]:
    endpoint = EndpointInfo(name=ENDPOINT, subject=service.subject, queue_group=service.queue)
    return ServiceInfo(**_identity(service), description=service.description, endpoints=[endpoint]).to_dict()


def _stats(service: Service) -> dict[str, Any]:
    counters = service.counters()
    endpoint = EndpointStats(
        name=ENDPOINT,
        subject=service.subject,
        queue_group=service.queue,
        num_requests=counters.requests,
        num_errors=counters.errors,
        last_error=counters.last_error,
        processing_time=counters.processing_ns,
        average_processing_time=counters.processing_ns // max(1, counters.requests),
        data=dict(counters.data),
    )
    started = service.started.astimezone(UTC)
    return ServiceStats(**_identity(service), started=started, endpoints=[endpoint]).to_dict()


def _identity(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "id": service.id,
        "version": service.version,
        "metadata": dict(service.metadata),
    }


_ANSWERS: Mapping[str, Callable[[Service], dict[str, Any]]] = {"PING": _ping, "INFO": _info, "STATS": _stats}
