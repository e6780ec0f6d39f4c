"""Requests made from the OpenAPI document, good and bad, against a served system.

Checked of every answer: it is no fault of the server's, its status, headers and body are those of the
document, and good requests are answered where bad ones are refused.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, HookContext
from schemathesis.checks import not_a_server_error

from qinfer_gateway.http import openapi
from tests.helpers import served_models
from tests.helpers.system import System, fleet

patient = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def narrowed() -> Mapping[str, Any]:
    """The document as a client of one model would write it: what fits it is answered, and nothing else is."""
    document = copy.deepcopy(openapi.build())
    parts = document["components"]
    parts["parameters"]["model"]["schema"] = {"enum": [served_models.IDENTITY["UINT8"]]}
    parts["parameters"]["version"]["schema"] = {"enum": ["1"]}
    del parts["schemas"]["RequestParameters"]["properties"]["timeout"]  # a short one passes
    parts["schemas"]["InferInput"] = {
        "type": "object",
        "properties": {
            "name": {"enum": ["x"]},
            "datatype": {"enum": ["UINT8"]},
            "shape": {"const": [2, 3]},
            "data": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 255},
                "minItems": 6,
                "maxItems": 6,
            },
        },
        "required": ["name", "datatype", "shape", "data"],
    }
    parts["schemas"]["InferRequest"]["properties"]["inputs"] |= {"minItems": 1, "maxItems": 1}
    parts["schemas"]["InferRequestedOutput"]["properties"]["name"] = {"enum": ["y"]}
    # What these say has to fit the body, other requests or the time they take: no schema can ask for that.
    unfit = {"Inference-Header-Content-Length", "Content-Encoding", "Idempotency-Key", "x-qinfer-timeout-ms"}
    for path in document["paths"].values():
        for operation in path.values():
            operation["parameters"] = [
                parameter
                for parameter in operation["parameters"]
                if parameter["$ref"].rpartition("/")[2] not in unfit
            ]
            if "requestBody" in operation:
                operation["requestBody"]["content"].pop("application/octet-stream", None)
    return document


_WIDE = 1 << 63

# A fleet that does not let itself be controlled answers these 501, which else counts as a fault; in one that
# does, what is asked here would be unloaded.
CHANGES = "^/v2/repository/models/"

anything = schemathesis.openapi.from_dict(openapi.build()).exclude(path_regex=CHANGES)
fitting = schemathesis.openapi.from_dict(dict(narrowed())).include(path_regex=r"^/v2/models/\{model\}")
changing = schemathesis.openapi.from_dict(openapi.build()).include(path_regex=CHANGES)


@anything.hook
@fitting.hook
def map_body(_: HookContext, body: Any) -> Any:
    """Leave out numbers of which JSON Schema and the server do not think alike.

    To JSON Schema 1.0 is an integer, and it knows no integers of 64 bits.
    """
    if isinstance(body, float) and body.is_integer():
        return int(body) if abs(body) < _WIDE else 0.5
    if isinstance(body, int) and abs(body) >= _WIDE:
        return 0
    if isinstance(body, list):
        return [map_body(_, element) for element in body]
    return {name: map_body(_, value) for name, value in body.items()} if isinstance(body, dict) else body


@anything.parametrize()
@patient
def test_any_request(case: Case, system: System) -> None:
    case.call_and_validate(base_url=f"http://{system.http}")


@fitting.parametrize()
@patient
def test_requests_for_a_model(case: Case, system: System) -> None:
    case.call_and_validate(base_url=f"http://{system.http}")


@changing.parametrize()
@patient
def test_requests_to_change_what_is_served(case: Case, system: System) -> None:
    """The system was told to change nothing: it says so, whatever it is asked."""
    response = case.call(base_url=f"http://{system.http}")
    assert response.status_code in (400, 405, 501), response.text
    case.validate_response(response, excluded_checks=[not_a_server_error])


async def test_what_is_not_ready_says_so_as_described(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository) as running:
        worker = await running.add_worker(served_models.WHOLE)
        await worker.drain()
        await running.unknown(worker.id)
        server = anything["/v2/health/ready"]["GET"].Case()
        model = anything["/v2/models/{model}/ready"]["GET"].Case(
            path_parameters={"model": served_models.WHOLE}
        )
        for case in (server, model):
            response = await asyncio.to_thread(case.call, base_url=f"http://127.0.0.1:{running.port}")
            assert (response.status_code, response.headers["x-qinfer-reason"]) == (400, ["no_worker"])
            case.validate_response(response)
