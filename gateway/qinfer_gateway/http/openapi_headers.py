"""Parameters and headers of the HTTP API, for the OpenAPI document."""

from __future__ import annotations

from qinfer_gateway.http import deadline
from qinfer_gateway.http.openapi_schemas import Schema
from qinfer_gateway.refusal import POSITION, WAIT

_NUMBER: Schema = {"type": "string", "pattern": "^[0-9]+$"}

PARAMETERS: dict[str, Schema] = {
    "model": {
        "name": "model",
        "in": "path",
        "required": True,
        "description": "The model's name, percent-encoded.",
        "schema": {"type": "string", "minLength": 1},
    },
    "version": {
        "name": "version",
        "in": "path",
        "required": True,
        "description": "A version of it; the path without one asks the newest.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "Inference-Header-Content-Length": {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "The body is this many bytes of JSON, and then the raw bytes of each input that has "
        "`binary_data_size`, in order. 0: all of the body is the model's one input.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
    },
    "Content-Encoding": {
        "name": "Content-Encoding",
        "in": "header",
        "description": "How the request's body is compressed.",
        "schema": {"type": "string", "enum": ["gzip", "deflate", "identity"]},
    },
    "Accept-Encoding": {
        "name": "Accept-Encoding",
        "in": "header",
        "description": "How the answer may be compressed: `gzip`, `deflate`.",
        "schema": {"type": "string"},
    },
    deadline.HEADER: {
        "name": deadline.HEADER,
        "in": "header",
        "description": "Milliseconds the answer may take, above 0. The shortest of this, the parameter "
        "`timeout` and the server's own limit counts.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,12}([.][0-9]{1,9})?$"},
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Requests with the same key share one execution and its answer.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    },
    "traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C trace context; the trace goes on in the gateway, the queue and the worker.",
        "schema": {"type": "string"},
    },
    "tracestate": {
        "name": "tracestate",
        "in": "header",
        "description": "W3C trace state.",
        "schema": {"type": "string"},
    },
}
"""Of requests, by the name they are referred to."""

HEADERS: dict[str, Schema] = {
    "Retry-After": {
        "description": "Whole seconds after which a retry is worth trying, where that is known.",
        "schema": _NUMBER,
    },
    "WWW-Authenticate": {
        "description": "Which credentials are expected.",
        "schema": {"type": "string"},
    },
    POSITION: {
        "description": "The place in the model's queue that the request would have had, from 1, where known.",
        "schema": _NUMBER,
    },
    WAIT: {
        "description": "Seconds until it would have been answered, where that is known.",
        "schema": {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?$"},
    },
    "Accept-Encoding": {
        "description": "The codings that are understood.",
        "schema": {"type": "string"},
    },
    "Content-Encoding": {
        "description": "How the answer's body is compressed.",
        "schema": {"type": "string", "enum": ["gzip", "deflate"]},
    },
    "Inference-Header-Content-Length": {
        "description": "The answer is this many bytes of JSON, and then the raw bytes of each output that "
        "has `binary_data_size`, in order.",
        "schema": _NUMBER,
    },
}
"""Of answers, by name."""
