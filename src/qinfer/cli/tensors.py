"""Tensors on the command line: `NAME=@file.npy`, `NAME=@file.json`, `NAME=JSON`; saving and showing them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qinfer.datatypes import Array, datatype, from_bf16, to_bf16
from qinfer.errors import InvalidRequest
from qinfer.message import Tensor
from qinfer.registry import TensorRecord

_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An output asked for on the command line, and the file to save it in."""

    name: str
    file: Path | None


def parse_inputs(arguments: Sequence[str], signature: Sequence[TensorRecord]) -> list[Tensor]:
    """Make tensors from `NAME=VALUE` arguments.

    Args:
        arguments: as given; `NAME=` may be left out for a model with one input.
        signature: the model's inputs.

    Raises:
        InvalidRequest: no such input, one given twice, or a value that does not fit its datatype.
    """
    datatypes = {spec.name: spec.datatype for spec in signature}
    tensors: dict[str, Tensor] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if len(datatypes) == 1 and (not separator or (name not in datatypes and name[:1] in '@[{"')):
            name, value = next(iter(datatypes)), argument
        elif not separator:
            raise InvalidRequest(f"--input {argument}: expected NAME=@FILE or NAME=JSON")
        if name not in datatypes:
            raise InvalidRequest(f"the model has no input {name!r}; expected one of {', '.join(datatypes)}")
        if name in tensors:
            raise InvalidRequest(f"input {name!r} is given twice")
        tensors[name] = Tensor.from_numpy(name, _read(name, value, datatypes[name]), datatypes[name])
    return list(tensors.values())


def parse_output(argument: str) -> Wanted:
    """Read a `NAME` or `NAME=@FILE` argument.

    Raises:
        InvalidRequest: it is neither, or the file is of no known kind.
    """
    name, separator, value = argument.partition("=")
    if not separator:
        return Wanted(name=name, file=None)
    file = Path(value.removeprefix("@"))
    if not value.startswith("@") or file.suffix not in (".npy", ".json"):
        raise InvalidRequest(f"--output {argument}: expected NAME, NAME=@FILE.npy or NAME=@FILE.json")
    return Wanted(name=name, file=file)


def save(tensor: Tensor, file: Path) -> None:
    """Write a tensor to a `.npy` or `.json` file.

    Raises:
        InvalidRequest: BYTES have no `.npy` form, or the file cannot be written.
    """
    try:
        if file.suffix == ".json":
            file.write_text(json.dumps(to_json(tensor)))
        elif tensor.datatype == "BYTES":
            raise InvalidRequest(f"output {tensor.name!r} is BYTES, which .npy cannot hold; save it as .json")
        else:
            np.save(file, tensor.numpy())
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror}") from None


def to_json(tensor: Tensor) -> dict[str, Any]:
    """The tensor as the protocol's JSON has it; BF16 as numbers too."""
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": tensor.shape,
        "data": [_plain(value) for value in _numbers(tensor).reshape(-1).tolist()],
    }


def preview(tensor: Tensor) -> str:
    """The tensor's values in one short line."""
    array = _numbers(tensor)
    flat = array.reshape(-1)
    if tensor.datatype == "BYTES":
        shown = ", ".join(json.dumps(_plain(value), ensure_ascii=False) for value in flat[:_SHOWN])
        return f"[{shown}{', …' if flat.size > _SHOWN else ''}]"
    return np.array2string(array, threshold=_SHOWN, edgeitems=3, precision=6).replace("\n", "")


def _plain(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _numbers(tensor: Tensor) -> Array:
    array = tensor.numpy()
    return from_bf16(array) if tensor.datatype == "BF16" else array


def _read(name: str, value: str, wanted: str) -> Array:
    if not value.startswith("@"):
        return _from_json(name, value, wanted)
    file = Path(value[1:])
    try:
        if file.suffix == ".npy":
            return _from_array(name, np.load(file, allow_pickle=False), wanted)
        if file.suffix == ".json":
            return _from_json(name, file.read_text(), wanted)
    except (OSError, UnicodeDecodeError, EOFError, ValueError) as error:
        raise InvalidRequest(f"input {name!r}: {file} cannot be read: {error}") from None
    raise InvalidRequest(f"input {name!r}: {file}: expected a .npy or .json file")


def _from_json(name: str, text: str, wanted: str) -> Array:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"input {name!r}: {text[:60]!r} is not JSON ({error}); "
            "expected for instance [[1.0, 2.0]] or @x.npy"
        ) from None
    shape: Any = None
    if isinstance(value, dict):
        shape, value = value.get("shape"), value.get("data")
    try:
        array = _bytes(value) if wanted == "BYTES" else _typed(value, wanted)
        return array if shape is None else array.reshape(shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"input {name!r} does not fit {wanted}: {error}") from None


def _from_array(name: str, array: Array, wanted: str) -> Array:
    if wanted == "BYTES":
        return array
    target = datatype(wanted).dtype
    if wanted == "BF16" and array.dtype.kind == "f":
        return to_bf16(array)
    if not np.can_cast(array.dtype, target, casting="same_kind"):
        raise InvalidRequest(f"input {name!r} is {wanted}; dtype {array.dtype} does not convert to it")
    return array.astype(target, copy=False)


def _typed(value: object, wanted: str) -> Array:
    if wanted == "BF16":
        return to_bf16(np.asarray(value, dtype=np.float32))
    plain = np.asarray(value)
    target = datatype(wanted).dtype
    if plain.size and plain.dtype.kind not in ("b" if wanted == "BOOL" else "iuf"):
        raise ValueError(f"found {plain.dtype} values")
    if plain.dtype.kind == "f" and target.kind in "iu" and plain.size:
        raise ValueError("found numbers with a fraction")
    if target.kind in "iu" and plain.size:
        limits = np.iinfo(target)
        if int(plain.min()) < limits.min or int(plain.max()) > limits.max:
            raise OverflowError(f"found numbers outside {limits.min} to {limits.max}")
    return plain.astype(target)


def _bytes(value: object) -> Array:
    array = np.array(value, dtype=object)
    if not all(isinstance(element, str) for element in array.reshape(-1)):
        raise TypeError("expected strings")
    return array
