"""Tensors as models see them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from qinfer.datatypes import DATATYPES, Array, datatype_of
from qinfer.errors import InvalidRequest
from qinfer_workers.backends.python.triton.errors import TritonModelException

_CPU = 1
"""`kDLCPU` of DLPack."""


class Tensor:
    """A named tensor on the CPU.

    Args:
        name: its name.
        numpy_array: any array of a dtype the protocol has; `str` and `bytes` arrays are string tensors.
        datatype: protocol datatype of an array that is known to be of it; tells BF16, whose arrays are bit
            patterns, from UINT16.
        read_only: leave out the copy that makes a read-only array writable.

    Raises:
        TritonModelException: not a numpy array, or of another dtype.
    """

    __slots__ = ("_array", "_datatype", "_name", "_read_only")

    def __init__(
        self, name: str, numpy_array: Array, datatype: str | None = None, *, read_only: bool = False
    ) -> None:
        if datatype is None:
            datatype = _datatype(name, numpy_array)
        self._name = name
        self._array = numpy_array
        self._datatype = datatype
        self._read_only = read_only

    @classmethod
    def from_dlpack(cls, name: str, dlpack_tensor: Any) -> Tensor:
        """A tensor of a DLPack capsule or of anything with `__dlpack__`; device memory is copied to the CPU.

        Raises:
            TritonModelException: numpy cannot take it, nor torch where it is installed.
        """
        if hasattr(dlpack_tensor, "__dlpack_device__"):
            on_cpu = dlpack_tensor.__dlpack_device__()[0] == _CPU
        else:
            dlpack_tensor = _Capsule(dlpack_tensor)
            on_cpu = True
        if on_cpu:
            try:
                return cls(name, np.from_dlpack(dlpack_tensor))
            except (BufferError, RuntimeError, TypeError):
                pass  # BF16, which numpy does not have, or a capsule of a device
        if isinstance(dlpack_tensor, _Capsule):
            dlpack_tensor = dlpack_tensor.capsule
        try:
            torch: Any = importlib.import_module("torch")
            tensor = torch.from_dlpack(dlpack_tensor).detach().cpu().contiguous()
        except (ImportError, BufferError, RuntimeError, TypeError) as error:
            raise TritonModelException(
                f"tensor {name!r}: DLPack tensor of another device or dtype than numpy takes: {error}"
            ) from error
        if tensor.dtype is torch.bfloat16:
            bits: Array = tensor.view(torch.uint16).numpy()
            return cls(name, bits, "BF16")
        return cls(name, tensor.numpy())

    def name(self) -> str:
        return self._name

    def triton_dtype(self) -> int:
        """The datatype's number in the configuration's enum."""
        return _NUMBERS[self._datatype]

    def datatype(self) -> str:
        """The datatype's name in the protocol, for instance "FP32"."""
        return self._datatype

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        """Always true: tensors reach Python models in the CPU's memory."""
        return True

    def as_numpy(self) -> Array:
        """The tensor as a writable array, the same one at every call; string tensors as objects of bytes.

        The request's own memory is read-only (a retry reads it again), so the first call for an input copies
        it. The model parameter READ_ONLY_INPUTS leaves the copy out.

        Raises:
            TritonModelException: BF16, for which numpy has no dtype.
        """
        if self._datatype == "BF16":
            raise TritonModelException(
                f"tensor {self._name!r}: numpy has no BF16; expected to_dlpack, for instance"
                " torch.from_dlpack(tensor.to_dlpack())"
            )
        return self._own()

    def raw(self) -> Array:
        """The array as it is: BF16 as bit patterns, and without a copy."""
        return self._array

    def to_dlpack(self) -> Any:
        """A DLPack capsule that shares the tensor's memory.

        Raises:
            TritonModelException: a string tensor, or a BF16 one where torch is not installed.
        """
        return self.__dlpack__()

    def __dlpack__(self, **options: Any) -> Any:
        if self._datatype == "BYTES":
            raise TritonModelException(f"tensor {self._name!r}: DLPack has no strings; expected as_numpy")
        if self._datatype != "BF16":
            array = self._own()
            return (array if array.flags.writeable else array.copy()).__dlpack__(**options)
        try:
            torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise TritonModelException(
                f"tensor {self._name!r}: BF16 needs the torch library: pip install 'qinfer[torch]'"
            ) from error
        array = self._own()
        bits = torch.from_numpy(array if array.flags.writeable else array.copy())
        return bits.view(torch.bfloat16).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU, 0)

    def _own(self) -> Array:
        if not self._array.flags.writeable and not self._read_only:
            self._array = self._array.copy()
        return self._array


def _datatype(name: str, array: object) -> str:
    if not isinstance(array, np.ndarray):
        raise TritonModelException(f"tensor {name!r}: found {type(array).__name__}; expected a numpy array")
    try:
        return datatype_of(array)
    except InvalidRequest as error:
        raise TritonModelException(f"tensor {name!r}: {error}") from None


class _Capsule:
    """Gives a bare DLPack capsule the methods `numpy.from_dlpack` asks for."""

    __slots__ = ("capsule",)

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU, 0)


_NUMBERS = {
    name: number
    for number, name in enumerate(
        [*(name for name in DATATYPES if name not in ("BF16", "BYTES")), "BYTES", "BF16"], 1
    )
}
