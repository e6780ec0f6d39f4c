"""Bodies of the Open Inference Protocol over HTTP, with the binary tensor data extension, and its errors.

Tensors are sent and asked for in their raw form. Servers that answer in JSON all the same are understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from qinfer.client.base import Result
from qinfer.datatypes import datatype
from qinfer.errors import BY_REASON, InternalError, QInferError, from_reason
from qinfer.headers import REASON, RETRY_AFTER
from qinfer.message import Request, Tensor

_MICROSECONDS = 1_000_000
_SHOWN = 500


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def model_path(model: str, version: str = "") -> str:
    """Where a model's routes begin."""
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def infer_body(request: Request, timeout: float) -> list[bytes | memoryview]:
    """The body of an infer request: its JSON, then the raw tensors.

    Args:
        request: what is asked.
        timeout: seconds the server may take; 0 to leave that to the server.
    """
    parameters: dict[str, Any] = {**request.parameters, "binary_data_output": True}
    if timeout:
        parameters["timeout"] = max(1, int(timeout * _MICROSECONDS))
    if request.priority:
        parameters["priority"] = request.priority
    body: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": tensor.shape,
                "parameters": {"binary_data_size": len(tensor.data)},
            }
            for tensor in request.inputs
        ],
        "parameters": parameters,
    }
    if request.request_id:
        body["id"] = request.request_id
    if request.outputs:
        body["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
    return [_encode(body), *(tensor.data for tensor in request.inputs)]


def read_answer(raw: bytes, json_length: str | None) -> Result:
    """The answer in the body of a response; tensors are views into it.

    Args:
        raw: the body.
        json_length: what the header `Inference-Header-Content-Length` says, if it is there.

    Raises:
        InternalError: it is no such body.
    """
    end = int(json_length) if json_length is not None and json_length.isdigit() else len(raw)
    view = memoryview(raw)
    body = read_json(view[:end])
    try:
        tensors = []
        for output in body.get("outputs", ()):
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                tensors.append(_of_json(output))
                continue
            kind = datatype(output["datatype"]).name
            shape = [int(dim) for dim in output["shape"]]
            tensor = Tensor(output["name"], kind, shape, view[end : end + size])
            if len(tensor.data) != size:
                raise ValueError(f"output {tensor.name!r} has {len(tensor.data)} of its {size} bytes")
            tensors.append(tensor)
            end += size
        return Result(
            model=str(body.get("model_name", "")),
            version=str(body.get("model_version", "")),
            tensors=tensors,
            parameters=body.get("parameters", {}),
            request_id=str(body.get("id", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InternalError(f"the server's answer is no inference response: {error!r}") from None


def _of_json(output: Mapping[str, Any]) -> Tensor:
    kind, shape = datatype(output["datatype"]), [int(dim) for dim in output["shape"]]
    if kind.itemsize == 0:
        array = np.empty(shape, dtype=object)
        array.reshape(-1)[:] = np.asarray(output["data"], dtype=object).reshape(-1)
    else:
        array = np.asarray(output["data"], dtype=kind.dtype).reshape(shape)
    return Tensor.from_numpy(output["name"], array, kind.name)


def read_json(raw: bytes | memoryview) -> Any:
    """A JSON document.

    Raises:
        InternalError: it is none.
    """
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InternalError(f"the server's answer is not JSON: {error}") from None


def read_error(status: int, headers: Mapping[str, str], raw: bytes) -> QInferError:
    """The error in a response; of other servers than qinfer only the status tells the class.

    Args:
        status: of the response, not 2xx.
        headers: whose names are in lower case, or compared without regard to it.
        raw: the body.
    """
    try:
        body = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    told = body.get("error") if isinstance(body, dict) else None
    message = str(told or raw.decode(errors="replace").strip()[:_SHOWN] or f"HTTP status {status}")
    after = headers.get(RETRY_AFTER, "")
    retry_after = float(after) if after.isdigit() else None
    reason = headers.get(REASON, "")
    if reason:
        return from_reason(reason, message, retry_after)
    kind = next((kind for kind in BY_REASON.values() if kind.http_status == status), InternalError)
    return kind(message, retry_after=retry_after)
