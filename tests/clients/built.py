"""The clients of `examples/clients`, each installed or built once for a run of the tests.

Packages come from npm's and Go's caches where they are there, so that a second run needs no network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "clients"
DRIVERS = Path(__file__).parent / "drivers"
_INSTALL_SECONDS = 300
_NETWORK = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|ENOTCACHED|E40[0-9]|E50[0-9]"
    r"|dial tcp|lookup |i/o timeout|proxyconnect|unexpected status|50[0-9] |requires go >="
)


@dataclass(frozen=True, slots=True)
class Built:
    """A client that can be run.

    Attributes:
        driver: command of the test's driver (`tests.clients.driven`).
        ask: command of the example's own program.
    """

    driver: Sequence[str]
    ask: Sequence[str]


def build_node(folder: Path) -> Built:
    """Install the Node.js client beside its driver."""
    node, npm = _tools("node", "npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip("v").split(".")[0]) < 20:
        pytest.skip(f"node is {version.strip()}; the example needs 20")
    _copy(EXAMPLES / "node", folder)
    shutil.copy(DRIVERS / "node.mjs", folder / "driver.mjs")
    _run([npm, "ci", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
    return Built([node, str(folder / "driver.mjs")], [node, str(folder / "ask.mjs")])


def build_go(folder: Path) -> Built:
    """Build the Go client with its driver."""
    (go,) = _tools("go")
    _copy(EXAMPLES / "go", folder)
    (folder / "driver").mkdir()
    shutil.copy(DRIVERS / "go.go", folder / "driver" / "main.go")
    environment = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    _run([go, "mod", "download"], folder, environment)
    _run([go, "vet", "./..."], folder, environment)
    _run([go, "build", "-o", f"{folder / 'bin'}/", "./ask", "./driver"], folder, environment)
    return Built([str(folder / "bin" / "driver")], [str(folder / "bin" / "ask")])


BUILDERS: Mapping[str, Callable[[Path], Built]] = {"node": build_node, "go": build_go}


def _tools(*names: str) -> list[str]:
    found = {name: shutil.which(name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    return [path for path in found.values() if path is not None]


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a step of a build; a registry that cannot be reached skips the tests, anything else fails them."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
        check=False,
    )
    if done.returncode:
        told = (done.stdout + done.stderr).strip()
        step = " ".join([Path(command[0]).name, *command[1:3]])
        if found := _NETWORK.search(told):
            line = next(line for line in told.splitlines() if found[0] in line)
            pytest.skip(f"{step}: {line.strip()}")
        pytest.fail(f"{step} failed:\n{told}")
