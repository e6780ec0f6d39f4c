"""The backend in `docs/backends.md`, taken from there and run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.backends.support import batch_of, config_of, spec_of, tensor

from qinfer.errors import ConfigError
from qinfer_workers.backends import find, registry
from qinfer_workers.backends.base import Backend

DOCUMENT = Path(__file__).parents[2] / "docs" / "backends.md"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The documented class, found by its documented entry point."""
    text = DOCUMENT.read_text()
    (source,) = re.findall(r"```python\n(.*?)```", text.partition("## Write your own")[2], re.DOTALL)
    ((name, value),) = re.findall(r'"qinfer\.backends"\]\n(\w+) = "(.*)"', text)
    module = ModuleType(value.partition(":")[0])
    exec(compile(source, str(DOCUMENT), "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = registry.EntryPoint(name, value, registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point])
    return find(name)


def test_the_documented_backend_serves(backend: Backend, tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    (tmp_path / "1").mkdir()
    np.savez(tmp_path / "1" / backend.filename, weight=weight)
    backend.check()
    config = backend.complete(config_of(backend.name), tmp_path, 1)
    assert config.max_batch_size == 4
    assert config.inputs == (tensor("x", "FP32", 3),)
    assert config.outputs == (tensor("y", "FP32", 2),)
    with pytest.raises(ConfigError, match=r"input 'x': dims: found \[5\]; expected \[3\]"):
        backend.complete(
            config_of(backend.name, inputs=[tensor("x", "FP32", 5)], max_batch_size=4), tmp_path, 1
        )
    instance = backend.load(spec_of(config, tmp_path))
    x = np.ones((2, 3), np.float32)
    outputs = instance.execute(batch_of({"x": x}, {"x": 2 * x}))
    assert isinstance(outputs, dict)
    np.testing.assert_allclose(outputs["y"], np.concatenate([x, 2 * x]) @ weight)
    instance.close()
