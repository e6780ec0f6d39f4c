"""Requests that are wrong: each gets its status, its reason and a message that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc import StatusCode
from tritonclient.utils import InferenceServerException

from qinfer.proto import InferParameter, ModelInferRequest
from tests.gateway.grpc.calls import Calls, raw, triton_input, typed
from tests.helpers.served_models import (
    IDENTITY,
    MAX_BATCH,
    PICKY,
    RAISES,
    REFUSED,
    SAYS_ALL,
    VERSIONS,
    WHOLE,
)

FP32 = IDENTITY["FP32"]
INT8 = IDENTITY["INT8"]


def _with(request: ModelInferRequest, change: Callable[[ModelInferRequest], object]) -> ModelInferRequest:
    change(request)
    return request


def _set(parameter: InferParameter, value: str | int) -> None:
    if isinstance(value, str):
        parameter.string_param = value
    else:
        parameter.int64_param = value


def _good() -> ModelInferRequest:
    return raw(FP32, "FP32", [1, 2], bytes(8))


INVALID: dict[str, tuple[ModelInferRequest, str]] = {
    "no inputs": (ModelInferRequest(model_name=FP32), "no inputs"),
    "unknown input": (_with(_good(), lambda r: setattr(r.inputs[0], "name", "z")), "'x' is missing"),
    "input twice": (
        _with(_good(), lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(bytes(8)))),
        "twice",
    ),
    "no such datatype": (raw(FP32, "FP31", [1, 2], bytes(8)), "FP31"),
    "no such datatype, typed": (typed(FP32, "FP31", [1, 2], fp32_contents=[1, 2]), "FP31"),
    "wrong datatype": (raw(FP32, "INT32", [1, 2], bytes(8)), "INT32; expected FP32"),
    "wrong rank": (raw(FP32, "FP32", [2], bytes(8)), "[2]"),
    "wrong dims": (raw(WHOLE, "FP32", [3, 2], bytes(24)), "expected [2, 3]"),
    "negative dims": (raw(FP32, "FP32", [-1, -2], bytes(8)), "-2"),
    "too many rows": (raw(FP32, "FP32", [MAX_BATCH + 1, 1], bytes(4 * MAX_BATCH + 4)), str(MAX_BATCH)),
    "no rows": (raw(FP32, "FP32", [0, 1], b""), "0 rows"),
    "too few bytes": (raw(FP32, "FP32", [1, 2], bytes(7)), "needs 8 bytes; got 7"),
    "too many bytes": (raw(FP32, "FP32", [1, 2], bytes(9)), "needs 8 bytes; got 9"),
    "BYTES cut short": (raw(IDENTITY["BYTES"], "BYTES", [1, 1], b"\x05\x00\x00\x00ab"), "BYTES"),
    "huge shape": (raw(FP32, "FP32", [1, 1 << 62], bytes(8)), "got 8"),
    "huge shape, typed": (typed(FP32, "FP32", [1, 1 << 62], fp32_contents=[1]), "1 elements"),
    "missing raw": (_with(_good(), lambda r: r.inputs.add(name="w")), "1 elements"),
    "raw to spare": (_with(_good(), lambda r: r.raw_input_contents.append(b"")), "2 elements"),
    "neither raw nor typed": (_with(_good(), lambda r: r.ClearField("raw_input_contents")), "no contents"),
    "both raw and typed": (
        _with(_good(), lambda r: r.inputs[0].contents.fp32_contents.extend([1, 2])),
        "raw_input_contents",
    ),
    "field of another datatype": (typed(FP32, "FP32", [1, 1], fp64_contents=[1]), "fp64_contents"),
    "two fields": (typed(FP32, "FP32", [1, 1], fp32_contents=[1], int_contents=[1]), "int_contents"),
    "too few elements": (typed(FP32, "FP32", [1, 2], fp32_contents=[1]), "shape [1, 2] needs 2"),
    "out of range": (typed(INT8, "INT8", [1, 1], int_contents=[128]), "out of range for INT8"),
    "unknown output": (_with(_good(), lambda r: r.outputs.add(name="z")), "output 'z'"),
    "parameter without value": (_with(_good(), lambda r: r.parameters["p"].SetInParent()), "'p'"),
    "reserved parameter": (_with(_good(), lambda r: _set(r.parameters["triton_x"], 1)), "triton_x"),
    "no priority": (_with(_good(), lambda r: _set(r.parameters["priority"], "high")), "priority"),
    "negative timeout": (_with(_good(), lambda r: _set(r.parameters["timeout"], -1)), "timeout"),
}

UNSUPPORTED: dict[str, tuple[ModelInferRequest, str]] = {
    "classification": (
        _with(_good(), lambda r: _set(r.outputs.add(name="y").parameters["classification"], 2)),
        "output 'y'",
    ),
    "output in shared memory": (
        _with(_good(), lambda r: _set(r.outputs.add(name="y").parameters["shared_memory_region"], "r")),
        "output 'y'",
    ),
    "input in shared memory": (
        _with(
            ModelInferRequest(model_name=FP32),
            lambda r: _set(r.inputs.add(name="x").parameters["shared_memory_region"], "r"),
        ),
        "input 'x'",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid(calls: Calls, case: str) -> None:
    request, named = INVALID[case]
    failure = calls.fails("ModelInfer", request)
    assert (failure.code, failure.reason) == (StatusCode.INVALID_ARGUMENT, "invalid_request"), failure
    assert named in failure.message
    assert failure.retry_after == ""


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported(calls: Calls, case: str) -> None:
    request, named = UNSUPPORTED[case]
    failure = calls.fails("ModelInfer", request)
    assert (failure.code, failure.reason) == (StatusCode.UNIMPLEMENTED, "unsupported"), failure
    assert named in failure.message


@pytest.mark.parametrize(
    ("model", "version"), [("", ""), ("nobody", ""), ("../x ä", ""), (VERSIONS, "3"), (VERSIONS, "x")]
)
def test_unknown_model(calls: Calls, model: str, version: str) -> None:
    request = _good()
    request.model_name, request.model_version = model, version
    failure = calls.fails("ModelInfer", request)
    assert (failure.code, failure.reason) == (StatusCode.NOT_FOUND, "model_not_found")
    assert model in failure.message
    assert version in failure.message


def test_long_names_do_not_hide_the_error(calls: Calls) -> None:
    """Metadata above 8 KiB would be refused by the client, with an error about metadata."""
    for name in ("n" * 100_000, "ä" * 100_000, "😀" * 100_000):
        failure = calls.fails("ModelInfer", ModelInferRequest(model_name=name))
        assert (failure.code, failure.reason) == (StatusCode.NOT_FOUND, "model_not_found")
        assert failure.message.endswith("…")


@pytest.mark.parametrize(
    ("value", "code", "reason", "said"),
    [
        (RAISES, StatusCode.INTERNAL, "model_failed", "thirteen"),
        (REFUSED, StatusCode.INVALID_ARGUMENT, "invalid_request", "fourteen"),
    ],
)
def test_what_the_model_raises(calls: Calls, value: float, code: StatusCode, reason: str, said: str) -> None:
    failure = calls.fails("ModelInfer", typed(PICKY, "FP32", [1, 1], fp32_contents=[value]))
    assert (failure.code, failure.reason) == (code, reason)
    assert said in failure.message


def test_unmodified_client_raises(client: triton.InferenceServerClient) -> None:
    wrong = [triton_input(np.zeros((1, 1), np.int64), "INT64")]
    with pytest.raises(InferenceServerException) as caught:
        client.infer(SAYS_ALL, wrong)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "INT64; expected INT32" in caught.value.message()
    with pytest.raises(InferenceServerException) as caught:
        client.get_model_config("nobody")
    assert caught.value.status() == "StatusCode.NOT_FOUND"
