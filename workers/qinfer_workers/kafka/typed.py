"""From the plain values of a file to its settings, with every fault that is found on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from qinfer.repository.document import MAX_FAULTS, join
from qinfer_workers.kafka.document import Document

T = TypeVar("T")

_AT = re.compile(r"(.*?)(?: - at `(?:key in )?\$(.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[(\.\.\.)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_EXPECTED = re.compile(r"Expected (.*?)(?:, got .*)?", re.DOTALL)
_CREDENTIALS = re.compile(r"//[^/@]*@")
_SHOWN = 60


def settings(document: Document, kind: type[T], *, secrets: Mapping[str, str]) -> T:
    """The settings of a document.

    Args:
        document: the file; faults found are added to it.
        kind: the struct of its root.
        secrets: fields whose values are never shown, by their last name.

    Raises:
        ConfigError: something is wrong; tells all that is.
    """
    root = document.root if document.root is not None else {}
    for _ in range(MAX_FAULTS):
        try:
            converted = msgspec.convert(root, kind, strict=False)
        except (msgspec.ValidationError, RecursionError) as error:
            if not _note(document, kind, root, str(error), secrets):
                break
        else:
            if not document.faults:
                return converted
            break
    raise document.error()


def _note(document: Document, kind: type, root: Any, message: str, secrets: Mapping[str, str]) -> bool:
    """Add a fault, and take what is at fault out of the values; False where that is not possible."""
    matched = _AT.fullmatch(message)
    text, path = (matched[1], matched[2] or "") if matched else (message, "")
    steps = [*_steps(path, root, kind)]
    inner = _path(steps)
    if unknown := _UNKNOWN.fullmatch(text):
        known = _names(kind, root, steps)
        document.fault(join(inner, unknown[1]), f"no such field; expected {_nearest(unknown[1], known)}")
        found = _at(root, steps)
        return isinstance(found, dict) and found.pop(unknown[1], None) is not None
    if missing := _MISSING.fullmatch(text):
        absent = join(inner, missing[1])
        # One that was taken out, for a fault in it, is not missing.
        if not any(f"{fault.field}.".startswith(f"{absent}.") for fault in document.faults):
            document.fault(absent, "missing; expected it to be given")
        return _take_out(root, steps)
    value = _at(root, steps)
    shown = "a secret" if steps and steps[-1] in secrets else _shown(value)
    expected = _EXPECTED.fullmatch(text)
    if all(fault.field != inner for fault in document.faults):  # of an empty reference, that was said
        document.fault(inner, f"found {shown}; expected {_words(expected[1]) if expected else text}")
    return _take_out(root, steps)


def _take_out(root: Any, steps: list[str | int]) -> bool:
    """Remove a value, or else the innermost one around it that can be; False where none can."""
    while steps:
        parent = _at(root, steps[:-1])
        if isinstance(parent, dict):
            return parent.pop(steps[-1], None) is not None
        steps = steps[:-1]
    return False


def _steps(path: str, root: Any, kind: type) -> Iterator[str | int]:
    """The steps of a path of msgspec, which does not tell the keys of mappings: they are found by trying."""
    taken: list[str | int] = []
    for name, place, key in _STEP.findall(path):
        step: str | int = name or (int(place) if place else "")
        if key:
            step = _culprit(root, taken, kind)
        taken.append(step)
        yield step


def _culprit(root: Any, steps: list[str | int], kind: type) -> str:
    """The key of the mapping at `steps` whose value is wrong."""
    mapping = _at(root, steps)
    keys = [*mapping] if isinstance(mapping, dict) else []
    values = dict(mapping) if isinstance(mapping, dict) else {}
    try:
        for key in keys:
            mapping.clear()
            mapping[key] = values[key]
            try:
                msgspec.convert(root, kind, strict=False)
            except msgspec.ValidationError as error:
                if f"{_path(steps)}[...]" in str(error):
                    return str(key)
        return ""
    finally:
        if keys:
            mapping.clear()
            mapping.update(values)


def _path(steps: list[str | int]) -> str:
    path = ""
    for step in steps:
        path = f"{path}[{step}]" if isinstance(step, int) else join(path, step)
    return path


def _at(root: Any, steps: list[str | int]) -> Any:
    for step in steps:
        try:
            root = root[step]
        except (KeyError, IndexError, TypeError):
            return None
    return root


def _names(kind: type, root: Any, steps: list[str | int]) -> list[str]:
    """The fields that the mapping at `steps` may have."""
    found: inspect.Type = inspect.type_info(kind)
    for depth, step in enumerate(steps):
        found = _struct(found, _at(root, steps[:depth]))
        if isinstance(found, inspect.StructType):
            found = next(
                (field.type for field in found.fields if field.encode_name == step), inspect.AnyType()
            )
        elif isinstance(found, inspect.ListType):
            found = found.item_type
        elif isinstance(found, inspect.DictType):
            found = found.value_type
    found = _struct(found, _at(root, steps))
    return [field.encode_name for field in found.fields] if isinstance(found, inspect.StructType) else []


def _struct(kind: inspect.Type, value: Any) -> inspect.Type:
    """What of a union a value is, as far as that can be told."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if not isinstance(kind, inspect.UnionType):
        return kind
    choices = [_struct(choice, value) for choice in kind.types]
    if isinstance(value, list):
        return next((choice for choice in choices if isinstance(choice, inspect.ListType)), kind)
    structs = [choice for choice in choices if isinstance(choice, inspect.StructType)]
    tag = value.get("type") if isinstance(value, dict) else None
    return next((struct for struct in structs if len(structs) == 1 or struct.tag == tag), kind)


def _nearest(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"{close[0]} (or another of {len(names)})" if close else f"one of {', '.join(names)}"


def _words(expected: str) -> str:
    """What msgspec expected, in words of YAML."""
    for code, word in (
        ("`array`", "a list"),
        ("`object`", "a mapping"),
        ("`str`", "text"),
        ("`int`", "an integer"),
        ("`float`", "a number"),
        ("`bool`", "true or false"),
    ):
        expected = expected.replace(code, word)
    return re.sub(r"`object \| str`|`str \| object`", "text or a mapping", expected).replace("`", "")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = _CREDENTIALS.sub("//", str(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
