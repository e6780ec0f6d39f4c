"""What a model repository may lead to: files inside it, and no code but that of Python models."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qinfer.errors import ConfigError
from qinfer.repository import Repository
from qinfer_workers.backends.base import InstanceSpec
from qinfer_workers.backends.files import model_file
from qinfer_workers.backends.onnxruntime import OnnxRuntimeBackend
from tests.helpers.served_models import signature

CONFIG = 'backend: "onnxruntime"\n' + signature("FP32")


def write_model(root: Path, name: str = "m", versions: tuple[int, ...] = (1,), config: str = CONFIG) -> Path:
    for version in versions:
        (root / name / str(version)).mkdir(parents=True)
        (root / name / str(version) / "model.onnx").write_bytes(b"here")
    (root / name / "config.pbtxt").write_text(config)
    return root / name


def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("model.onnx", "model.py", "labels.txt"):
        (folder / name).write_text("secret")
    return folder


def find(root: Path) -> Path:
    (entry,) = Repository(root).scan()[0]
    return model_file(entry.config, entry.directory, 1, "model.onnx")


@pytest.mark.parametrize("kind", ["file", "folder of the file's name", "version", "older version"])
def test_links_that_lead_out(tmp_path: Path, kind: str) -> None:
    """A default file name, which no configuration gives, is followed no further than one that is given."""
    target = outside(tmp_path)
    policy = "version_policy: { all {} }"
    model = write_model(tmp_path / "models", versions=(1, 2), config=CONFIG + policy)
    version = 1 if kind == "older version" else 2
    place = model / str(version)
    (place / "model.onnx").unlink()
    if kind == "file":
        (place / "model.onnx").symlink_to(target / "model.onnx")
    elif kind == "folder of the file's name":
        (place / "model.onnx").symlink_to(target)
    else:
        place.rmdir()
        place.symlink_to(target)
    assert "leads out of the model repository" in refusal(tmp_path / "models", version)


def refusal(root: Path, version: int) -> str:
    """Why a model's file is not opened: the scan has found it out, or whoever looks for the file does."""
    entries, problems = Repository(root).scan()
    if problems:
        return problems[0].error.message
    with pytest.raises(ConfigError) as refused:
        model_file(entries[0].config, entries[0].directory, version, "model.onnx")
    return refused.value.message


def test_links_within_the_repository_are_followed(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    (tmp_path / ".blobs").mkdir()
    (model / "1" / "model.onnx").rename(tmp_path / ".blobs" / "sha")
    (model / "1" / "model.onnx").symlink_to(tmp_path / ".blobs" / "sha")
    assert find(tmp_path).read_bytes() == b"here"


@pytest.mark.parametrize(
    "name", ["../outside/model.onnx", "/etc/passwd", "a/../../outside/model.onnx", "..", "x\ny"]
)
@pytest.mark.parametrize("field", ["default_model_filename", "label_filename"])
def test_names_that_lead_out(tmp_path: Path, name: str, field: str) -> None:
    outside(tmp_path)
    quoted = name.replace("\n", "\\n")
    config = CONFIG.replace('name: "y"', f'name: "y" label_filename: "{quoted}"')
    if field == "default_model_filename":
        config = f'{CONFIG}\ndefault_model_filename: "{quoted}"'
    write_model(tmp_path / "models", config=config)
    entries, problems = Repository(tmp_path / "models").scan()
    assert not entries
    assert field in problems[0].error.message


def test_weights_of_onnx_models_are_not_read_from_elsewhere(tmp_path: Path) -> None:
    """A model may name files with its weights; the library has to keep them beside the model."""
    from onnx import TensorProto, helper

    outside(tmp_path).joinpath("weights").write_bytes(np.ones(2, np.float32).tobytes())
    model = write_model(tmp_path / "models")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../../../outside/weights"
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", tensors[:1], tensors[1:], [weight]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (model / "1" / "model.onnx").write_bytes(made.SerializeToString())
    config = f'backend: "onnxruntime"\nmax_batch_size: 4\n{signature("FP32", 2)}'
    (model / "config.pbtxt").write_text(config)
    (found,) = Repository(tmp_path / "models").scan()[0]
    with pytest.raises(ConfigError, match=r"(?i)external|outside|escape"):
        OnnxRuntimeBackend().complete(found.config, found.directory, 1)


# Pickles in PyTorch's archives


class Bomb:
    """Runs code when it is unpickled: it makes the file that the environment names."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["QINFER_TEST_BOMB"],))


@pytest.fixture
def crater(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "crater"
    monkeypatch.setenv("QINFER_TEST_BOMB", str(path))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest archive with weights, a buffer and a constant."""
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)
            self.register_buffer("shift", torch.ones(2))

        def forward(self, x: Any) -> Any:
            return self.linear(x) + self.shift + torch.tensor([1.0, 2.0])

    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    torch.export.save(torch.export.export(Net(), (torch.zeros(1, 3),)), str(path))
    return path


