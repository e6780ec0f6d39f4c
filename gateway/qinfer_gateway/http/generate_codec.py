"""Bodies of `generate` and `generate_stream`: flat JSON objects.

Source: Triton's generate extension. What is named like an input of the model is that input, `id` is the
request's identifier, and everything else, with what is in `parameters`, goes to the model as parameters.
An answer has the model's name and version, what the model returned beside its tensors, and each output under
its name: one element as it is, several as a flat list.
"""

from __future__ import annotations

from math import prod
from typing import Any

import msgspec

from qinfer.errors import InvalidRequest
from qinfer.message import Request, Tensor
from qinfer.registry import TensorRecord
from qinfer_gateway.catalog import Target
from qinfer_gateway.http.jsondata import encode_json, to_json, to_raw
from qinfer_gateway.parameters import read_parameters
from qinfer_gateway.streams import Streamed

_ID = "id"
_PARAMETERS = "parameters"
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode_generate(body: bytes, target: Target) -> tuple[Request, float]:
    """Decode a request body.

    Returns:
        The request, without correlation number and deadline, and the seconds its parameters allow (0 when
        they do not say).

    Raises:
        InvalidRequest: it is malformed; the message names the field.
    """
    try:
        fields = _fields.decode(body)
    except _UNREADABLE as error:
        raise InvalidRequest(f"request body: {error}; expected a JSON object") from None
    specs = {spec.name: spec for spec in target.record.inputs}
    inputs: list[Tensor] = []
    given: dict[str, Any] = {}
    request_id = ""
    for name, raw in fields.items():
        if name in specs:
            inputs.append(_input(specs[name], raw, batched=target.record.max_batch_size > 0))
            continue
        value = _value(name, raw)
        if name == _ID:
            if not isinstance(value, str):
                raise InvalidRequest(f"{_ID!r} is {value!r}; expected a string")
            request_id = value
        elif name == _PARAMETERS:
            if not isinstance(value, dict):
                raise InvalidRequest(f"{_PARAMETERS!r} is a {type(value).__name__}; expected an object")
            given.update(value)
        elif isinstance(value, list | dict) or value is None:
            raise InvalidRequest(
                f"{name!r} is no input of the model, which has {', '.join(map(repr, specs)) or 'none'}, and "
                f"as a parameter it is a {type(value).__name__}; expected a string, number or boolean"
            )
        else:
            given[name] = value
    told = read_parameters(given)
    request = Request(0, request_id, inputs, parameters=told.values, priority=told.priority)
    return request, told.timeout


def encode_generate(target: Target, request_id: str, streamed: Streamed) -> bytes:
    """Encode a response.

    Raises:
        InvalidRequest: an output has no JSON form.
    """
    version, response, _ = streamed
    about: dict[str, Any] = {"model_name": target.model, "model_version": version}
    if request_id:
        about[_ID] = request_id
    names = {tensor.name for tensor in response.outputs}
    about.update({name: value for name, value in response.parameters.items() if name not in {*about, *names}})
    parts = [encode_json(about)[:-1]]
    for tensor in response.outputs:
        data = to_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
        parts += (b",", encode_json(tensor.name), b":", data[1:-1] if prod(tensor.shape) == 1 else data)
    parts.append(b"}")
    return b"".join(parts)


def _value(name: str, raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except _UNREADABLE as error:
        raise InvalidRequest(f"{name!r} is malformed JSON: {error}") from None


def _input(spec: TensorRecord, raw: msgspec.Raw, *, batched: bool) -> Tensor:
    """An input of one row, unless its lists are nested so deep that they have the batch dimension, too."""
    value = _value(spec.name, raw)
    if not isinstance(value, list):
        shape, raw = [1] * len(spec.dims), msgspec.Raw(b"[%b]" % bytes(raw))
        if any(dim not in (1, -1) for dim in spec.dims):
            raise InvalidRequest(
                f"input {spec.name!r} is one element; expected lists for shape {list(spec.dims)}"
            )
    else:
        shape = _shape(value)
        if len(shape) == 1 and len(spec.dims) != 1:
            shape = _filled(spec, shape[0])
    if batched and len(shape) == len(spec.dims):
        shape = [1, *shape]
    return Tensor(spec.name, spec.datatype, shape, to_raw(spec.name, spec.datatype, shape, raw))


def _shape(value: Any) -> list[int]:
    """The shape of nested lists, as far as their first elements tell it."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _filled(spec: TensorRecord, count: int) -> list[int]:
    """The shape of a flat list: what is fixed is known, and one variable dimension follows."""
    dims = list(spec.dims)
    free = [index for index, dim in enumerate(dims) if dim == -1]
    if len(free) > 1:
        raise InvalidRequest(
            f"input {spec.name!r} has several variable dimensions: {dims}; expected nested lists"
        )
    if free:
        rest = prod(dim for dim in dims if dim != -1)
        dims[free[0]] = count // rest if rest else 0
    return dims
