"""The OpenAPI document of the HTTP API, made of one table of operations.

No request is answered by it; tests hold it together with the routes and with `qinfer.errors`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

from qinfer.errors import (
    BY_REASON,
    BackendUnavailable,
    BusUnavailable,
    ConfigError,
    DeadlineExceeded,
    ModelNotFound,
    NoWorker,
    PayloadTooLarge,
    QInferError,
    QueueFull,
    Retry,
    SetupError,
    ShuttingDown,
    Unsupported,
)
from qinfer_gateway.auth.rules import permission_for_route
from qinfer_gateway.front import SERVER_VERSION
from qinfer_gateway.http import deadline, generate, openapi_jobs, repository
from qinfer_gateway.http.jsondata import encode_json
from qinfer_gateway.http.openapi_headers import HEADERS, PARAMETERS
from qinfer_gateway.http.openapi_operation import ANY, INFER, REFUSED, Errors, Operation
from qinfer_gateway.http.openapi_schemas import Schema, components, ref
from qinfer_gateway.http.prefer import APPLIED
from qinfer_gateway.refusal import POSITION, REASON, WAIT

PATH = "/openapi.json"

_CHANGE: Errors = (
    *(BackendUnavailable, BusUnavailable, ConfigError, DeadlineExceeded, ModelNotFound, NoWorker),
    *(PayloadTooLarge, QueueFull, SetupError, ShuttingDown, Unsupported),
)

OBSTACLES: Errors = (NoWorker, BusUnavailable, ShuttingDown)
"""Why something is not ready. Answers that say so have the protocol's status, not that of the error."""

_NOT_READY = HTTPStatus.BAD_REQUEST
_OK = HTTPStatus.OK


_OF_STATUS: dict[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    415: ("Accept-Encoding",),
    429: (POSITION, WAIT),
}
"""Headers of answers with a status, beside those of every error."""

_TRACE = ("traceparent", "tracestate")
_INFER_HEADERS = (
    *("Inference-Header-Content-Length", "Content-Encoding", "Accept-Encoding"),
    *(deadline.HEADER, "Idempotency-Key", *_TRACE),
    *(openapi_jobs.PREFER, *openapi_jobs.OPTION_HEADERS),
)


_GENERATE_HEADERS = ("Content-Encoding", deadline.HEADER, "Idempotency-Key", *_TRACE)


def _about_model(path: str, version: str) -> Iterable[Operation]:
    """The operations on a model, or on one version of it."""
    known: dict[str, Any] = {"errors": (ModelNotFound,)}
    yield Operation(
        method="get", path=path, id=f"model{version}Metadata", summary="Inputs, outputs, versions",
        answer="ModelMetadata", **known,
    )  # fmt: skip
    yield Operation(
        method="get", path=f"{path}/ready", id=f"model{version}Ready", summary="Whether a worker serves it",
        answer="ModelReady", refused="ModelReady", obstacles=OBSTACLES, **known,
    )  # fmt: skip
    yield Operation(
        method="get", path=f"{path}/config", id=f"model{version}Config", summary="Its whole configuration",
        answer="ModelConfig", **known,
    )  # fmt: skip
    yield Operation(
        method="get", path=f"{path}/stats", id=f"model{version}Statistics", summary="Its statistics",
        answer="StatisticsReport", errors=(ModelNotFound, BusUnavailable),
    )  # fmt: skip
    yield Operation(
        method="post", path=f"{path}/infer", id=f"infer{version}", summary="Run the model",
        answer="InferAnswer", body="InferRequest", errors=INFER, binary=True, headers=_INFER_HEADERS,
        deferred=True,
    )  # fmt: skip
    generating: dict[str, Any] = {
        "answer": "GenerateAnswer", "body": "GenerateRequest", "errors": INFER, "headers": _GENERATE_HEADERS
    }  # fmt: skip
    yield Operation(
        method="post", path=f"{path}{generate.GENERATE}", id=f"generate{version}",
        summary="Run the model on plain JSON, for one response", **generating,
    )  # fmt: skip
    yield Operation(
        method="post", path=f"{path}{generate.GENERATE_STREAM}", id=f"generateStream{version}", events=True,
        summary="Run the model on plain JSON; each response is an event as soon as it is there", **generating,
    )  # fmt: skip


