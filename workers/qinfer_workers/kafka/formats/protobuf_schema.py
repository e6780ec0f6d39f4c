"""Compiles `.proto` files, with the protoc that grpcio-tools brings, into messages that can be made."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message

from qinfer.errors import BackendUnavailable

_TIMEOUT = 60.0  # seconds
_MAIN = "qinfer_schema.proto"
_MESSAGE_LENGTH = 2000


class File:
    """A compiled file.

    Args:
        file: its descriptor.
    """

    def __init__(self, file: FileDescriptor) -> None:
        self._file = file
        self._top = [*file.message_types_by_name.values()]

    def names(self) -> list[str]:
        """Full names of its messages."""
        return [message.full_name for message in self._all()]

    def find(self, name: str) -> Descriptor | None:
        """A message by its full name; without one, the only one that is not within another."""
        if not name:
            return self._top[0] if len(self._top) == 1 else None
        return next((message for message in self._all() if name in (message.full_name, message.name)), None)

    def at(self, indexes: Sequence[int]) -> Descriptor:
        """The message at a path: the place among the file's, then among that message's, and so on.

        Raises:
            ValueError: there is none.
        """
        among, found = self._top, None
        for index in indexes:
            if not 0 <= index < len(among):
                raise ValueError(f"message indexes {[*indexes]}; expected those of a message of the schema")
            found = among[index]
            among = [*found.nested_types]
        assert found is not None
        return found

    def indexes(self, message: Descriptor) -> tuple[int, ...]:
        """The path of a message."""
        outer = message.containing_type
        among = self._top if outer is None else [*outer.nested_types]
        place = next(place for place, other in enumerate(among) if other.full_name == message.full_name)
        return (place,) if outer is None else (*self.indexes(outer), place)

    def new(self, message: Descriptor) -> Message:
        """An empty message."""
        return message_factory.GetMessageClass(message)()

    def _all(self) -> Iterator[Descriptor]:
        waiting = [*self._top]
        while waiting:
            message = waiting.pop(0)
            yield message
            waiting += [inner for inner in message.nested_types if not inner.GetOptions().map_entry]


def compile_file(path: Path) -> File:
    """Compile a file, whose imports are beside it.

    Raises:
        ValueError: it is no `.proto`.
        BackendUnavailable: the compiler is not installed.
    """
    return _protoc(path.parent, path.name)


def compile_text(text: str, references: Sequence[tuple[str, str]] = ()) -> File:
    """Compile the text of a file, with those it imports by their names.

    Raises:
        ValueError: it is no `.proto`.
        BackendUnavailable: the compiler is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="qinfer-proto-") as folder:
        for name, content in (*references, (_MAIN, text)):
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts or not relative.parts:
                raise ValueError(f"a reference to {name!r}; expected a relative name of a file")
            path = Path(folder, relative)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return _protoc(Path(folder), _MAIN)


def of_descriptors(data: bytes) -> File:
    """The last file of a set of descriptors, as `protoc --include_imports --descriptor_set_out` makes it.

    Raises:
        ValueError: it is none, or lacks what it imports.
    """
    files = descriptor_pb2.FileDescriptorSet()
    try:
        files.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"{error}; expected a set of descriptors (protoc --descriptor_set_out)") from None
    if not files.file:
        raise ValueError("found no file; expected a set of descriptors (protoc --descriptor_set_out)")
    pool = descriptor_pool.DescriptorPool()
    try:
        for file in files.file:
            pool.Add(file)
        return File(pool.FindFileByName(files.file[-1].name))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{error}; expected a whole set (protoc --include_imports)") from None


def has(message: Descriptor, path: Sequence[str]) -> bool:
    """Whether a message has a field. What is under a map counts as there."""
    field = message.fields_by_name.get(path[0])
    if field is None:
        return False
    if len(path) == 1 or is_map(field):
        return True
    return field.message_type is not None and not field.is_repeated and has(field.message_type, path[1:])


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    inner = field.message_type
    return inner is not None and field.is_repeated and bool(inner.GetOptions().map_entry)


def _protoc(folder: Path, name: str) -> File:
    if importlib.util.find_spec("grpc_tools") is None:
        raise BackendUnavailable(
            "Protobuf schemas need a compiler: pip install 'qinfer[kafka-schemas]'; or give a set of "
            "descriptors, which protoc --include_imports --descriptor_set_out makes, as schema_file"
        )
    with tempfile.TemporaryDirectory(prefix="qinfer-protoc-") as out:
        made = Path(out, "descriptors")
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", "--include_imports"]
        command += [f"--descriptor_set_out={made}", name]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise ValueError(f"protoc took more than {_TIMEOUT:.0f} s; expected a schema") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().replace(f"{folder}/", "")
            raise ValueError(f"{said[:_MESSAGE_LENGTH]}; expected a .proto file")
        return of_descriptors(made.read_bytes())
