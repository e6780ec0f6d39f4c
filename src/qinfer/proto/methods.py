"""The methods of the gRPC service, for building generic handlers and stubs without generated code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from qinfer.proto.messages import FILES

_SERVICE = next(service for file in FILES for service in file.services_by_name.values())

SERVICE: str = _SERVICE.full_name
"""Full name of the service, "inference.GRPCInferenceService"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of the service.

    Attributes:
        name: its name, for instance "ModelInfer".
        request: class of its request messages.
        response: class of its response messages.
        client_streaming: the client sends a stream of requests.
        server_streaming: the server answers with a stream of responses.
    """

    name: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool

    @property
    def path(self) -> str:
        """The path of its HTTP/2 requests, for instance "/inference.GRPCInferenceService/ModelInfer"."""
        return f"/{SERVICE}/{self.name}"


def _method(descriptor: MethodDescriptor) -> Method:
    return Method(
        name=descriptor.name,
        request=message_factory.GetMessageClass(descriptor.input_type),
        response=message_factory.GetMessageClass(descriptor.output_type),
        client_streaming=descriptor.client_streaming,
        server_streaming=descriptor.server_streaming,
    )


METHODS: Mapping[str, Method] = {method.name: _method(method) for method in _SERVICE.methods}
"""Every method of the service, by name."""
