"""Writing small repositories."""

from __future__ import annotations

from pathlib import Path

from qinfer.errors import QInferError
from qinfer.repository import ModelEntry, Repository

MINIMAL = """
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""


def write_model(
    root: Path,
    name: str = "m",
    config: str | None = MINIMAL,
    *,
    filename: str = "config.pbtxt",
    versions: tuple[str, ...] = ("1",),
    files: tuple[str, ...] = (),
) -> Path:
    """Make a model's directory; `files` are put into every version directory."""
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    for version in versions:
        (directory / version).mkdir()
        for file in files:
            (directory / version / file).touch()
    if config is not None:
        (directory / filename).write_text(config, encoding="utf-8")
    return directory


def only(root: Path) -> ModelEntry:
    """The one model of a repository without problems."""
    entries, problems = Repository(root).scan()
    assert not problems, problems
    (entry,) = entries
    return entry


def fault(root: Path) -> str:
    """The message of a repository's one problem, with paths from the repository on."""
    entries, problems = Repository(root).scan()
    assert not entries, entries
    (problem,) = problems
    assert isinstance(problem.error, QInferError)
    return problem.error.message.replace(f"{root.resolve()}/", "")
