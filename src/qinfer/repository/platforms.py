"""Names of backends: qinfer's, Triton's, the legacy `platform`, and the model files that tell a backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from qinfer.proto import ModelConfig
from qinfer.repository.document import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spelling:
    """How one backend is called.

    Attributes:
        backend: in qinfer.
        triton: value of `backend` in configurations written for Triton.
        platforms: values of `platform`; the first is what metadata reports.
        filenames: model files from which the backend can be guessed.
    """

    backend: str
    triton: str
    platforms: tuple[str, ...] = ()
    filenames: tuple[str, ...] = ()


_SPELLINGS = (
    _Spelling(
        backend="onnxruntime",
        triton="onnxruntime",
        platforms=("onnxruntime_onnx",),
        filenames=("model.onnx",),
    ),
    _Spelling(
        backend="torch",
        triton="pytorch",
        platforms=("pytorch_libtorch",),
        filenames=("model.pt", "model.pt2"),
    ),
    _Spelling(backend="python", triton="python", filenames=("model.py",)),
    # Not shipped with qinfer, but a plug-in may bring them under Triton's name.
    _Spelling(backend="tensorrt", triton="tensorrt", platforms=("tensorrt_plan",)),
    _Spelling(
        backend="tensorflow",
        triton="tensorflow",
        platforms=("tensorflow_savedmodel", "tensorflow_graphdef"),
    ),
)

_BY_BACKEND = {spelling.backend: spelling for spelling in _SPELLINGS}
_BY_TRITON = {spelling.triton: spelling for spelling in _SPELLINGS}
_BY_PLATFORM = {platform: spelling for spelling in _SPELLINGS for platform in spelling.platforms}
_BY_FILENAME = {filename: spelling for spelling in _SPELLINGS for filename in spelling.filenames}
_BY_SUFFIX = {PurePath(filename).suffix: spelling for filename, spelling in _BY_FILENAME.items()}


def backend(name: str) -> str:
    """qinfer's name for the backend `name`; names it does not know stay as they are."""
    return _BY_TRITON[name].backend if name in _BY_TRITON else name


def triton_backend(name: str) -> str:
    """Triton's name for the backend `name` of qinfer."""
    return _BY_BACKEND[name].triton if name in _BY_BACKEND else name


def legacy_platform(name: str) -> str:
    """The value of `platform` for the backend `name` of qinfer; "" if it never had one."""
    spelling = _BY_BACKEND.get(name)
    return spelling.platforms[0] if spelling is not None and spelling.platforms else ""


def settle(message: ModelConfig, filenames: Iterable[str]) -> list[Fault]:
    """Fill in `backend` and `platform` of a configuration from each other or from the model's files.

    Args:
        message: changed in place.
        filenames: what is in the directory of the version to look at.
    """
    by_platform = _BY_PLATFORM.get(message.platform)
    if message.platform == "ensemble" or message.HasField("ensemble_scheduling"):
        message.backend = message.backend or "ensemble"
        return []
    if not message.backend:
        if by_platform is not None:
            message.backend = by_platform.triton
        elif message.platform:
            return [Fault("platform", f"unknown platform {message.platform}; expected {_platforms()}")]
        else:
            guess = _guess(message.default_model_filename, filenames)
            if isinstance(guess, Fault):
                return [guess]
            message.backend = guess.triton
    elif by_platform is not None and by_platform.backend != backend(message.backend):
        return [
            Fault(
                "platform",
                f"{message.platform} is a platform of backend {by_platform.triton}, but backend is"
                f" {message.backend}; expected them to agree, or only one of them",
            )
        ]
    message.platform = message.platform or legacy_platform(backend(message.backend))
    return []


def _guess(default: str, filenames: Iterable[str]) -> _Spelling | Fault:
    if default:
        found = [default]
        spellings = {_BY_SUFFIX.get(PurePath(default).suffix)} - {None}
    else:
        found = [name for name in filenames if name in _BY_FILENAME]
        spellings = {_BY_FILENAME[name] for name in found}
    if len(spellings) == 1 and (spelling := spellings.pop()) is not None:
        return spelling
    if spellings:
        return Fault("backend", f"not given, and {' and '.join(sorted(found))} are both there; expected one")
    silent = f"{default} does not tell" if default else "the version's files do not tell"
    return Fault("backend", f"not given, and {silent}; expected backend, or {_filenames()}")


def _platforms() -> str:
    return f"backend, or one of {', '.join(_BY_PLATFORM)}"


def _filenames() -> str:
    return f"a file {', '.join(_BY_FILENAME)}"