OPERATIONS: tuple[Operation, ...] = (
    Operation(method="get", path=PATH, id="openApi", summary="This document", answer="OpenApi"),
    Operation(
        method="get", path="/v2", id="serverMetadata", summary="Name, version, extensions",
        answer="ServerMetadata",
    ),
    Operation(
        method="get", path="/v2/health/live", id="serverLive", summary="Whether the process works",
        answer="Live", refused="Live",
    ),
    Operation(
        method="get", path="/v2/health/ready", id="serverReady", answer="Ready", refused="Ready",
        obstacles=OBSTACLES, summary="Whether every known model can be asked",
    ),
    Operation(
        method="get", path="/v2/models", id="models", answer="ModelList",
        summary="All models, with what could not be loaded",
    ),
    Operation(
        method="get", path="/v2/models/stats", id="statistics", summary="Statistics of all models",
        answer="StatisticsReport", errors=(BusUnavailable,),
    ),
    *_about_model("/v2/models/{model}", ""),
    *_about_model("/v2/models/{model}/versions/{version}", "Version"),
    Operation(
        method="post", path=repository.INDEX, id="repositoryIndex", answer="RepositoryIndex",
        body="IndexRequest", errors=(BusUnavailable, PayloadTooLarge),
        summary="Models of the workers' repositories, with their states",
    ),
    Operation(
        method="post", path=repository.LOAD, id="load", body="LoadRequest", errors=_CHANGE,
        summary="Have the workers load a model, or load it again",
    ),
    Operation(
        method="post", path=repository.UNLOAD, id="unload", body="UnloadRequest", errors=_CHANGE,
        summary="Have the workers forget a model",
    ),
    *openapi_jobs.OPERATIONS,
)  # fmt: skip


@cache
def document() -> bytes:
    """The document, as JSON."""
    return encode_json(build())


def build() -> dict[str, Any]:
    """The document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    schemas = components()
    schemas["OpenApi"] = {"type": "object", "description": "An OpenAPI document."}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "qinfer",
            "summary": "The Open Inference Protocol v2 with Triton's extensions, over a message broker.",
            "version": SERVER_VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "parameters": {**PARAMETERS, **openapi_jobs.PARAMETERS},
            "headers": {**HEADERS, **openapi_jobs.HEADERS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key, or a JWT."},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    in_path = tuple(name for name in ("model", "version", "job") if f"{{{name}}}" in operation.path)
    parameters = (*in_path, *operation.headers)
    permission = permission_for_route(operation.path)
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in parameters],
        "responses": _responses(operation),
        # A gateway that was given neither keys nor an issuer of JWTs asks nobody.
        "security": [{}, {"bearer": []}, {"key": []}] if permission else [],
    }
    if permission is not None:
        described["x-qinfer-permission"] = permission.value
    if operation.body:
        # Those that carry no tensors have nothing that must be said.
        described["requestBody"] = {
            "required": operation.errors is INFER or bool(operation.answer and operation.status != _OK),
            "content": _content(operation.body, operation.binary),
        }
    return described


def _content(schema: str, binary: bool) -> dict[str, Any]:
    raw = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}} if binary else {}
    return {"application/json": {"schema": ref(schema)}, **raw}


def _responses(operation: Operation) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "It is done."}
    if operation.answer:
        success["content"] = _content(operation.answer, operation.binary)
        if operation.events:
            success["description"] = (
                "Events, each with a response or state, or an error where one has come before."
            )
            success["content"] = {"text/event-stream": success["content"].pop("application/json")}
    if operation.binary:
        success["headers"] = _headers("Content-Encoding", "Inference-Header-Content-Length")
    responses = {str(operation.status): success}
    if operation.status == HTTPStatus.ACCEPTED:
        success["headers"] = _headers("Location")
    elif operation.deferred:
        responses[str(HTTPStatus.ACCEPTED)] = {
            "description": "It is a job, which has not ended.",
            "content": _content("Job", binary=False),
            "headers": _headers("Location", APPLIED),
        }
    kinds = {*ANY, *operation.errors, *(REFUSED if permission_for_route(operation.path) else ())}
    for status in sorted({kind.http_status for kind in kinds}):
        of_status = [kind for kind in BY_REASON.values() if kind in kinds and kind.http_status == status]
        if operation.refused and status == _NOT_READY:
            responses[str(status)] = _refusal(operation, of_status)
        else:
            responses[str(status)] = _error(status, of_status)
    return responses


def _error(status: int, kinds: list[type[QInferError]]) -> dict[str, Any]:
    lines = [f"- `{kind.reason}`: {(kind.__doc__ or '').splitlines()[0]}" for kind in kinds]
    names = _OF_STATUS.get(status, ())
    if any(kind.retry is not Retry.NEVER for kind in kinds):
        names = ("Retry-After", *names)
    reason: Schema = {
        "description": "What went wrong, for machines.",
        "required": True,
        "schema": {"type": "string", "enum": [kind.reason for kind in kinds]},
    }
    return {
        "description": "\n".join(lines),
        "headers": {REASON: reason, **_headers(*names)},
        "content": {"application/json": {"schema": ref("Error")}},
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _refusal(operation: Operation, kinds: list[type[QInferError]]) -> dict[str, Any]:
    """The answer with a status that means "no" beside the errors it stands for."""
    response = _error(_NOT_READY, [*kinds, *operation.obstacles])
    response["headers"][REASON]["required"] = bool(operation.obstacles)
    response["content"]["application/json"]["schema"] = {"anyOf": [ref(operation.refused), ref("Error")]}
    return response
