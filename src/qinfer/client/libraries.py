"""Answers as objects of torch and pandas, where those are installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qinfer.datatypes import Array, from_bf16
from qinfer.errors import BackendUnavailable, InvalidRequest
from qinfer.message import Tensor

if TYPE_CHECKING:
    import pandas
    import torch


def to_torch(tensors: Sequence[Tensor]) -> dict[str, torch.Tensor]:
    """See `Result.to_torch`."""
    library = _load("torch", "pip install 'qinfer[torch]'")
    made: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        if tensor.datatype == "BYTES":
            raise InvalidRequest(f"output {tensor.name!r} is BYTES; expected numbers, torch has no others")
        values = library.from_numpy(tensor.numpy().copy())
        made[tensor.name] = values.view(library.bfloat16) if tensor.datatype == "BF16" else values
    return made


def to_pandas(tensors: Sequence[Tensor]) -> pandas.DataFrame:
    """See `Result.to_pandas`."""
    library = _load("pandas", "pip install pandas")
    rows = {tensor.name: tensor.shape[0] if tensor.shape else None for tensor in tensors}
    if len(set(rows.values())) != 1 or None in rows.values():
        found = ", ".join(f"{tensor.name!r} of shape {tensor.shape}" for tensor in tensors) or "none"
        raise InvalidRequest(f"outputs: found {found}; expected the same number of rows in all of them")
    columns: dict[str, Any] = {}
    for tensor in tensors:
        array = _readable(tensor)
        if array.ndim > 2:
            columns[tensor.name] = list(array)
        elif array.ndim == 1 or array.shape[1] == 1:
            columns[tensor.name] = array.reshape(-1)
        else:
            columns |= {f"{tensor.name}_{place}": array[:, place] for place in range(array.shape[1])}
    frame: pandas.DataFrame = library.DataFrame(columns)
    return frame


def _readable(tensor: Tensor) -> Array:
    array = tensor.numpy()
    if tensor.datatype == "BF16":
        return from_bf16(array)
    if tensor.datatype == "BYTES":
        flat = array.reshape(-1)
        flat[:] = [_text(element) for element in flat]
    return array


def _text(element: bytes) -> str | bytes:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return element


def _load(name: str, how: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendUnavailable(f"{name} is not installed: {how}: {error}") from error
