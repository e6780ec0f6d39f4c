"""Between numpy arrays and torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from qinfer.datatypes import Array

_WORTH_SHARING = 64 * 1024
"""Bytes from which sharing a read-only array's memory is quicker than copying it."""


class _Shared:
    """Presents a read-only array's memory as writable, to a reader that promises not to write.

    torch has no read-only tensors and warns about arrays that are; the warning is right unless the program
    is known to leave its inputs alone, which is for the caller to know. The array lives as long as this.
    """

    __slots__ = ("__array_interface__", "_source")

    def __init__(self, array: Array) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self._source = array


def to_tensor(torch: Any, array: Array, datatype: str, *, may_write: bool) -> Any:
    """A CPU tensor of the array, sharing its memory where that is safe.

    Args:
        torch: the library.
        array: any array but BYTES; BF16 as uint16 bit patterns.
        datatype: its protocol datatype.
        may_write: whether the program may write into the tensor. A read-only array is the caller's message,
            which a retry reads again, so such a program gets a copy of it.
    """
    if not array.flags.writeable:
        if may_write or array.nbytes < _WORTH_SHARING or not array.flags.aligned:
            array = array.copy()
        else:
            array = np.asarray(_Shared(array))
    elif not array.flags.aligned:
        array = array.copy()
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def to_array(torch: Any, tensor: Any) -> Array:
    """A numpy array of a tensor on any device; shares the memory of a CPU tensor. BF16 as bit patterns."""
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.contiguous().view(torch.uint16)
    array: Array = tensor.resolve_conj().resolve_neg().numpy()
    return array
