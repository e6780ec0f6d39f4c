"""What it takes to build one example model."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from examples.zoo.sources import Source

LAYOUTS = Path(__file__).resolve().parent.parent / "layouts"
"""The part of each model directory that is written by hand: configuration and Python code."""

Write: TypeAlias = Callable[[Path, Mapping[str, Path]], None]
"""Add the model's files to a directory that has its layout, given the archive of each source by project."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build one model directory.

    Attributes:
        name: name of the model and of its directory.
        backend: the backend that runs it.
        summary: what it does, in a few words.
        write: adds what the layout lacks.
        sources: packages it is taken from.
        needs: modules without which it can neither be built nor served, with what to install.
        also: further files of ours that decide what is built (the module of `write` always does).
    """

    name: str
    backend: str
    summary: str
    write: Write
    sources: tuple[Source, ...] = ()
    needs: Mapping[str, str]
    also: tuple[Path, ...] = ()

    def missing(self) -> list[str]:
        """What to install before this model can be built and served; empty when nothing is missing."""
        return [f"{module} ({hint})" for module, hint in self.needs.items() if find_spec(module) is None]

    def layout(self) -> list[Path]:
        """The hand-written files, in a fixed order."""
        root = LAYOUTS / self.name
        return sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts)

    def digest(self) -> str:
        """Changes whenever the directory would come out differently."""
        result = hashlib.sha256()
        for path in self.layout():
            result.update(path.relative_to(LAYOUTS).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
        for source in self.sources:
            result.update(source.sha256.encode())
        for path in (Path(inspect.getfile(self.write)), *self.also):
            result.update(path.read_bytes())
        return result.hexdigest()
