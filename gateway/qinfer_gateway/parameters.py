"""Parameters of requests and their tensors that qinfer itself understands, on every way in."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from qinfer.errors import InvalidRequest, Unsupported

_SHARED_MEMORY = "shared_memory_region"
EMPTY_FINAL = "triton_enable_empty_final_response"
"""Request parameter: an end of its own is wanted where the last response did not say that it was."""


@dataclass(slots=True)
class RequestParameters:
    """What a request's parameters say.

    Attributes:
        values: the parameters for the model.
        timeout: seconds the client allows; 0 when it does not say.
        priority: 0 for the model's default.
        binary_output: all outputs are wanted in binary.
    """

    values: dict[str, Any] = field(default_factory=dict)
    timeout: float = 0.0
    priority: int = 0
    binary_output: bool = False


NO_PARAMETERS = RequestParameters()
"""What a request without parameters says; shared, so never to be changed."""


def read_parameters(given: Mapping[str, Any] | None) -> RequestParameters:
    """Sort a request's parameters.

    Raises:
        InvalidRequest: a value is of the wrong type, or a name is reserved.
    """
    if not given:
        return NO_PARAMETERS
    result = RequestParameters()
    for name, value in given.items():
        if name == "timeout":
            result.timeout = _whole(name, value) / 1e6
        elif name == "priority":
            result.priority = _whole(name, value)
        elif name == "binary_data_output":
            if not isinstance(value, bool):
                raise InvalidRequest(f"parameter {name!r} is {value!r}; expected true or false")
            result.binary_output = value
        elif name.startswith("triton_") and name != EMPTY_FINAL:
            raise InvalidRequest(f"parameter {name!r}: names that begin with 'triton_' are reserved")
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            raise InvalidRequest(f"parameter {name!r} is an integer of more than 64 bits")
        elif isinstance(value, bool | int | float | str):
            result.values[name] = value
        else:
            raise InvalidRequest(
                f"parameter {name!r} is a {type(value).__name__}; expected a string, number or boolean"
            )
    return result


def check_input(name: str, parameters: Container[str]) -> None:
    """Refuse what an input's parameters ask for and this server does not have.

    Raises:
        Unsupported: the tensor is in shared memory.
    """
    if _SHARED_MEMORY in parameters:
        raise Unsupported(f"input {name!r}: shared memory is not supported")


def check_output(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse what the parameters of a requested output ask for and this server does not have.

    Raises:
        Unsupported: it is wanted in shared memory, or as classes.
    """
    if parameters.get("classification"):
        raise Unsupported(f"output {name!r}: the classification extension is not supported")
    if _SHARED_MEMORY in parameters:
        raise Unsupported(f"output {name!r}: shared memory is not supported")


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise InvalidRequest(f"parameter {name!r} is {value!r}; expected a whole number of at least 0")
    return value
