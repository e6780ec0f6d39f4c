"""Make `inference.binpb` and `messages.pyi` from the `.proto` files: `python -m qinfer.proto.generate`.

Needs `grpcio-tools` (in the `dev` extra). Both files are checked in, so that neither users nor builds need a
protobuf compiler; a test compares them with what this module makes.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from qinfer.errors import InternalError, SetupError

SOURCES = ("model_config.proto", "grpc_service.proto")
"""In the order of their dependencies."""

_HEADER = """\
# Made by `python -m qinfer.proto.generate` from the .proto files; edit those.
# ruff: noqa: A002, E501, I001, RUF023, UP007, UP045
# fmt: off
# mypy: disable-error-code="type-arg, no-untyped-def"
"""


class Generated(NamedTuple):
    """What the compiler makes: a serialised `FileDescriptorSet`, and the text of the type stub."""

    descriptors: bytes
    stub: str


def generate(folder: Path) -> Generated:
    """Compile the `.proto` files of `folder`.

    Raises:
        SetupError: grpcio-tools is not installed.
        InternalError: the compiler refused the files; it says why on standard error.
    """
    try:
        protoc = importlib.import_module("grpc_tools.protoc")
    except ImportError:
        raise SetupError("grpcio-tools is not installed; expected: pip install 'qinfer[dev]'") from None
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        status = protoc.main([
            "protoc",
            f"--proto_path={folder}",
            f"--descriptor_set_out={out / 'set'}",
            f"--pyi_out={out}",
            *SOURCES,
        ])  # fmt: skip
        if status != 0:
            raise InternalError(f"{folder}: protoc ended with status {status}; expected 0")
        stubs = [(out / source.replace(".proto", "_pb2.pyi")).read_text() for source in SOURCES]
        return Generated((out / "set").read_bytes(), _HEADER + _join(stubs))


def _join(stubs: list[str]) -> str:
    """One stub out of one a file: imports first, once; references across files made local."""
    imports: dict[str, None] = {}
    bodies: list[str] = []
    for stub in stubs:
        lines = stub.splitlines()
        imports |= dict.fromkeys(line for line in lines if re.match(r"(from|import) ", line))
        kept = (line for line in lines if line not in imports and not line.startswith("DESCRIPTOR:"))
        bodies.append("\n".join(kept).strip())
    foreign = [f"import {source.removesuffix('.proto')}_pb2 as " for source in SOURCES]
    local = [line for line in imports if not line.startswith(tuple(foreign))]
    text = "\n".join(local) + "\n\n" + "\n\n".join(bodies) + "\n"
    for line in imports.keys() - set(local):
        text = text.replace(line.rsplit(" ", 1)[1] + ".", "")
    return text + "\nFILES: list[_descriptor.FileDescriptor]\n"


def main() -> None:
    """Compile the package's own `.proto` files in place."""
    with resources.as_file(resources.files("qinfer.proto")) as folder:
        made = generate(folder)
        (folder / "inference.binpb").write_bytes(made.descriptors)
        (folder / "messages.pyi").write_text(made.stub)


if __name__ == "__main__":
    main()