def changed(source: Path, target: Path, change: Callable[[str, bytes], dict[str, bytes]]) -> Path:
    """A copy of an archive, each entry replaced by what `change` makes of it."""
    target.parent.mkdir(parents=True)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            for other, data in change(name, old.read(name)).items():
                new.writestr(other, data)
    return target


def saved(value: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _samples(name: str, data: bytes) -> dict[str, bytes]:
    return {name: saved((Bomb(), {})) if "sample_inputs" in name else data}


def _bare_pickle(name: str, data: bytes) -> dict[str, bytes]:
    return {name: pickle.dumps((Bomb(), {})) if "sample_inputs" in name else data}


def _weight(name: str, data: bytes) -> dict[str, bytes]:
    if name.endswith("weights_config.json"):
        data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    return {name: saved(Bomb()) if name.endswith("/weight_0") else data}


def _constant(name: str, data: bytes) -> dict[str, bytes]:
    if name.endswith("constants_config.json"):
        data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    return {name: saved(Bomb()) if name.endswith("/tensor_0") else data}


def _opaque(name: str, data: bytes) -> dict[str, bytes]:
    if name.endswith("/tensor_0"):
        return {name.replace("tensor_0", "opaque_obj_0"): pickle.dumps(Bomb())}
    return {
        name: data.replace(b'"tensor_0"', b'"opaque_obj_0"')
        if name.endswith("constants_config.json")
        else data
    }


def _legacy(name: str, data: bytes) -> dict[str, bytes]:
    if name.endswith("weights_config.json"):
        return {name: data, name.replace("model_weights_config.json", "model.pt"): saved({"w": Bomb()})}
    return {name: data}


ATTACKS = [_samples, _bare_pickle, _weight, _constant, _legacy]


@pytest.mark.parametrize("attack", [*ATTACKS, _opaque], ids=lambda attack: attack.__name__[1:])
def test_pickles_in_archives_are_not_opened(
    exported: Path, tmp_path: Path, crater: Path, attack: Callable[[str, bytes], dict[str, bytes]]
) -> None:
    from qinfer_workers.backends.torch import TorchBackend

    changed(exported, tmp_path / "models" / "m" / "1" / "model.pt2", attack)
    config = tmp_path / "models" / "m" / "config.pbtxt"
    config.write_text(f'backend: "torch"\n{signature("FP32", 3)}')
    (entry,) = Repository(tmp_path / "models").scan()[0]
    backend = TorchBackend()
    spec = InstanceSpec(
        config=entry.config, directory=entry.directory, version=1, name="m_0", kind="CPU", device=0
    )
    for load in (lambda: backend.complete(entry.config, entry.directory, 1), lambda: backend.load(spec)):
        with pytest.raises(ConfigError, match=r"pickle that holds more|object of Python"):
            load()
    assert not crater.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__[1:])
def test_the_attacks_are_real(
    exported: Path, tmp_path: Path, crater: Path, attack: Callable[[str, bytes], dict[str, bytes]]
) -> None:
    """PyTorch itself falls for them; else they would prove nothing."""
    import torch

    path = changed(exported, tmp_path / "x" / "model.pt2", attack)
    with suppress(Exception):  # what was unpickled fits nowhere, which it notices afterwards
        torch.export.load(str(path))
    assert crater.exists()


def test_honest_archives_are_opened(exported: Path, tmp_path: Path) -> None:
    from qinfer_workers.backends.torch import TorchBackend

    path = changed(exported, tmp_path / "m" / "1" / "model.pt2", lambda name, data: {name: data})
    (tmp_path / "m" / "config.pbtxt").write_text('backend: "torch"\n')
    (entry,) = Repository(tmp_path).scan()[0]
    assert path.exists()
    assert TorchBackend().complete(entry.config, entry.directory, 1).inputs
