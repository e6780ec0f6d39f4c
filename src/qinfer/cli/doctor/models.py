"""Backends, and whether the models of a repository can be served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from qinfer.cli.doctor.findings import Finding, Status
from qinfer.cli.doctor.host import gpu_names
from qinfer.errors import QInferError
from qinfer.repository import Repository

_BACKENDS = "qinfer.backends"


def check(repositories: Sequence[Path]) -> Iterator[Finding]:
    """Backends first, then the models."""
    usable: set[str] = set()
    for point in sorted(entry_points(group=_BACKENDS), key=lambda point: point.name):
        finding = _backend(point.name, point.load)
        if finding.status is Status.OK:
            usable.add(point.name)
        yield finding
    if not usable:
        yield Finding(
            check="backends",
            status=Status.FAIL,
            detail="no backend can be used",
            advice="pip install 'qinfer[onnx]' or 'qinfer[torch]'",
        )
    gpu = _gpu_support()
    if gpu is not None:
        yield gpu
    for path in repositories:
        yield from _repository(path, usable)


def _backend(name: str, load: Callable[[], Any]) -> Finding:
    check = f"backend {name}"
    try:
        backend = load()()
        backend.check()
    except QInferError as error:
        return Finding(check=check, status=Status.INFO, detail="cannot be used", advice=error.message)
    except Exception as error:  # noqa: BLE001 (a backend is code of others, and this is where it is looked at)
        return Finding(
            check=check,
            status=Status.FAIL,
            detail=f"cannot be loaded: {type(error).__name__}: {error}",
            advice="reinstall the package that brings it",
        )
    return Finding(check=check, status=Status.OK, detail="usable")


def _gpu_support() -> Finding | None:
    """Whether a library can use the GPUs that are there."""
    if not gpu_names():
        return None
    able = []
    try:
        import onnxruntime

        able += [
            name for name in onnxruntime.get_available_providers() if "CUDA" in name or "Tensorrt" in name
        ]
    except ImportError:
        pass
    try:
        import torch

        if torch.cuda.is_available():
            able.append(f"torch {torch.version.cuda}")
    except ImportError:
        pass
    if able:
        return Finding(check="GPU support", status=Status.OK, detail=", ".join(able))
    return Finding(
        check="GPU support",
        status=Status.WARN,
        detail="there are GPUs, but no installed library can use them",
        advice="pip install 'qinfer[gpu]' (instead of qinfer[onnx]) or 'qinfer[torch]'",
    )


def _repository(path: Path, usable: set[str]) -> Iterator[Finding]:
    if not path.is_dir():
        yield Finding(
            check=f"repository {path}",
            status=Status.FAIL,
            detail="is no directory",
            advice="a model repository is a directory with one directory a model",
        )
        return
    entries, problems = Repository(path).scan()
    if not entries and not problems:
        yield Finding(check=f"repository {path}", status=Status.FAIL, detail="has no models")
    for entry in entries:
        config = entry.config
        known = config.backend in usable
        versions = ", ".join(map(str, entry.versions))
        yield Finding(
            check=f"model {config.name}",
            status=Status.OK if known else Status.FAIL,
            detail=f"backend {config.backend}, versions {versions}",
            advice="" if known else f"backend {config.backend} cannot be used, see above",
        )
    for problem in problems:
        yield Finding(check=f"model {problem.model}", status=Status.FAIL, detail=problem.error.message)
