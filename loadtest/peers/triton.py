"""NVIDIA Triton: the server binary of the PyTriton wheel, with its Python backend running onnxruntime."""

from __future__ import annotations

import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import packages
from loadtest.mlp import MODEL_NAME, build_mlp, config_pbtxt
from loadtest.peers.base import Command, OpenInference, Ports
from qinfer.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REQUIREMENTS = Path(__file__).with_name("triton-requirements.txt")
_MODEL = Path(__file__).with_name("triton_model.py")
_SERVER_VERSION = "2.51.0"
_STUB = "triton_python_backend_stub"


class Triton(OpenInference):
    """Triton's own front, scheduler and dynamic batcher, with the model in its Python backend."""

    name = "triton"
    title = f"Triton {_SERVER_VERSION}, Python backend"
    remark = (
        "This Triton runs the model in its Python backend (the same ONNX file in the same onnxruntime, one "
        "thread), because that is what its wheel on PyPI carries. Its containers also have a native "
        "onnxruntime backend, which saves the hop to the Python process; it was not measured."
    )

    def prepare(self, cache: Path) -> None:
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise SetupError(
                f"the Triton wheel is for Linux on x86_64; this is {sys.platform}, {platform.machine()}"
            )
        if sys.version_info[:2] not in ((3, 11), (3, 12)):
            raise SetupError(
                f"Triton's Python backend needs numpy 1, which has wheels for Python 3.11 and 3.12; "
                f"this is {platform.python_version()}"
            )
        packages.install(_REQUIREMENTS, _packages(cache))
        stub = _backend(cache) / _STUB
        if not stub.exists():
            stubs = _server(cache) / "python_backend_stubs"
            shutil.copy(stubs / f"{sys.version_info.major}.{sys.version_info.minor}" / _STUB, stub)
        for binary in (stub, _binary(cache)):
            binary.chmod(0o755)
            packages.check_libraries(binary, _library_folders(cache), {})

    def versions(self) -> Mapping[str, str]:
        return {
            "triton": _SERVER_VERSION,
            "triton: onnxruntime": packages.pinned(_REQUIREMENTS, "onnxruntime"),
            "triton: numpy": packages.pinned(_REQUIREMENTS, "numpy"),
        }

    def command(self, cache: Path, folder: Path, ports: Ports) -> Command:
        version = folder / "models" / MODEL_NAME / "1"
        version.mkdir(parents=True)
        shutil.copy(_MODEL, version / "model.py")
        build_mlp(version / "model.onnx")
        (version.parent / "config.pbtxt").write_text(config_pbtxt("python"))
        arguments = [str(_binary(cache)), f"--model-repository={folder / 'models'}"]
        arguments += [f"--backend-directory={_backend(cache).parent}"]
        arguments += ["--http-address=127.0.0.1", f"--http-port={ports.http}"]
        arguments += [
            "--grpc-address=127.0.0.1",
            f"--grpc-port={ports.grpc}",
            f"--metrics-port={ports.metrics}",
        ]
        libraries = ":".join(str(path) for path in _library_folders(cache))
        environment = {"LD_LIBRARY_PATH": libraries, "LOADTEST_TRITON_PACKAGES": str(_packages(cache))}
        return Command(arguments=arguments, environment=environment)

    def role(self, arguments: Sequence[str]) -> str:
        return "python backend" if Path(arguments[0]).name == _STUB else "server"


def _packages(cache: Path) -> Path:
    return cache / "triton"


def _server(cache: Path) -> Path:
    return _packages(cache) / "pytriton" / "tritonserver"


def _binary(cache: Path) -> Path:
    return _server(cache) / "bin" / "tritonserver"


def _backend(cache: Path) -> Path:
    return _server(cache) / "backends" / "python"


def _library_folders(cache: Path) -> list[Path]:
    """Where the server and the stub find their shared libraries: the wheel's own, and that of this Python."""
    return [_libpython().parent, _packages(cache) / "nvidia_pytriton.libs"]


def _libpython() -> Path:
    """The shared library of the running Python, which the stub embeds."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    configured = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = configured / (sysconfig.get_config_var("MULTIARCH") or "")
    for folder in (configured, multiarch, Path(sys.base_prefix) / "lib"):
        if (folder / name).exists():
            return folder / name
    raise SetupError(
        f"Triton's Python backend needs {name}, not found in {configured} or {sys.base_prefix}/lib: "
        f"install it (Debian: apt install {name.removesuffix('.so.1.0')}) or use a Python built with "
        f"--enable-shared"
    )
