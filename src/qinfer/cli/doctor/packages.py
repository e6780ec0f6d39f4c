"""Python, the packages qinfer needs, and its extras."""

from __future__ import annotations

import platform
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from qinfer import __version__
from qinfer.cli.doctor.findings import Finding, Status

_MINIMUM_PYTHON = (3, 11)
_DISTRIBUTION = "qinfer"
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*(?:\(?>=\s*(?P<minimum>[0-9.]+)[^;]*)?"
    r"(?:;.*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"].*)?"
)
_EXTRAS = {
    "onnx": "serves ONNX models on the CPU",
    "gpu": "serves ONNX models on NVIDIA GPUs",
    "torch": "serves PyTorch models",
    "embedded": "lets `qinfer serve` start a broker of its own",
    "kafka": "scores Kafka topics",
    "kafka-schemas": "reads and writes Avro and Protobuf records of Kafka",
    "parquet": "reads and writes Parquet files",
    "otlp": "exports traces",
    "security": "accepts JSON Web Tokens, and NATS users known by an nkey",
}


@dataclass(frozen=True, slots=True)
class _Requirement:
    name: str
    minimum: str

    def installed(self) -> str | None:
        """The installed version; None when there is none."""
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return None

    def problem(self) -> str | None:
        """What is wrong with what is installed."""
        version = self.installed()
        if version is None:
            return f"{self.name} is missing"
        if self.minimum and _numbers(version) < _numbers(self.minimum):
            return f"{self.name} {version} is older than {self.minimum}"
        return None


def check() -> Iterator[Finding]:
    """Python, dependencies and extras."""
    yield _python()
    requirements = _requirements()
    if requirements is None:
        yield Finding(
            check="qinfer",
            status=Status.FAIL,
            detail=f"{__version__}, but not installed as a package: its entry points are missing",
            advice="pip install qinfer, or pip install -e . in its sources",
        )
        return
    yield _dependencies(requirements[""])
    for extra, purpose in _EXTRAS.items():
        yield _extra(extra, purpose, requirements[extra])
    conflict = _conflict(requirements)
    if conflict is not None:
        yield conflict


def _python() -> Finding:
    found = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.platform(terse=True)}"
    )
    if sys.version_info[:2] < _MINIMUM_PYTHON:
        wanted = ".".join(map(str, _MINIMUM_PYTHON))
        return Finding(
            check="Python", status=Status.FAIL, detail=found, advice=f"qinfer needs Python {wanted} or newer"
        )
    return Finding(check="Python", status=Status.OK, detail=found)


def _requirements() -> dict[str, list[_Requirement]] | None:
    """What the package says it needs, by extra ("" for always)."""
    try:
        declared = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    found: dict[str, list[_Requirement]] = defaultdict(list)
    for line in declared:
        match = _REQUIREMENT.match(line)
        if match is not None:
            found[match["extra"] or ""].append(_Requirement(match["name"], match["minimum"] or ""))
    return found


def _dependencies(requirements: list[_Requirement]) -> Finding:
    problems = [problem for requirement in requirements if (problem := requirement.problem())]
    if problems:
        return Finding(
            check="dependencies",
            status=Status.FAIL,
            detail="; ".join(problems),
            advice="pip install --upgrade qinfer",
        )
    return Finding(
        check="dependencies", status=Status.OK, detail=f"qinfer {__version__}, {len(requirements)} packages"
    )


def _extra(extra: str, purpose: str, requirements: list[_Requirement]) -> Finding:
    check, install = f"extra {extra}", f"pip install 'qinfer[{extra}]'"
    versions = [(requirement.name, requirement.installed()) for requirement in requirements]
    if all(version is None for _, version in versions):
        return Finding(
            check=check,
            status=Status.INFO,
            detail="not installed",
            advice=f"{install} {purpose}",
        )
    problems = [problem for requirement in requirements if (problem := requirement.problem())]
    if problems:
        return Finding(check=check, status=Status.WARN, detail="; ".join(problems), advice=install)
    return Finding(
        check=check, status=Status.OK, detail=", ".join(f"{name} {version}" for name, version in versions)
    )


def _conflict(requirements: dict[str, list[_Requirement]]) -> Finding | None:
    both = [*requirements["onnx"], *requirements["gpu"]]
    if any(requirement.installed() is None for requirement in both):
        return None
    names = " and ".join(requirement.name for requirement in both)
    return Finding(
        check="extras onnx and gpu",
        status=Status.FAIL,
        detail=f"{names} exclude each other: both bring the module onnxruntime, and one overwrites the other",
        advice=f"pip uninstall {' '.join(one.name for one in both)}, then pip install 'qinfer[onnx]' "
        "or 'qinfer[gpu]'",
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version, comparable."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else [0]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
