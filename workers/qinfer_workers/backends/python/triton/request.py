"""Requests and responses as models see them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qinfer.errors import Unsupported
from qinfer_workers.backends.base import Member
from qinfer_workers.backends.python.triton.errors import TritonError, TritonModelException
from qinfer_workers.backends.python.triton.tensor import Tensor

if TYPE_CHECKING:
    from qinfer_workers.backends.python.triton.sender import InferenceResponseSender

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2


class InferenceRequest:
    """One request of a batch.

    Made by qinfer. Models make their own only to call other models, which is not supported yet.

    Args:
        member: the batch's member; its tensors are made when the model asks for them.
        model: name of the model.
        version: its version.
        read_only: hand out read-only arrays.
        sender: where the responses of a decoupled model go; None for other models.

    Raises:
        Unsupported: made by a model.
    """

    __slots__ = ("_member", "_model", "_read_only", "_sender", "_tensors", "_version")

    def __init__(
        self,
        member: Member | None = None,
        model: str = "",
        version: int = 0,
        *,
        read_only: bool = False,
        sender: InferenceResponseSender | None = None,
        **others: object,
    ) -> None:
        if member is None or others:
            raise Unsupported(
                "InferenceRequest: a Python model cannot call other models yet; expected an ensemble of them"
            )
        self._member = member
        self._model = model
        self._version = version
        self._read_only = read_only
        self._sender = sender
        self._tensors: list[Tensor] | None = None

    def inputs(self) -> list[Tensor]:
        """The input tensors, with the batch dimension where the model has one; the same at every call."""
        if self._tensors is None:
            datatypes = self._member.input_datatypes
            self._tensors = [
                Tensor(name, array, datatypes[name], read_only=self._read_only)
                for name, array in self._member.inputs.items()
            ]
        return self._tensors

    def requested_output_names(self) -> list[str]:
        """Names of the wanted outputs; empty for all."""
        return list(self._member.outputs)

    def request_id(self) -> str:
        return self._member.request_id

    def correlation_id(self) -> int | str:
        """The request's `sequence_id`; 0 for none."""
        value: int | str = self._member.parameters.get("sequence_id", 0)
        return value

    def flags(self) -> int:
        """Bits for the start and the end of a sequence."""
        parameters = self._member.parameters
        start = TRITONSERVER_REQUEST_FLAG_SEQUENCE_START if parameters.get("sequence_start") else 0
        end = TRITONSERVER_REQUEST_FLAG_SEQUENCE_END if parameters.get("sequence_end") else 0
        return start | end

    def model_name(self) -> str:
        return self._model

    def model_version(self) -> int:
        return self._version

    def priority(self) -> int:
        return self._member.priority

    def parameters(self) -> str:
        """The request's parameters as a JSON object."""
        return json.dumps(dict(self._member.parameters))

    def timeout(self) -> int:
        """Microseconds left until the request's deadline, at least 1; 0 where it has none."""
        deadline = self._member.deadline_us
        return max(1, deadline - time.time_ns() // 1000) if deadline else 0

    def is_cancelled(self) -> bool:
        """Whether the caller has gone."""
        return self._member.is_cancelled()

    def get_response_sender(self) -> InferenceResponseSender:
        """Where a decoupled model sends its responses to this request; the same at every call.

        Raises:
            Unsupported: the model is not decoupled: it answers by returning from `execute`.
        """
        if self._sender is None:
            raise Unsupported(
                f"model {self._model}: get_response_sender needs a decoupled model;"
                " expected one InferenceResponse returned for each request"
            )
        return self._sender


class InferenceResponse:
    """Outputs of one request, or the reason there are none.

    Args:
        output_tensors: the outputs; those nobody asked for are dropped.
        error: why there are no outputs; a string is taken as an internal error.
        parameters: values returned to the caller beside the tensors: strings, numbers and booleans.

    Raises:
        TritonModelException: an argument is of another type.
    """

    __slots__ = ("_error", "_parameters", "_tensors")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] | None = None,
        error: TritonError | str | None = None,
        parameters: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        self._tensors = list(output_tensors or ())
        for tensor in self._tensors:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(
                    f"InferenceResponse: output_tensors: found {type(tensor).__name__}; expected"
                    " pb_utils.Tensor"
                )
        if error is not None and not isinstance(error, TritonError):
            error = TritonError(error)
        self._error = error
        self._parameters = dict(parameters or {})
        for key, value in self._parameters.items():
            if not isinstance(key, str) or not isinstance(value, str | int | float):
                raise TritonModelException(
                    f"InferenceResponse: parameters: found {key!r}: {value!r}; expected a string with a"
                    " string,"
                    " number or boolean"
                )

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """The response's parameters as a JSON object."""
        return json.dumps(self._parameters)

    def parameter_values(self) -> Mapping[str, str | int | float | bool]:
        """The response's parameters."""
        return self._parameters


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """The request's input of that name; None where it has none."""
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """The response's output of that name; None where it has none."""
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)
