"""The shape of the source tree: what may import what, how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "qinfer": ROOT / "src" / "qinfer",
    "qinfer_gateway": ROOT / "gateway" / "qinfer_gateway",
    "qinfer_workers": ROOT / "workers" / "qinfer_workers",
}
MAY_IMPORT = {
    "qinfer": {"qinfer"},
    "qinfer_gateway": {"qinfer", "qinfer_gateway"},
    "qinfer_workers": {"qinfer", "qinfer_workers"},
}
OPTIONAL = {
    "onnxruntime",
    "torch",
    "aiokafka",
    "fastavro",
    "pyarrow",
    "nats_server",
    "opentelemetry.exporter",
}
"""What an extra brings: `import qinfer` has to work without it."""

KAFKA_ENGINE = ("engine.py", "lane.py", "progress.py", "session.py", "sinks.py")
MAX_LINES = 400
LONG_FILES: dict[str, str] = {}
"""Files that are longer, with the reason."""


def modules(package: str) -> list[Path]:
    found = [
        path for path in PACKAGES[package].rglob("*.py") if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]
    assert found
    return found


MODULES = [(package, path) for package in PACKAGES for path in modules(package)]
IDS = [str(path.relative_to(ROOT)) for _, path in MODULES]


def imported(tree: ast.AST, *, at_start: bool = False) -> Iterator[str]:
    """Names of the modules a file imports; `at_start` leaves out those that functions import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif at_start and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (name for child in node.orelse for name in imported(child, at_start=True))
        else:
            yield from imported(node, at_start=at_start)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_of(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(("package", "path"), MODULES, ids=IDS)
def test_dependencies_point_one_way(package: str, path: Path) -> None:
    for name in imported(parse(path)):
        assert not name.startswith("."), f"relative import of {name}"
        if is_of(name, set(PACKAGES)):
            assert is_of(name, MAY_IMPORT[package]), f"{package} imports {name}"


@pytest.mark.parametrize(("package", "path"), MODULES, ids=IDS)
def test_what_extras_bring_is_imported_late(package: str, path: Path) -> None:
    early = [name for name in imported(parse(path), at_start=True) if is_of(name, OPTIONAL)]
    lazy_package = path.relative_to(PACKAGES[package]).parts[:2]
    # A backend's modules below its `backend.py` are themselves imported late, by it.
    if lazy_package[0] == "backends" and path.name not in ("__init__.py", "backend.py"):
        return
    # The stream scorer's engine is imported late, by its command.
    if lazy_package in {("kafka", name) for name in KAFKA_ENGINE}:
        return
    assert not early, f"{early} imported at the start of the module"


@pytest.mark.parametrize(("package", "path"), MODULES, ids=IDS)
def test_nothing_prints(package: str, path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"print in line {node.lineno}"


def test_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for _, path in MODULES
    }
    too_long = {name: length for name, length in lengths.items() if length > MAX_LINES}
    assert {name: length for name, length in too_long.items() if name not in LONG_FILES} == {}
    assert set(LONG_FILES) <= set(too_long), "no longer too long: take it off the list"


def test_no_module_is_named_for_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [path for _, path in MODULES if path.stem in vague] == []


def test_the_checks_see_what_they_forbid() -> None:
    source = ast.parse(
        "import torch\nfrom qinfer_workers.batch import Batch\ndef f():\n    import onnxruntime\n"
        "if TYPE_CHECKING:\n    import aiokafka\n"
    )
    assert list(imported(source)) == ["torch", "qinfer_workers.batch", "onnxruntime", "aiokafka"]
    assert list(imported(source, at_start=True)) == ["torch", "qinfer_workers.batch"]
    assert is_of("qinfer_workers.batch", {"qinfer_workers"})
    assert not is_of("qinfer_workers.batch", MAY_IMPORT["qinfer_gateway"])
