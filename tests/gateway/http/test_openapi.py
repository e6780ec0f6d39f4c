"""The OpenAPI document says what the code does."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from jsonschema_rs import meta
from starlette.routing import Route

from qinfer.errors import BY_REASON, Retry
from qinfer_gateway.http import codec, openapi
from qinfer_gateway.http.app import make_app
from qinfer_gateway.http.exchange import WANTED_HEADERS
from qinfer_gateway.parameters import RequestParameters, read_parameters
from tests.helpers import http
from tests.helpers.system import System

DOCUMENT = openapi.build()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = [
    (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
IDS = [f"{method} {path}" for path, method, _ in OPERATIONS]
INFER = ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"]


def routes() -> set[tuple[str, str]]:
    """Methods and paths that are served; HEAD comes with GET by itself."""
    served: set[tuple[str, str]] = set()
    for route in make_app(None).routes:  # type: ignore[arg-type]
        assert isinstance(route, Route)
        assert route.methods
        served |= {(method.lower(), route.path) for method in route.methods - {"HEAD"}}
    return served


def reasons(response: dict[str, Any]) -> list[str]:
    return list(response["headers"]["x-qinfer-reason"]["schema"]["enum"])


def test_its_operations_are_the_routes() -> None:
    assert {(method, path) for path, method, _ in OPERATIONS} == routes()
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=IDS)
def test_its_errors_are_those_of_the_code(path: str, method: str, operation: dict[str, Any]) -> None:
    """Each under its own status, with the headers that go with it."""
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            continue
        kinds = [BY_REASON[reason] for reason in reasons(response)]
        assert kinds, (path, method, status)
        # What is in the way of being ready is told with the protocol's status.
        obstacles = openapi.OBSTACLES if path.endswith("/ready") and status == "400" else ()
        assert {kind.http_status for kind in kinds if kind not in obstacles} == {int(status)}
        worth_it = any(kind.retry is not Retry.NEVER for kind in kinds)
        assert ("Retry-After" in response["headers"]) == worth_it
        for kind in kinds:
            assert f"`{kind.reason}`: {(kind.__doc__ or '').splitlines()[0]}" in response["description"]


@pytest.mark.parametrize("path", INFER)
def test_inference_may_be_answered_every_reason(path: str) -> None:
    """But those that have nobody to be told, and 405, which is the path's."""
    responses = DOCUMENT["paths"][path]["post"]["responses"]
    named = {
        reason
        for status, response in responses.items()
        if not status.startswith("2")
        for reason in reasons(response)
    }
    left_out = {"setup", "config", "backend_unavailable", "cancelled", "method_not_allowed"}
    assert named == set(BY_REASON) - left_out


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(_references, value.values()))
    return set().union(*map(_references, value)) if isinstance(value, list) else set()


def test_its_references_lead_somewhere_and_all_of_it_is_used() -> None:
    used = _references(DOCUMENT)
    parts = DOCUMENT["components"]
    there = {
        f"#/components/{kind}/{name}" for kind in ("schemas", "parameters", "headers") for name in parts[kind]
    }
    assert used == there


@pytest.mark.parametrize("name", SCHEMAS)
def test_its_schemas_are_schemas(name: str) -> None:
    meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMAS[name]})


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("InferRequest", codec._Body),
        ("InferInput", codec._Input),
        ("InferRequestedOutput", codec._Output),
    ],
)
def test_bodies_are_those_the_codec_reads(name: str, read: type[msgspec.Struct]) -> None:
    fields = msgspec.structs.fields(read)
    assert set(SCHEMAS[name]["properties"]) == {field.name for field in fields}
    assert set(SCHEMAS[name]["required"]) == {field.name for field in fields if field.required}


def test_parameters_are_those_that_are_understood() -> None:
    given: dict[str, Any] = {"timeout": 1, "priority": 1, "binary_data_output": True}
    assert set(SCHEMAS["RequestParameters"]["properties"]) == set(given)
    assert read_parameters(given) == RequestParameters(timeout=1e-6, priority=1, binary_output=True)


def test_headers_are_those_that_are_read() -> None:
    told = {name.lower() for name in openapi._INFER_HEADERS}
    credentials = {"authorization", "x-api-key"}
    read = {name.decode() for name in WANTED_HEADERS} - {"content-length"} - credentials
    assert read <= told


async def test_it_is_served(system: System) -> None:
    async with http.connect(system.http_port) as connection:
        answer = await connection.ask(http.get(openapi.PATH))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(DOCUMENT))
