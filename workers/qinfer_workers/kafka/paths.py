"""Paths into documents: `customer.features`, `items[*].price`, `items[0]`, `['a.b']`, `$` for all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from qinfer.scoring.columns import MISSING

MAX_STEPS = 32
"""Most steps of a path."""

Getter: TypeAlias = Callable[[Any], Any]
"""Finds a value in a document; `MISSING` where it is not."""

_EACH = "*"
_STEP = re.compile(
    r"(?:^|(?!^)\.)([^.\[\]'\"$*\s][^.\[\]]*)|\[(\d{1,9})\]|\[(\*)\]|\[(?:'([^']*)'|\"([^\"]*)\")\]"
)


class _Each:
    """The step `[*]`."""


EACH = _Each()

Step: TypeAlias = str | int | _Each


@dataclass(frozen=True, slots=True)
class Path:
    """A path.

    Attributes:
        text: as it was written.
        steps: names of fields, places in lists, and `EACH`; none for the whole document.
    """

    text: str
    steps: tuple[Step, ...]

    @property
    def root(self) -> str | None:
        """The field of the document that it begins with; None where it does not begin with one."""
        first = self.steps[0] if self.steps else None
        return first if isinstance(first, str) else None

    @property
    def name(self) -> str | None:
        """The field it is, if it is one of the document itself."""
        return self.root if len(self.steps) == 1 else None


def parse(text: str) -> Path:
    """Read a path.

    Raises:
        ValueError: it is none; says what was expected.
    """
    rest = text[1:].removeprefix(".") if text == "$" or text.startswith(("$.", "$[")) else text
    steps: list[Step] = []
    offset = 0
    while offset < len(rest):
        found = _STEP.match(rest, offset)
        if found is None:
            raise ValueError(
                f"found {text!r}; expected a path such as customer.features, items[*].price or $"
            )
        name, place, each, *quoted = found.groups()
        if name is not None:
            steps.append(name)
        elif place is not None:
            steps.append(int(place))
        else:
            steps.append(EACH if each else quoted[0] if quoted[0] is not None else quoted[1])
        offset = found.end()
    if (not steps and text != "$") or len(steps) > MAX_STEPS:
        raise ValueError(f"found {text!r}; expected a path of 1 to {MAX_STEPS} steps, or $")
    return Path(text, tuple(steps))


def getter(steps: Sequence[Step]) -> Getter:
    """What finds the value that steps lead to. `[*]` gives a list; what is missing in it fails the whole."""
    if not steps:
        return lambda value: value
    first, inner = steps[0], getter(steps[1:])
    if isinstance(first, _Each):
        return _each(inner)
    found = _field(first) if isinstance(first, str) else _element(first)
    return found if len(steps) == 1 else _then(found, inner)


def values_at(documents: Sequence[Any], path: Path) -> list[Any]:
    """The value that a path leads to in each document."""
    if path.name is not None:
        name = path.name
        return [document.get(name, MISSING) if type(document) is dict else MISSING for document in documents]
    get = getter(path.steps)
    return [get(document) for document in documents]


def _field(name: str) -> Getter:
    return lambda value: value.get(name, MISSING) if isinstance(value, Mapping) else MISSING


def _element(place: int) -> Getter:
    return lambda value: value[place] if isinstance(value, list) and place < len(value) else MISSING


def _then(outer: Getter, inner: Getter) -> Getter:
    def get(value: Any) -> Any:
        found = outer(value)
        return found if found is MISSING or found is None else inner(found)

    return get


def _each(inner: Getter) -> Getter:
    def get(value: Any) -> Any:
        if not isinstance(value, list):
            return MISSING
        found = [inner(element) for element in value]
        return MISSING if any(element is MISSING for element in found) else found

    return get
