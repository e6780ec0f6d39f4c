"""Which Avro schemas are taken.

Not those that contain themselves, whose data may nest until the stack is used up; and no lists of items that
take no bytes, of which a few bytes can claim any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_DEPTH = 64
"""Deepest nesting of a schema."""

_PRIMITIVES = frozenset(("null", "boolean", "int", "long", "float", "double", "bytes", "string"))


class _Known(NamedTuple):
    """A type: the fewest bytes of its data, and how deep it is."""

    width: int
    depth: int


class Check:
    """Checks schemas, of which later ones may name types of earlier ones."""

    def __init__(self) -> None:
        self._named: dict[str, _Known | None] = {}  # None while it is looked at

    def schema(self, schema: Any) -> None:
        """Check one.

        Raises:
            ValueError: it is not taken; says why.
        """
        self._type(schema, "", 0)

    def _type(self, schema: Any, namespace: str, depth: int) -> _Known:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}; expected less")
        if isinstance(schema, str):
            return self._name(schema, namespace)
        if isinstance(schema, list):
            inner = [self._type(branch, namespace, depth + 1) for branch in schema]
            return _nested(1, inner)
        if not isinstance(schema, dict):
            raise ValueError(f"found {schema!r}; expected an Avro type"[:200])
        kind = schema.get("type")
        if not isinstance(kind, str):
            return self._type(kind, namespace, depth + 1)
        if kind in ("array", "map"):
            return self._many(schema, kind, namespace, depth)
        if kind in ("record", "error", "enum", "fixed"):
            return self._definition(schema, kind, namespace, depth)
        return self._name(kind, namespace)

    def _name(self, name: str, namespace: str) -> _Known:
        if name in _PRIMITIVES:
            return _Known(0 if name == "null" else 1, 1)
        for full in (f"{namespace}.{name}" if namespace and "." not in name else name, name):
            if full in self._named:
                known = self._named[full]
                if known is None:
                    raise ValueError(f"type {full} contains itself; expected a schema that ends")
                return known
        raise ValueError(f"type {name} is not defined; expected it in the schema")

    def _many(self, schema: dict[str, Any], kind: str, namespace: str, depth: int) -> _Known:
        part = "items" if kind == "array" else "values"
        item = self._type(schema.get(part), namespace, depth + 1)
        if kind == "array" and not item.width:
            raise ValueError("an array of items without bytes; expected items that have some")
        return _nested(1, [item])

    def _definition(self, schema: dict[str, Any], kind: str, namespace: str, depth: int) -> _Known:
        name = str(schema.get("name", ""))
        namespace = str(schema.get("namespace", namespace) or "")
        if "." in name:
            namespace = name.rpartition(".")[0]
        full = f"{namespace}.{name}" if namespace and "." not in name else name
        self._named[full] = None
        if kind == "enum":
            known = _Known(1, 1)
        elif kind == "fixed":
            size = schema.get("size")
            known = _Known(size if isinstance(size, int) else 0, 1)
        else:
            fields = [field.get("type") for field in schema.get("fields") or () if isinstance(field, dict)]
            inner = [self._type(field, namespace, depth + 1) for field in fields]
            known = _nested(sum(field.width for field in inner), inner)
        self._named[full] = known
        return known


def _nested(width: int, inner: Sequence[_Known]) -> _Known:
    depth = 1 + max((part.depth for part in inner), default=0)
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}; expected less")
    return _Known(width, depth)


def has(schema: Any, path: Sequence[str]) -> bool:
    """Whether a parsed schema has a field, through records and unions. What is under a map counts."""
    if not path:
        return True
    if isinstance(schema, list):
        return any(has(branch, path) for branch in schema)
    if not isinstance(schema, dict):
        return isinstance(schema, str) and schema not in _PRIMITIVES  # it is defined elsewhere
    if schema.get("type") == "map":
        return True
    for field in schema.get("fields") or ():
        if field["name"] == path[0]:
            return has(field["type"], path[1:])
    inner = schema.get("type")
    return isinstance(inner, dict | list) and has(inner, path)
