"""A YAML file as plain values: where each of them is, and what of the environment went into them.

`${NAME}` in a value stands for an environment variable, `${NAME:-text}` for text where there is none, and
`$${` for `${`; what comes of it is text. Other scalars are those of YAML 1.2: `no` is a text, `010` too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qinfer.errors import ConfigError, SetupError
from qinfer.repository.document import Fault, Position, config_error, join

MAX_BYTES = 1024 * 1024
"""Largest file that is read."""

MAX_NODES = 100_000
"""Most values a file may have once its aliases are followed, which can repeat each other without end."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,4})?")
_WORDS: Mapping[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}
_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(slots=True)
class Document:
    """A file that has been read.

    Attributes:
        name: what messages call it.
        root: its values: mappings, lists, texts, numbers, truth values and None.
        positions: where each value is, by its path.
        texts: the text of each value that holds a reference to the environment, before it was followed.
        faults: what is wrong with it so far.
    """

    name: str
    root: Any = None
    positions: dict[str, Position] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, path: str, text: str) -> None:
        """Note something wrong with the value at `path`."""
        self.faults.append(Fault(path, text, self._position(path)))

    def error(self) -> ConfigError:
        """One error that tells of all faults, a line each, in the order of the file."""
        return config_error(
            self.name, sorted(self.faults, key=lambda fault: fault.position or Position(0, 0))
        )

    def is_reference(self, path: str) -> bool:
        """Whether a value is nothing but a reference to the environment, without a text to fall back to."""
        found = _REFERENCE.fullmatch(self.texts.get(path, ""))
        return found is not None and found[1] is not None and ":-" not in found[1]

    def _position(self, path: str) -> Position | None:
        """Where a value is, or else the innermost one around it."""
        while path and path not in self.positions:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.positions.get(path)


def read(path: Path, environment: Mapping[str, str]) -> Document:
    """Read a file.

    Args:
        path: the file.
        environment: variables that it may refer to.

    Raises:
        SetupError: it cannot be read.
        ConfigError: it is no YAML, or refers to what is not there.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise SetupError(f"{path}: more than {MAX_BYTES} bytes; expected a pipeline")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise SetupError(f"{path}: {error}; expected YAML in UTF-8") from None
    return parse(text, str(path), environment)


def parse(text: str, name: str, environment: Mapping[str, str]) -> Document:
    """Parse the text of a file; `name` is what messages call it.

    Raises:
        ConfigError: it is no YAML, or refers to what is not there.
    """
    document = Document(name)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            document.root = _Walk(document, environment).value(root, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = None if mark is None else Position(mark.line + 1, mark.column + 1)
        raise config_error(name, [Fault("", f"{error.problem}; expected YAML", position)]) from None
    except yaml.YAMLError as error:
        raise config_error(name, [Fault("", f"{error}; expected YAML".replace("\n", " "))]) from None
    except RecursionError:
        raise config_error(name, [Fault("", "nested too deeply; expected a pipeline")]) from None
    return document


class _Walk:
    """Makes values of nodes."""

    def __init__(self, document: Document, environment: Mapping[str, str]) -> None:
        self._document = document
        self._environment = environment
        self._nodes = 0

    def value(self, node: yaml.Node, path: str) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            fault = Fault("", f"more than {MAX_NODES} values; expected a pipeline")
            raise config_error(self._document.name, [fault])
        self._document.positions.setdefault(path, _position(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(element, f"{path}[{place}]") for place, element in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._document.fault(path, "found a list or mapping as a key; expected the name of a field")
                continue
            name = str(key.value)
            inner = join(path, name)
            self._document.positions[inner] = _position(key)
            if name in found:
                self._document.fault(inner, "given twice; expected once")
            found[name] = self.value(value, inner)
        return found

    def _scalar(self, node: yaml.Node, path: str) -> Any:
        text = str(node.value)
        if "${" in text:
            self._document.texts[path] = text
            return _REFERENCE.sub(lambda match: self._referred(match, path), text)
        return text if getattr(node, "style", None) else plain(text)

    def _referred(self, match: re.Match[str], path: str) -> str:
        if match[1] is None:
            return "${"
        found = _NAME.fullmatch(match[1])
        if found is None:
            self._document.fault(path, f"found {match[0]}; expected ${{NAME}} or ${{NAME:-text}}")
            return ""
        name, otherwise = found.groups()
        value = self._environment.get(name)
        if value is None and otherwise is None:
            self._document.fault(path, f"environment variable {name} is not set; expected a value in it")
        return value if value is not None else otherwise or ""


def plain(text: str) -> Any:
    """What a scalar without quotes stands for."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _position(node: yaml.Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)
