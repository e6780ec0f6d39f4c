"""Every HTTP route but `infer`, which the protocol answers itself (`qinfer_gateway.http.protocol`).

Health answers carry the JSON body of the Open Inference Protocol; a client that looks at the status alone
sees what Triton would send, 200 or 400.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from qinfer.errors import Cancelled, InternalError, MethodNotAllowed, NotFound, QInferError
from qinfer.repository.metadata import config_json
from qinfer_gateway.auth.access import CHALLENGE, Access
from qinfer_gateway.auth.http import protect
from qinfer_gateway.front import EXTENSIONS, SERVER_NAME, SERVER_VERSION, Front
from qinfer_gateway.http import generate, jobs, openapi, repository
from qinfer_gateway.http.front import HttpFront
from qinfer_gateway.http.jsondata import encode_json
from qinfer_gateway.refusal import metadata


def make_app(
    front: Front,
    access: Access | None = None,
    job_routes: Sequence[Route] | None = None,
    inference: HttpFront | None = None,
) -> Starlette:
    """The ASGI application of a gateway.

    Args:
        front: answers questions.
        access: what every route but health is guarded by; None where everybody may do everything.
        job_routes: those of jobs; None for some that say that there are none.
        inference: answers `generate`; None where the routes are only listed.
    """
    routes = Routes(front)
    model = "/v2/models/{model}"
    version = model + "/versions/{version}"
    table: list[tuple[str, Any]] = [
        (openapi.PATH, routes.openapi),
        ("/v2", routes.server),
        ("/v2/health/live", routes.live),
        ("/v2/health/ready", routes.ready),
        ("/v2/models", routes.models),
        ("/v2/models/stats", routes.statistics),
    ]
    for prefix in (model, version):
        table += [
            (prefix, routes.metadata),
            (prefix + "/ready", routes.model_ready),
            (prefix + "/config", routes.config),
            (prefix + "/stats", routes.statistics),
        ]
    # Answered by the protocol; known here so that other verbs get 405.
    infer = [Route(prefix + "/infer", routes.not_found, methods=["POST"]) for prefix in (model, version)]
    app = Starlette(
        routes=[
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in table),
            *infer,
            *generate.routes(inference),
            *repository.routes(front),
            *(jobs.routes(None, None) if job_routes is None else job_routes),
        ],
        exception_handlers={
            QInferError: _qinfer_error,
            HTTPException: _http_error,
            ClientDisconnect: _nobody,
            Exception: _internal_error,
        },
    )
    protect(app.routes, access)
    app.router.redirect_slashes = False  # a path that is not there is 404, not a detour
    return app


class Routes:
    """The endpoints."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def openapi(self, _: Request) -> Response:
        return Response(openapi.document(), media_type="application/json")

    async def server(self, _: Request) -> Response:
        return _json({"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": EXTENSIONS})

    async def live(self, _: Request) -> Response:
        live = self._front.live
        return _json({"live": live}, 200 if live else 400)

    async def ready(self, _: Request) -> Response:
        return _readiness({}, self._front.obstacle())

    async def not_found(self, _: Request) -> Response:
        raise HTTPException(404)

    async def models(self, _: Request) -> Response:
        return _json({"models": self._front.models()})

    async def metadata(self, request: Request) -> Response:
        return _json(self._front.metadata(*_target(request)))

    async def model_ready(self, request: Request) -> Response:
        model, version = _target(request)
        return _readiness({"name": model}, self._front.model_obstacle(model, version))

    async def config(self, request: Request) -> Response:
        record = self._front.record(*_target(request))
        return _json(config_json(record.config))

    async def statistics(self, request: Request) -> Response:
        report = await self._front.statistics(*_target(request))
        return Response(msgspec.json.encode(report), media_type="application/json")


def _target(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _readiness(about: dict[str, str], obstacle: QInferError | None) -> Response:
    """Ready, or what is in the way. The status of the latter is the protocol's, not that of an error."""
    if obstacle is None:
        return _json({**about, "ready": True})
    answer = {**about, "ready": False, "reason": obstacle.message}
    return _json(answer, 400, dict(metadata(obstacle)))


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(content), status, headers, media_type="application/json")


async def _qinfer_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, QInferError):
        raise error
    headers = dict(metadata(error))
    if error.http_status == 401:
        headers["www-authenticate"] = CHALLENGE
    return _json({"error": error.message}, error.http_status, headers)


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    reason = MethodNotAllowed.reason if error.status_code == 405 else NotFound.reason
    headers = {"x-qinfer-reason": reason, **(error.headers or {})}
    return _json({"error": error.detail}, error.status_code, headers)


async def _nobody(_: Request, __: Exception) -> Response:
    """Whoever sent the request left before it was whole."""
    return Response(status_code=Cancelled.http_status)


async def _internal_error(_: Request, __: Exception) -> Response:
    """What it was is in the log, which uvicorn writes; a client would learn too much from it."""
    error = InternalError("the gateway failed to answer")
    return _json({"error": error.message}, error.http_status, {"x-qinfer-reason": error.reason})
