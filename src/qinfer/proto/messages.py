"""The message classes and enums of the `.proto` files; `messages.pyi` gives their types.

They live in a descriptor pool of their own. Generated code would put them into the process-wide default
pool, where `tritonclient` registers other files with the same symbols, and whichever is imported second
would fail.
"""

from __future__ import annotations

from importlib import resources

from google.protobuf import message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

_POOL = DescriptorPool()


def _load() -> list[FileDescriptor]:
    data = resources.files("qinfer.proto").joinpath("inference.binpb").read_bytes()
    files = FileDescriptorSet.FromString(data).file
    for file in files:
        _POOL.AddSerializedFile(file.SerializeToString())
    return [_POOL.FindFileByName(file.name) for file in files]


def _export() -> None:
    """Bind every top-level message, enum and enum value of the files to its name in this module."""
    for file in FILES:
        for name, message in file.message_types_by_name.items():
            globals()[name] = message_factory.GetMessageClass(message)
        for name, enum in file.enum_types_by_name.items():
            globals()[name] = EnumTypeWrapper(enum)
            globals().update({value.name: value.number for value in enum.values})


FILES = _load()
_export()
