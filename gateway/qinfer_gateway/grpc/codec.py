"""Protobuf messages of inference to requests, responses to protobuf messages.

Sources: Open Inference Protocol v2 (gRPC). A request's tensors are all raw, by position in
`raw_input_contents`, or all in typed `contents`; a response's are always raw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from qinfer.errors import InvalidRequest, QInferError
from qinfer.message import Request, Response, Tensor
from qinfer.proto import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from qinfer_gateway.grpc.contents import to_raw
from qinfer_gateway.parameters import check_input, check_output, read_parameters
from qinfer_gateway.refusal import metadata

FINAL_RESPONSE = "triton_final_response"
"""Parameter of every streamed response: whether it is the last one to its request."""

_LENGTH_DELIMITED = 2  # wire type of strings, bytes and messages

AnyMessage = TypeVar("AnyMessage", bound=Message)


def parse(kind: type[AnyMessage], data: bytes) -> AnyMessage:
    """Read a message.

    Raises:
        InvalidRequest: the bytes are no such message.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidRequest(
            f"{len(data)} bytes that are no protobuf message; expected {kind.DESCRIPTOR.full_name}"
        ) from None


def decode_request(message: ModelInferRequest) -> tuple[Request, float]:
    """Convert a request.

    Returns:
        The request, without correlation number and deadline, and the seconds its parameters allow (0 when
        they do not say).

    Raises:
        InvalidRequest: it is malformed; the message names the field.
        Unsupported: it asks for an extension this server does not have.
    """
    inputs = _raw_inputs(message) if message.raw_input_contents else _typed_inputs(message)
    outputs = [output.name for output in message.outputs]
    for output in message.outputs:
        if output.parameters:
            check_output(output.name, _values(output.parameters))
    parameters = read_parameters(_values(message.parameters) if message.parameters else None)
    request = Request(
        0, message.id, inputs, outputs, parameters=parameters.values, priority=parameters.priority
    )
    return request, parameters.timeout


def _raw_inputs(message: ModelInferRequest) -> list[Tensor]:
    inputs, raw = message.inputs, message.raw_input_contents[:]
    if len(raw) != len(inputs):
        for given in inputs:
            check_input(given.name, given.parameters)
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} elements; expected one for each of {len(inputs)} inputs"
        )
    tensors = []
    for given, data in zip(inputs, raw, strict=True):
        if given.HasField("contents"):
            raise InvalidRequest(
                f"input {given.name!r} has contents, but the request has raw_input_contents; expected one "
                "of the two for the whole request"
            )
        if given.parameters:
            check_input(given.name, given.parameters)
        tensors.append(Tensor(given.name, given.datatype, given.shape[:], data))
    return tensors


def _typed_inputs(message: ModelInferRequest) -> list[Tensor]:
    tensors = []
    for given in message.inputs:
        check_input(given.name, given.parameters)
        shape = given.shape[:]
        if not given.HasField("contents") and 0 not in shape:
            raise InvalidRequest(f"input {given.name!r} has no contents, and there are no raw_input_contents")
        data = to_raw(given.name, given.datatype, shape, given.contents)
        tensors.append(Tensor(given.name, given.datatype, shape, data))
    return tensors


def _values(parameters: Mapping[str, InferParameter]) -> dict[str, Any]:
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter {name!r} has no value; expected one of {', '.join(_CHOICES)}")
        values[name] = getattr(parameter, choice)
    return values


_CHOICES = [field.name for field in InferParameter.DESCRIPTOR.fields]


def encode_response(
    model: str, version: str, request_id: str, response: Response, *, final: bool | None = None
) -> bytes:
    """Serialise a `ModelInferResponse`.

    Args:
        model, version: what answered.
        request_id: the caller's identifier, echoed.
        response: the answer; its outputs become `raw_output_contents`.
        final: value of the parameter `FINAL_RESPONSE`; None for none.
    """
    message = ModelInferResponse(model_name=model, model_version=version, id=request_id)
    for name, value in response.parameters.items():
        _set(message.parameters[name], value)
    if final is not None:
        message.parameters[FINAL_RESPONSE].bool_param = final
    outputs = message.outputs
    for tensor in response.outputs:
        outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    # Fields of one message may be serialised one after the other: the tensors are copied once, into the
    # result, instead of through a message.
    parts: list[bytes | memoryview] = [message.SerializeToString()]
    for tensor in response.outputs:
        parts += (_RAW_TAG, _varint(len(tensor.data)), tensor.data)
    return b"".join(parts)


def encode_streamed(response: bytes) -> bytes:
    """Serialise a `ModelStreamInferResponse` around a serialised response."""
    return b"".join((_STREAMED_TAG, _varint(len(response)), response))


def encode_streamed_error(request_id: str, error: QInferError) -> bytes:
    """Serialise a `ModelStreamInferResponse` that fails one request of a stream.

    Its `infer_response` tells which request, and has as parameters what an RPC's trailing metadata has.
    """
    message = ModelStreamInferResponse(error_message=error.message or error.reason)
    message.infer_response.id = request_id
    parameters = message.infer_response.parameters
    for name, value in metadata(error):
        parameters[name].string_param = value
    parameters[FINAL_RESPONSE].bool_param = True
    return message.SerializeToString()


def _set(parameter: InferParameter, value: object) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int) and -1 << 63 <= value < 1 << 63:
        parameter.int64_param = value
    elif isinstance(value, int) and 0 <= value < 1 << 64:
        parameter.uint64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = str(value)


def _tag(kind: type[Message], field: str) -> bytes:
    return _varint(kind.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_RAW_TAG = _tag(ModelInferResponse, "raw_output_contents")
_STREAMED_TAG = _tag(ModelStreamInferResponse, "infer_response")
