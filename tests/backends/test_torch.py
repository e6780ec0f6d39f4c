"""The PyTorch backend on real TorchScript and exported programs, built here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.support import batch_of, config_of, spec_of, tensor

from qinfer.errors import BackendUnavailable, ConfigError, ModelFailed, Unsupported
from qinfer_workers.backends.torch import TorchBackend
from qinfer_workers.backends.torch.instance import TorchInstance
from qinfer_workers.backends.torch.options import Options

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

BACKEND = TorchBackend()


class Scale(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor, by: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * by, x.sum(dim=1, keepdim=True)


class Same(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class InPlace(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


class ByName(torch.nn.Module):  # type: ignore[misc]
    def forward(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sum": tensors["a"] + tensors["b"], "difference": tensors["a"] - tensors["b"]}


def save_script(directory: Path, module: Any) -> Path:
    (directory / "1").mkdir(exist_ok=True)
    path = directory / "1" / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and its files are in service
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def save_export(directory: Path, module: Any, *arguments: Any, batched: bool = True) -> None:
    (directory / "1").mkdir(exist_ok=True)
    rows = torch.export.Dim("rows", min=1, max=64)
    shapes = tuple({0: rows} for _ in arguments) if batched else None
    program = torch.export.export(module, arguments, dynamic_shapes=shapes)
    torch.export.save(program, str(directory / "1" / "model.pt2"))


def run(config: Any, directory: Path, inputs: Mapping[str, Any], **more: Any) -> Mapping[str, Any]:
    return BACKEND.load(spec_of(config, directory)).execute(batch_of(inputs, **more))


X = np.arange(6, dtype=np.float32).reshape(2, 3)
TWO = np.full((2, 1), 2, dtype=np.float32)
SUM = X.sum(axis=1, keepdims=True)
OUTPUTS = [tensor("OUTPUT__0", "FP32", 3), tensor("OUTPUT__1", "FP32", 1)]


@pytest.mark.parametrize(
    ("first", "second"),
    [("INPUT__0", "INPUT__1"), ("x", "by"), ("features", "factor")],
    ids=["by position in the name", "by argument", "by order"],
)
def test_inputs_map_to_the_arguments(tmp_path: Path, first: str, second: str) -> None:
    save_script(tmp_path, Scale())
    config = config_of(
        "torch",
        inputs=[tensor(first, "FP32", 3), tensor(second, "FP32", 1)],
        outputs=OUTPUTS,
        max_batch_size=8,
    )
    assert BACKEND.complete(config, tmp_path, 1) is config
    outputs = run(config, tmp_path, {second: TWO, first: X})
    np.testing.assert_array_equal(outputs["OUTPUT__0"], X * 2)
    np.testing.assert_array_equal(outputs["OUTPUT__1"], SUM)


def test_outputs_without_numbers_map_by_order(tmp_path: Path) -> None:
    save_script(tmp_path, Scale())
    config = config_of(
        "torch",
        inputs=[tensor("by", "FP32", 1), tensor("x", "FP32", 3)],
        outputs=[tensor("scaled", "FP32", 3), tensor("total", "FP32", 1)],
        max_batch_size=8,
    )
    outputs = run(config, tmp_path, {"x": X, "by": TWO}, outputs=["total"])
    assert list(outputs) == ["total"]
    np.testing.assert_array_equal(outputs["total"], SUM)


def test_dictionaries_go_in_and_come_out(tmp_path: Path) -> None:
    save_script(tmp_path, ByName())
    config = config_of(
        "torch",
        inputs=[tensor("a", "FP32", 3), tensor("b", "FP32", 3)],
        outputs=[tensor("difference", "FP32", 3), tensor("sum", "FP32", 3)],
        max_batch_size=8,
    )
    outputs = run(config, tmp_path, {"a": X, "b": X})
    np.testing.assert_array_equal(outputs["sum"], X + X)
    np.testing.assert_array_equal(outputs["difference"], X - X)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x", "factor"], r"input: found x, factor; expected the names of the arguments of forward\(x, by\)"),
        (["INPUT__0", "INPUT__2"], r"input: found 'INPUT__2'; expected forward\(x, by\)"),
        (["a", "b", "c"], "input: found a, b, c"),
    ],
)
def test_inputs_that_do_not_map_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    save_script(tmp_path, Scale())
    config = config_of("torch", inputs=[tensor(name, "FP32", 3) for name in names], outputs=OUTPUTS)
    with pytest.raises(ConfigError, match=message):
        BACKEND.load(spec_of(config, tmp_path))


DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1", "INT16": "i2",
    "INT32": "i4", "INT64": "i8", "FP16": "f2", "BF16": "u2", "FP32": "f4", "FP64": "f8",
}  # fmt: skip


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_numeric_datatype_goes_in_and_comes_out(tmp_path: Path, datatype: str) -> None:
    save_script(tmp_path, Same())
    config = config_of(
        "torch", inputs=[tensor("x", datatype, 2)], outputs=[tensor("y", datatype, 2)], max_batch_size=8
    )
    given = np.array([[0, 1], [1, 3]]).astype(DTYPES[datatype])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        instance = BACKEND.load(spec_of(config, tmp_path))
        outputs = instance.execute(batch_of({"x": (given, datatype)}))
    assert outputs["y"].dtype == given.dtype
    assert outputs["y"].tolist() == given.tolist()


def test_bfloat16_is_computed_with(tmp_path: Path) -> None:
    save_script(tmp_path, InPlace())
    config = config_of(
        "torch", inputs=[tensor("x", "BF16", 2)], outputs=[tensor("y", "BF16", 2)], max_batch_size=8
    )
    outputs = run(config, tmp_path, {"x": (np.array([[0x3F80, 0x4000]], np.uint16), "BF16")})
    assert outputs["y"].tolist() == [[0x4000, 0x4040]]  # 1 and 2 became 2 and 3


@pytest.mark.parametrize("columns", [3, 50_000], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["script", "export"])
def test_a_program_that_writes_into_its_inputs_leaves_the_message_alone(
    tmp_path: Path, kind: str, columns: int
) -> None:
    zeros = np.zeros((2, columns), np.float32)
    if kind == "script":
        save_script(tmp_path, InPlace())
    else:
        save_export(tmp_path, InPlace(), torch.zeros(2, columns))
    config = config_of(
        "torch",
        inputs=[tensor("x", "FP32", columns)],
        outputs=[tensor("y", "FP32", columns)],
        max_batch_size=8,
    )
    instance = BACKEND.load(spec_of(config, tmp_path))
    batch = batch_of({"x": zeros})
    for _ in range(2):
        assert (instance.execute(batch)["y"] == 1).all()
    assert (batch.inputs["x"] == 0).all()


def test_a_large_input_is_not_copied_for_a_program_that_only_reads(tmp_path: Path) -> None:
    save_script(tmp_path, Same())
    config = config_of(
        "torch", inputs=[tensor("x", "FP32", 50_000)], outputs=[tensor("y", "FP32", 50_000)], max_batch_size=8
    )
    batch = batch_of({"x": np.ones((1, 50_000), np.float32)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = BACKEND.load(spec_of(config, tmp_path)).execute(batch)
    assert np.shares_memory(outputs["y"], batch.inputs["x"])


def test_an_exported_program_tells_its_signature(tmp_path: Path) -> None:
    save_export(tmp_path, Scale(), torch.zeros(2, 3), torch.ones(2, 1))
    config = BACKEND.complete(config_of("torch"), tmp_path, 1)
    assert config.max_batch_size == 4
    assert config.inputs == (tensor("x", "FP32", 3), tensor("by", "FP32", 1))
    assert config.outputs == tuple(OUTPUTS)
    outputs = run(config, tmp_path, {"x": X, "by": TWO})
    np.testing.assert_array_equal(outputs["OUTPUT__0"], X * 2)
    with pytest.raises(
        ConfigError, match=r"input 'x': data_type: found FP64; expected FP32 as in model/1/model\.pt2"
    ):
        BACKEND.complete(
            config_of("torch", inputs=[tensor("x", "FP64", 3), tensor("by", "FP32", 1)], max_batch_size=4),
            tmp_path,
            1,
        )


def test_an_exported_program_takes_keyword_arguments(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    program = torch.export.export(Scale(), (torch.zeros(2, 3),), kwargs={"by": torch.ones(2, 1)})
    torch.export.save(program, str(tmp_path / "1" / "model.pt2"))
    config = BACKEND.complete(config_of("torch"), tmp_path, 1)
    assert config.max_batch_size == 0
    outputs = run(config, tmp_path, {"by": TWO, "x": X}, batched=False)
    np.testing.assert_array_equal(outputs["OUTPUT__1"], SUM)


def test_what_forward_returns_is_checked(tmp_path: Path) -> None:
    save_script(tmp_path, Scale())
    inputs = [tensor("x", "FP32", 3), tensor("by", "FP32", 1)]
    for outputs, message in (
        ([tensor("a", "FP64", 3)], r"output 'a': forward returned torch\.float32; expected FP64"),
        (
            [tensor("OUTPUT__5", "FP32", 3)],
            "'OUTPUT__5': forward returned 2 values; expected a tensor at position 5",
        ),
    ):
        config = config_of("torch", inputs=inputs, outputs=outputs, max_batch_size=8)
        with pytest.raises(ModelFailed, match=message):
            run(config, tmp_path, {"x": X, "by": TWO})


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    torch.save(Same(), str(tmp_path / "1" / "model.pt"))
    config = config_of("torch", inputs=[tensor("x", "FP32", 3)], outputs=[tensor("y", "FP32", 3)])
    with pytest.raises(
        ConfigError, match=r"model/1/model\.pt: torch .* cannot load it: .*expected TorchScript"
    ):
        BACKEND.load(spec_of(config, tmp_path))


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    config = config_of("torch", inputs=[tensor("x", "FP32", 3)], outputs=[tensor("y", "FP32", 3)])
    with pytest.raises(ConfigError, match=r"expected model\.pt or model\.pt2"):
        BACKEND.load(spec_of(config, tmp_path))
    (tmp_path / "1" / "model.pt2").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"model/1/model\.pt2: torch .* cannot load it"):
        BACKEND.complete(config, tmp_path, 1)


def test_what_the_backend_cannot_do_is_told_when_loading(tmp_path: Path) -> None:
    save_script(tmp_path, Same())
    x, y = tensor("x", "FP32", 3), tensor("y", "FP32", 3)
    with pytest.raises(ConfigError, match="input: found none"):
        BACKEND.load(spec_of(config_of("torch", outputs=[y]), tmp_path))
    with pytest.raises(Unsupported, match="input 'x': data_type: found BYTES"):
        BACKEND.load(spec_of(config_of("torch", inputs=[tensor("x", "BYTES", 3)], outputs=[y]), tmp_path))
    with pytest.raises(
        ConfigError, match="INTRA_OP_THREAD_COUNT: found '0'; expected an integer of at least 1"
    ):
        BACKEND.load(
            spec_of(
                config_of("torch", inputs=[x], outputs=[y], parameters={"INTRA_OP_THREAD_COUNT": "0"}),
                tmp_path,
            )
        )
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match=r"wants GPU 0; torch .* sees 0"):
            BACKEND.load(spec_of(config_of("torch", inputs=[x], outputs=[y]), tmp_path, kind="GPU"))


class Probe:
    """A program that tells under which settings it runs."""

    arguments = ("x",)
    takes_dict = False
    mutates = False

    def run(self, arguments: Mapping[str, Any]) -> Any:
        settings = [torch.is_inference_mode_enabled(), not torch.is_grad_enabled()]
        return torch.tensor([settings])


@pytest.mark.parametrize(("text", "expected"), [("true", [True, True]), ("false", [False, True])])
def test_inference_mode_can_be_turned_off(tmp_path: Path, text: str, expected: list[bool]) -> None:
    config = config_of(
        "torch",
        inputs=[tensor("x", "FP32", 3)],
        outputs=[tensor("y", "BOOL", 2)],
        max_batch_size=8,
        parameters={"INFERENCE_MODE": text, "DISABLE_OPTIMIZED_EXECUTION": "true"},
    )
    spec = spec_of(config, tmp_path)
    instance = TorchInstance(torch, Probe(), spec, Options.of(config), torch.device("cpu"))
    assert instance.execute(batch_of({"x": X[:1]}))["y"].tolist() == [expected]


def test_threads_are_set_for_the_instance(tmp_path: Path) -> None:
    save_script(tmp_path, Same())
    before = torch.get_num_threads()
    config = config_of(
        "torch",
        inputs=[tensor("x", "FP32", 3)],
        outputs=[tensor("y", "FP32", 3)],
        parameters={"INTRA_OP_THREAD_COUNT": "3"},
    )
    try:
        BACKEND.load(spec_of(config, tmp_path))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
