"""The routes of the repository extension: which models there are, load one, unload one."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qinfer.control import MAX_OVERRIDE
from qinfer.errors import InvalidRequest, PayloadTooLarge
from qinfer_gateway import repository
from qinfer_gateway.front import Front
from qinfer_gateway.http.jsondata import encode_json

INDEX = "/v2/repository/index"
LOAD = "/v2/repository/models/{model}/load"
UNLOAD = "/v2/repository/models/{model}/unload"

_MAX_BODY = 2 * MAX_OVERRIDE  # a configuration within a string of JSON has its quotes escaped

T = TypeVar("T")


class IndexBody(msgspec.Struct):
    """Body of a request for the index; it may be left out."""

    ready: bool = False


class ChangeBody(msgspec.Struct):
    """Body of a load or unload; it may be left out."""

    parameters: dict[str, Any] | None = None


def routes(front: Front) -> list[Route]:
    """The routes, answered by what the front knows of the fleet."""
    endpoints = RepositoryRoutes(front)
    table = ((INDEX, endpoints.index), (LOAD, endpoints.load), (UNLOAD, endpoints.unload))
    return [Route(path, endpoint, methods=["POST"]) for path, endpoint in table]


class RepositoryRoutes:
    """The endpoints."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def index(self, request: Request) -> Response:
        body = await _read(request, IndexBody)
        states = await repository.index(self._front.repository, ready=body.ready)
        rows = [
            {"name": one.name, "version": one.version, "state": one.state, "reason": one.reason}
            for one in states
        ]
        return Response(encode_json(rows), media_type="application/json")

    async def load(self, request: Request) -> Response:
        body = await _read(request, ChangeBody)
        config = repository.override_of(body.parameters or {})
        await self._front.repository.load(request.path_params["model"], config=config)
        return Response()

    async def unload(self, request: Request) -> Response:
        body = await _read(request, ChangeBody)
        repository.check_unload(body.parameters or {})
        await self._front.repository.unload(request.path_params["model"])
        return Response()


async def _read(request: Request, kind: type[T]) -> T:
    """The request's body.

    Raises:
        InvalidRequest: it is not what is expected.
        PayloadTooLarge: it is larger than any that could be.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise PayloadTooLarge(f"request body is above the limit of {_MAX_BODY} bytes")
    if not body:
        return kind()
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"request body: {error}") from None
