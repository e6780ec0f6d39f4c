"""HTTP bodies of `infer` to requests, responses to HTTP bodies.

Sources: Open Inference Protocol v2 (REST) and Triton's binary tensor data extension: with the header
`Inference-Header-Content-Length: N` the first N bytes of a body are JSON and the tensors' raw bytes follow in
order; with N = 0 the whole body is the one input of the model.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import prod
from typing import Any, Protocol

import msgspec

from qinfer.datatypes import DATATYPES
from qinfer.errors import InvalidRequest
from qinfer.message import Request, Response, Tensor
from qinfer_gateway.catalog import Target
from qinfer_gateway.http.jsondata import encode_json, pack, to_json, to_raw
from qinfer_gateway.parameters import RequestParameters, check_input, check_output, read_parameters

_NO_DATA = msgspec.Raw(b"")
_NO_SIZE = object()


class _Input(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = _NO_DATA


class _Output(msgspec.Struct, gc=False):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct, gc=False):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


_decoder = msgspec.json.Decoder(_Body)


def _uniform_decoder(element: type) -> msgspec.json.Decoder[Any]:
    """A decoder for bodies whose data are flat lists of one element type, read in one pass."""
    given = msgspec.defstruct(
        "_UniformInput",
        [
            ("name", str),
            ("shape", list[int]),
            ("datatype", str),
            ("data", list[element]),  # type: ignore[valid-type]
            ("parameters", dict[str, Any] | None, None),
        ],
        gc=False,
    )
    body = msgspec.defstruct(
        "_UniformBody",
        [
            ("inputs", list[given]),  # type: ignore[valid-type]
            ("id", str, ""),
            ("parameters", dict[str, Any] | None, None),
            ("outputs", list[_Output] | None, None),
        ],
        gc=False,
    )
    return msgspec.json.Decoder(body)


_uniform: dict[type, msgspec.json.Decoder[Any]] = {
    element: _uniform_decoder(element) for element in (bool, int, float, str)
}
_MAX_PARTS = 512


_NONE: frozenset[str] = frozenset()


class Answering(Protocol):
    """A model that has answered: its name, and constant parts of its responses, which are kept here."""

    model: str
    json_parts: dict[Hashable, bytes]


class InferBody:
    """A decoded request body.

    Attributes:
        request: the request, without correlation number and deadline.
        timeout: seconds the client allows; 0 when it does not say.
        binary: whether all outputs are wanted in binary.
        binary_outputs: names of the outputs wanted in binary, where the request says it one by one.
        json_outputs: names of those explicitly wanted in JSON.
    """

    __slots__ = ("binary", "binary_outputs", "json_outputs", "request", "timeout")

    def __init__(self, request: Request, parameters: RequestParameters) -> None:
        self.request = request
        self.timeout = parameters.timeout
        self.binary = parameters.binary_output
        self.binary_outputs: frozenset[str] = _NONE
        self.json_outputs: frozenset[str] = _NONE

    def wants_binary(self, output: str) -> bool:
        if self.binary:
            return output not in self.json_outputs
        return output in self.binary_outputs


def decode_body(body: bytes, header_length: int | None, target: Target) -> InferBody:
    """Decode a request body.

    Args:
        body: the body, decompressed.
        header_length: value of `Inference-Header-Content-Length`; None when the header is absent.
        target: the model, for a raw body that has no JSON.

    Raises:
        InvalidRequest: it is malformed; the message names the field.
        Unsupported: it asks for an extension this server does not have.
    """
    if header_length is None:
        return _decode_uniform(body, target) or _decode(body, b"", 0)
    if header_length == 0:
        return _raw_body(body, target)
    if header_length > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes"
        )
    return _decode(body[:header_length], memoryview(body), header_length)


def _decode(head: bytes, tail: bytes | memoryview, offset: int) -> InferBody:
    try:
        parsed = _decoder.decode(head)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"request body: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"request body is malformed JSON: {error}") from None
    inputs: list[Tensor] = []
    for given in parsed.inputs:
        if given.parameters:
            data, offset = _input_data(given, tail, offset)
        elif given.data is _NO_DATA:
            raise InvalidRequest(f"input {given.name!r} has neither data nor binary_data_size")
        else:
            data = to_raw(given.name, given.datatype, given.shape, given.data)
        inputs.append(Tensor(given.name, given.datatype, given.shape, data))
    if offset != len(tail):
        raise InvalidRequest(f"{len(tail) - offset} bytes follow the last binary input")
    return _infer_body(parsed, inputs)


def _decode_uniform(body: bytes, target: Target) -> InferBody | None:
    """Decode the common case: JSON data alone, flat, and of one element type for all of the model's inputs.

    Returns None for anything else and for anything wrong; the general way handles it, or says what is wrong.
    """
    element = target.element
    if element is None:
        return None
    try:
        parsed = _uniform[element].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    inputs: list[Tensor] = []
    for given in parsed.inputs:
        kind = DATATYPES.get(given.datatype)
        if given.parameters or kind is None or kind.element is not element or not kind.json:
            return None
        data = pack(given.name, given.datatype, given.shape, given.data)
        inputs.append(Tensor(given.name, given.datatype, given.shape, data))
    return _infer_body(parsed, inputs)


def _infer_body(parsed: Any, inputs: list[Tensor]) -> InferBody:
    parameters = read_parameters(parsed.parameters)
    request = Request(0, parsed.id, inputs, parameters=parameters.values, priority=parameters.priority)
    result = InferBody(request, parameters)
    if parsed.outputs:
        _wanted_outputs(parsed.outputs, result)
    return result


def _input_data(given: _Input, tail: bytes | memoryview, offset: int) -> tuple[bytes | memoryview, int]:
    """An input's raw bytes and where the next binary input begins."""
    parameters = given.parameters or {}
    check_input(given.name, parameters)
    size = parameters.get("binary_data_size", _NO_SIZE)
    if size is _NO_SIZE:
        if given.data is _NO_DATA:
            raise InvalidRequest(f"input {given.name!r} has neither data nor binary_data_size")
        return to_raw(given.name, given.datatype, given.shape, given.data), offset
    if given.data is not _NO_DATA:
        raise InvalidRequest(f"input {given.name!r} has both data and binary_data_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidRequest(f"input {given.name!r}: binary_data_size is {size!r}; expected a size in bytes")
    end = offset + size
    if end > len(tail):
        raise InvalidRequest(
            f"input {given.name!r}: binary_data_size is {size}, but only {len(tail) - offset} bytes are left"
        )
    return tail[offset:end], end


def _wanted_outputs(outputs: list[_Output], body: InferBody) -> None:
    names: list[str] = []
    binary: list[str] = []
    json: list[str] = []
    for output in outputs:
        names.append(output.name)
        parameters = output.parameters
        if not parameters:
            continue
        check_output(output.name, parameters)
        if "binary_data" in parameters:
            wanted = parameters["binary_data"]
            if not isinstance(wanted, bool):
                raise InvalidRequest(
                    f"output {output.name!r}: binary_data is {wanted!r}; expected true or false"
                )
            (binary if wanted else json).append(output.name)
    body.request.outputs = names
    body.binary_outputs = frozenset(binary)
    body.json_outputs = frozenset(json)


def _raw_body(body: bytes, target: Target) -> InferBody:
    """A body that is nothing but the raw bytes of the model's only input, as a batch of one."""
    inputs = target.record.inputs
    if len(inputs) != 1:
        raise InvalidRequest(
            f"a raw binary body needs a model with one input; {target.model!r} has {len(inputs)}"
        )
    spec = inputs[0]
    dims = list(spec.dims)
    if spec.datatype == "BYTES":
        if any(dim not in (1, -1) for dim in dims):
            raise InvalidRequest(f"a raw binary body is one element; input {spec.name!r} has shape {dims}")
        dims = [1] * len(dims)
        data: bytes = len(body).to_bytes(4, "little") + body
    else:
        data = body
        free = [index for index, dim in enumerate(dims) if dim == -1]
        if len(free) > 1:
            raise InvalidRequest(
                f"input {spec.name!r} has several variable dimensions: {dims}; send its shape"
            )
        if free:
            row = prod(dim for dim in dims if dim != -1) * DATATYPES[spec.datatype].itemsize
            if not row or len(body) % row:
                raise InvalidRequest(f"{len(body)} bytes do not fill shape {dims} of input {spec.name!r}")
            dims[free[0]] = len(body) // row
    shape = [1, *dims] if target.record.max_batch_size else dims
    tensor = Tensor(spec.name, spec.datatype, shape, data)
    result = InferBody(Request(0, "", [tensor]), RequestParameters())
    result.binary = True
    return result


def encode_body(
    target: Answering, version: str, body: InferBody, response: Response
) -> tuple[bytes, int | None]:
    """Encode a response.

    Returns:
        The body, and the length of its JSON part when binary tensors follow it.

    Raises:
        InvalidRequest: an output has no JSON form.
    """
    known = target.json_parts
    parts = [known.get(version) or _response_part(target, version)]
    if body.request.request_id:
        parts += (b',"id":', encode_json(body.request.request_id))
    if response.parameters:
        parts += (b',"parameters":', encode_json(response.parameters))
    separator = b',"outputs":['
    binary: list[bytes | memoryview] = []
    for tensor in response.outputs:
        key = (tensor.name, tensor.datatype, *tensor.shape)
        parts += (separator, known.get(key) or _tensor_part(target, key, tensor))
        if body.wants_binary(tensor.name):
            parts.append(b',"parameters":{"binary_data_size":%d}}' % len(tensor.data))
            binary.append(tensor.data)
        else:
            data = to_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
            parts += (b',"data":', data, b"}")
        separator = b","
    parts.append(b"]}" if response.outputs else b',"outputs":[]}')
    head = b"".join(parts)
    if not binary:
        return head, None
    return b"".join((head, *binary)), len(head)


def _response_part(target: Answering, version: str) -> bytes:
    """How every response of a version begins."""
    return _remember(
        target,
        version,
        b'{"model_name":%b,"model_version":%b' % (encode_json(target.model), encode_json(version)),
    )


def _tensor_part(target: Answering, key: tuple[Any, ...], tensor: Tensor) -> bytes:
    """How every output of this name, datatype and shape begins."""
    return _remember(
        target,
        key,
        b'{"name":%b,"datatype":%b,"shape":%b'
        % (encode_json(tensor.name), encode_json(tensor.datatype), encode_json(tensor.shape)),
    )


def _remember(target: Answering, key: Hashable, part: bytes) -> bytes:
    if len(target.json_parts) >= _MAX_PARTS:
        target.json_parts.clear()
    target.json_parts[key] = part
    return part
