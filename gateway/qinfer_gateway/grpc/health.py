"""`grpc.health.v1.Health` (https://grpc.io/docs/guides/health-checking/).

grpcio-health-checking has the messages and a servicer; the servicer has to be told of every change and never
ends a watch, which would hold up a shutdown. This one asks the gateway itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2

from qinfer.errors import NotFound
from qinfer.proto import SERVICE
from qinfer_gateway.front import Front

HEALTH_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
"""Full name of the service, "grpc.health.v1.Health"."""

_SERVICES = ("", SERVICE)
_LOOK = (
    0.25  # seconds between two looks of a watch: readiness changes with the broker, too, which tells nobody
)


class Health:
    """Answers health checks with the gateway's readiness.

    Args:
        front: knows whether the gateway is ready.
        stopping: ends all watches.
    """

    def __init__(self, front: Front, stopping: asyncio.Event) -> None:
        self._front = front
        self._stopping = stopping

    async def check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """Handler of `Check`.

        Raises:
            NotFound: no such service.
        """
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"no service {request.service!r}; expected '' or {SERVICE!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _: object
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Handler of `Watch`: the status now, and again whenever it has changed."""
        last = None
        while True:
            stopping = self._stopping.is_set()
            status = self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            if stopping:
                return
            try:
                await asyncio.wait_for(self._stopping.wait(), _LOOK)
            except TimeoutError:
                continue

    def _status(self, service: str) -> int:
        statuses = health_pb2.HealthCheckResponse
        if service not in _SERVICES:
            return int(statuses.SERVICE_UNKNOWN)
        return int(statuses.SERVING if self._front.ready else statuses.NOT_SERVING)
