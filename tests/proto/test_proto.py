"""The protobuf messages: the same on the wire as the ones clients were generated from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2, service_pb2

from qinfer import proto
from qinfer.proto import METHODS, SERVICE
from qinfer.proto.generate import generate

from .messages import fill

FOLDER = Path(str(resources.files("qinfer.proto")))


@pytest.fixture(scope="module")
def ours() -> FileDescriptorSet:
    return FileDescriptorSet.FromString((FOLDER / "inference.binpb").read_bytes())


def client_file(module: Any) -> FileDescriptorProto:
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def shape(file: FileDescriptorProto) -> Iterator[str]:
    """Everything of a file that other implementations depend on, in no particular order."""
    for enum in file.enum_type:
        yield from (f"{enum.name}.{value.name} = {value.number}" for value in enum.value)
    for service in file.service:
        for method in service.method:
            yield (
                f"{service.name}.{method.name}"
                f"({'stream ' * method.client_streaming}{method.input_type})"
                f" returns ({'stream ' * method.server_streaming}{method.output_type})"
            )
    messages = [(message.name, message) for message in file.message_type]
    while messages:
        path, message = messages.pop()
        yield path
        for field in message.field:
            oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            kind = field.type_name or field.type
            yield f"{path}.{field.name} = {field.number}: {field.label} {kind} {oneof} {field.options}"
        for enum in message.enum_type:
            yield from (f"{path}.{enum.name}.{value.name} = {value.number}" for value in enum.value)
        messages += [(f"{path}.{nested.name}", nested) for nested in message.nested_type]


@pytest.mark.parametrize(
    ("name", "module"), [("model_config.proto", model_config_pb2), ("grpc_service.proto", service_pb2)]
)
def test_interface_is_the_one_clients_know(ours: FileDescriptorSet, name: str, module: Any) -> None:
    file = next(file for file in ours.file if file.name == name)
    client = client_file(module)
    assert (file.package, file.syntax) == (client.package, client.syntax)
    assert set(shape(file)) == set(shape(client))


def test_checked_in_files_are_up_to_date(ours: FileDescriptorSet) -> None:
    made = generate(FOLDER)
    assert FileDescriptorSet.FromString(made.descriptors) == ours
    assert made.stub == (FOLDER / "messages.pyi").read_text()


def test_every_message_and_enum_is_exported(ours: FileDescriptorSet) -> None:
    names = {item.name for file in ours.file for item in (*file.message_type, *file.enum_type)}
    assert names | {"METHODS", "SERVICE", "Method"} == set(proto.__all__)
    assert all(hasattr(proto, name) for name in names)


@pytest.mark.parametrize("first", ["qinfer.proto", "tritonclient.grpc"])
def test_lives_beside_the_client_library(first: str) -> None:
    """In a fresh process, whichever is imported first."""
    second = {"qinfer.proto": "tritonclient.grpc", "tritonclient.grpc": "qinfer.proto"}[first]
    code = f"import {first}, {second}; assert qinfer.proto.ModelConfig(name='m').name == 'm'"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_data_files_are_in_the_wheel() -> None:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling makes the wheel")
    root = FOLDER.parents[2]
    if not (root / "pyproject.toml").exists():
        pytest.skip("qinfer is not installed from its source tree")
    names = {file.distribution_path for file in builder.WheelBuilder(str(root)).recurse_included_files()}
    assert {"qinfer/proto/inference.binpb", "qinfer/proto/messages.pyi", "qinfer/py.typed"} <= names


def test_methods() -> None:
    assert SERVICE == "inference.GRPCInferenceService"
    infer = METHODS["ModelInfer"]
    assert infer.path == "/inference.GRPCInferenceService/ModelInfer"
    assert (infer.request, infer.response) == (proto.ModelInferRequest, proto.ModelInferResponse)
    assert not infer.client_streaming
    assert not infer.server_streaming
    stream = METHODS["ModelStreamInfer"]
    assert stream.client_streaming
    assert stream.server_streaming
    assert len(METHODS) == 20


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "name", ["ModelConfig", "ModelInferRequest", "ModelInferResponse", "ModelStatistics"]
)
def test_client_reads_our_bytes_and_we_read_its(name: str, seed: int) -> None:
    theirs = getattr(service_pb2, name, None) or getattr(model_config_pb2, name)
    message: Message = getattr(proto, name)()
    fill(Random(seed), message)
    received = theirs.FromString(message.SerializeToString())
    assert str(received) == str(message)
    assert type(message).FromString(received.SerializeToString()) == message
