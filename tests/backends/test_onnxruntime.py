"""The ONNX Runtime backend on real models, built here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.backends.support import batch_of, config_of, spec_of, tensor

from qinfer.errors import BackendUnavailable, ConfigError, InvalidRequest
from qinfer_workers.backends.onnxruntime import OnnxRuntimeBackend
from qinfer_workers.backends.onnxruntime.options import providers, session_options
from qinfer_workers.backends.threads import threads_per_instance

BACKEND = OnnxRuntimeBackend()
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def save(
    directory: Path, nodes: Sequence[Any], inputs: Any, outputs: Any, weights: Sequence[Any] = ()
) -> None:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (directory / "1").mkdir(exist_ok=True)
    onnx.save(model, str(directory / "1" / "model.onnx"))


def save_identity(directory: Path, datatype: str, shape: Sequence[Any] = ("rows", 2)) -> None:
    kind = ONNX_TYPES[datatype]
    save(directory, [helper.make_node("Identity", ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)])


def save_linear(directory: Path) -> np.ndarray[Any, Any]:
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    save(
        directory,
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("ReduceSum", ["y"], ["total"], keepdims=1),
        ],
        [("x", TensorProto.FLOAT, ["rows", 3])],
        [("y", TensorProto.FLOAT, ["rows", 2]), ("total", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(weight, "w")],
    )
    return weight


def sample(datatype: str) -> Any:
    if datatype == "BYTES":
        return np.array([[b"a\0b", "é".encode()], [b"", b"x"]], dtype=object)
    if datatype == "BF16":
        return (np.array([[0x3F80, 0x4000], [0xC000, 0x7F80]], dtype=np.uint16), "BF16")
    dtype = {"BOOL": "?", "FP16": "f2", "FP32": "f4", "FP64": "f8"}.get(datatype, datatype.lower())
    return np.array([[0, 1], [1, 3]]).astype(dtype)


@pytest.mark.parametrize("datatype", ONNX_TYPES)
def test_every_datatype_goes_in_and_comes_out(tmp_path: Path, datatype: str) -> None:
    save_identity(tmp_path, datatype)
    config = BACKEND.complete(config_of("onnxruntime"), tmp_path, 1)
    assert config.inputs == (tensor("x", datatype, 2),)
    assert config.outputs == (tensor("y", datatype, 2),)
    assert config.max_batch_size == 4
    instance = BACKEND.load(spec_of(config, tmp_path))
    given = sample(datatype)
    outputs = instance.execute(batch_of({"x": given}, {"x": given}))
    expected = given[0] if isinstance(given, tuple) else given
    assert isinstance(outputs, dict)
    assert outputs["y"].dtype == expected.dtype
    assert outputs["y"].tolist() == [*expected.tolist(), *expected.tolist()]
    instance.close()


@pytest.mark.parametrize("datatype", ["FP32", "BF16", "BYTES"])
def test_an_empty_batch_dimension_survives(tmp_path: Path, datatype: str) -> None:
    save_identity(tmp_path, datatype)
    config = BACKEND.complete(config_of("onnxruntime"), tmp_path, 1)
    empty = np.empty((0, 2), dtype={"FP32": np.float32, "BF16": np.uint16, "BYTES": object}[datatype])
    outputs = BACKEND.load(spec_of(config, tmp_path)).execute(batch_of({"x": (empty, datatype)}))
    assert isinstance(outputs, dict)
    assert outputs["y"].shape == (0, 2)


def test_bfloat16_is_computed_with(tmp_path: Path) -> None:
    save(
        tmp_path,
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        [("x", TensorProto.BFLOAT16, ["rows", 2])],
        [("y", TensorProto.FLOAT, ["rows", 2])],
    )
    config = BACKEND.complete(config_of("onnxruntime"), tmp_path, 1)
    outputs = BACKEND.load(spec_of(config, tmp_path)).execute(batch_of({"x": sample("BF16")}))
    assert isinstance(outputs, dict)
    assert outputs["y"].tolist() == [[1.0, 2.0], [-2.0, float("inf")]]


def test_only_the_wanted_outputs_are_returned(tmp_path: Path) -> None:
    weight = save_linear(tmp_path)
    config = config_of(
        "onnxruntime",
        inputs=[tensor("x", "FP32", -1, 3)],
        outputs=[tensor("y", "FP32", -1, 2), tensor("total", "FP32", 1, 1)],
    )
    assert BACKEND.complete(config, tmp_path, 1) is config
    instance = BACKEND.load(spec_of(config, tmp_path))
    x = np.ones((2, 3), np.float32)
    outputs = instance.execute(batch_of({"x": x}, outputs=["y"], batched=False))
    assert isinstance(outputs, dict)
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], x @ weight)
    everything = instance.execute(batch_of({"x": x}, batched=False))
    assert isinstance(everything, dict)
    assert list(everything) == ["y", "total"]


def test_unaligned_views_of_a_message_are_accepted(tmp_path: Path) -> None:
    weight = save_linear(tmp_path)
    config = config_of(
        "onnxruntime", inputs=[tensor("x", "FP32", -1, 3)], outputs=[tensor("y", "FP32", -1, 2)]
    )
    message = b"\0" + np.ones((2, 3), np.float32).tobytes()
    batch = batch_of({"x": np.ones((2, 3), np.float32)}, batched=False)
    unaligned = np.frombuffer(memoryview(message)[1:], np.float32).reshape(2, 3)
    assert not unaligned.flags.aligned
    batch.members[0].inputs = {"x": unaligned}
    outputs = BACKEND.load(spec_of(config, tmp_path)).execute(batch)
    assert isinstance(outputs, dict)
    np.testing.assert_allclose(outputs["y"], np.ones((2, 3)) @ weight)


def test_text_that_is_not_utf8_fails_its_own_request_only(tmp_path: Path) -> None:
    save_identity(tmp_path, "BYTES")
    config = BACKEND.complete(config_of("onnxruntime"), tmp_path, 1)
    instance = BACKEND.load(spec_of(config, tmp_path))
    good = np.array([[b"a", b"b"], [b"c", b"d"]], dtype=object)
    bad = np.array([[b"ok", b"\xff"]], dtype=object)
    answers = instance.execute(batch_of({"x": good}, {"x": bad}, {"x": good[:1]}))
    assert not isinstance(answers, dict)
    first, second, third = answers
    assert first["y"].tolist() == good.tolist()  # type: ignore[index]
    assert isinstance(second, InvalidRequest)
    assert "input 'x': element 1 is not UTF-8" in second.message
    assert third["y"].tolist() == [[b"a", b"b"]]  # type: ignore[index]
    with pytest.raises(InvalidRequest, match="element 1 is not UTF-8"):
        instance.execute(batch_of({"x": bad}))


def test_shapes_the_model_does_not_take_are_the_requests_fault(tmp_path: Path) -> None:
    save_linear(tmp_path)
    config = config_of(
        "onnxruntime", inputs=[tensor("x", "FP32", -1, 3)], outputs=[tensor("y", "FP32", -1, 2)]
    )
    instance = BACKEND.load(spec_of(config, tmp_path))
    with pytest.raises(InvalidRequest, match="does not accept these inputs"):
        instance.execute(batch_of({"x": np.ones((2, 4), np.float32)}, batched=False))


@pytest.mark.parametrize(
    ("shape", "rows", "dims"),
    [(["rows", 2], 4, (2,)), ([None, "n"], 4, (-1,)), ([3, 2], 0, (3, 2)), (["rows", 2, 5], 4, (2, 5))],
)
def test_the_batch_dimension_is_found(
    tmp_path: Path, shape: list[Any], rows: int, dims: tuple[int, ...]
) -> None:
    save_identity(tmp_path, "FP32", shape)
    config = BACKEND.complete(config_of("onnxruntime"), tmp_path, 1)
    assert config.max_batch_size == rows
    assert config.inputs == (tensor("x", "FP32", *dims),)


def test_a_configuration_that_fits_is_kept(tmp_path: Path) -> None:
    save_identity(tmp_path, "FP32", ["rows", "n"])
    config = config_of(
        "onnxruntime", inputs=[tensor("x", "FP32", 7)], outputs=[tensor("y", "FP32", 7)], max_batch_size=32
    )
    assert BACKEND.complete(config, tmp_path, 1) is config
    reshaped = config_of("onnxruntime", inputs=[tensor("x", "FP32", 7, 1, reshape=(7,))], max_batch_size=32)
    assert BACKEND.complete(reshaped, tmp_path, 1).inputs == reshaped.inputs
    whole = config_of(
        "onnxruntime", inputs=[tensor("x", "FP32", -1, 7)], outputs=[tensor("y", "FP32", -1, 7)]
    )
    assert BACKEND.complete(whole, tmp_path, 1).max_batch_size == 0


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        (
            [3, 2],
            {"max_batch_size": 8},
            r"max_batch_size: found 8; expected 0, because tensor 'x' of model/1",
        ),
        (
            ["r", 2],
            {"inputs": [tensor("z", "FP32", 2)], "max_batch_size": 8},
            r"found tensor 'z'; expected .*'x'",
        ),
        (
            ["r", 2],
            {"inputs": [tensor("x", "INT64", 2)], "max_batch_size": 8},
            r"input 'x': data_type: found INT64; expected FP32 as in model/1/model.onnx",
        ),
        (
            ["r", 2],
            {"inputs": [tensor("x", "FP32", 3)], "max_batch_size": 8},
            r"input 'x': dims: found \[3\]; expected \[2\] .* without the batch dimension",
        ),
        (
            ["r", 2],
            {"inputs": [tensor("x", "FP32", -1)], "max_batch_size": 8},
            r"dims: found \[-1\]; expected \[2\]",
        ),
        (
            ["r", 2],
            {"outputs": [tensor("y", "FP32", 2)]},
            r"output 'y': dims: found \[2\]; .*set max_batch_size",
        ),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_refused(
    tmp_path: Path, shape: list[Any], given: dict[str, Any], message: str
) -> None:
    save_identity(tmp_path, "FP32", shape)
    with pytest.raises(ConfigError, match=message):
        BACKEND.complete(config_of("onnxruntime", **given), tmp_path, 1)


def test_all_inputs_of_the_file_must_be_configured(tmp_path: Path) -> None:
    save(
        tmp_path,
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [("a", TensorProto.FLOAT, ["r", 2]), ("b", TensorProto.FLOAT, ["r", 2])],
        [("y", TensorProto.FLOAT, ["r", 2])],
    )
    config = config_of("onnxruntime", inputs=[tensor("a", "FP32", 2)], max_batch_size=8)
    with pytest.raises(ConfigError, match=r"input: missing 'b'; expected all inputs of model/1/model\.onnx"):
        BACKEND.complete(config, tmp_path, 1)


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    config = config_of("onnxruntime")
    (tmp_path / "1").mkdir()
    with pytest.raises(ConfigError, match=r"no model file; expected model\.onnx"):
        BACKEND.complete(config, tmp_path, 1)
    (tmp_path / "1" / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"model/1/model\.onnx: ONNX Runtime .* cannot load it"):
        BACKEND.complete(config, tmp_path, 1)


def test_types_outside_the_protocol_are_refused(tmp_path: Path) -> None:
    save(
        tmp_path,
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        [("x", TensorProto.FLOAT8E4M3FN, [1])],
        [("y", TensorProto.FLOAT, [1])],
    )
    with pytest.raises(ConfigError, match=r"tensor 'x': found type tensor\(float8e4m3fn\)"):
        BACKEND.complete(config_of("onnxruntime"), tmp_path, 1)


def test_a_model_may_be_a_directory_with_its_weights(tmp_path: Path) -> None:
    save_identity(tmp_path, "FP32")
    file = tmp_path / "1" / "model.onnx"
    data = file.read_bytes()
    file.unlink()
    file.mkdir()
    (file / "model.onnx").write_bytes(data)
    assert BACKEND.complete(config_of("onnxruntime"), tmp_path, 1).inputs == (tensor("x", "FP32", 2),)


def test_parameters_reach_the_session() -> None:
    ort = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    config = config_of(
        "onnxruntime",
        parameters={
            "intra_op_thread_count": "3",
            "inter_op_thread_count": "2",
            "execution_mode": "1",
            "enable_mem_arena": "0",
            "session.set_denormal_as_zero": "1",
            "session.intra_op.allow_spinning": "1",
        },
        text={"optimization": {"graph": {"level": 1}}},
    )
    options = session_options(ort, config)
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 2
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.enable_cpu_mem_arena is False
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    defaults = session_options(ort, config_of("onnxruntime"))
    assert defaults.intra_op_num_threads == threads_per_instance(config_of("onnxruntime"))
    assert defaults.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"parameters": {"intra_op_thread_count": "many"}},
            "intra_op_thread_count: found 'many'; expected an integer",
        ),
        ({"parameters": {"execution_mode": "2"}}, "execution_mode: found '2'"),
        ({"parameters": {"enable_mem_arena": "perhaps"}}, "enable_mem_arena: found 'perhaps'"),
        ({"text": {"optimization": {"graph": {"level": 7}}}}, "graph.level: found 7"),
    ],
)
def test_wrong_parameters_are_refused(given: dict[str, Any], message: str) -> None:
    ort = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    with pytest.raises(ConfigError, match=message):
        session_options(ort, config_of("onnxruntime", **given))


ALL_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")


def accelerators(kind: str, **named: dict[str, str]) -> dict[str, Any]:
    items = [{"name": name, "parameters": parameters} for name, parameters in named.items()]
    return {"optimization": {"execution_accelerators": {f"{kind}_execution_accelerator": items}}}


def test_providers_follow_kind_and_accelerators(tmp_path: Path) -> None:
    plain = config_of("onnxruntime", parameters={"arena_extend_strategy": "1"})
    assert providers(spec_of(plain, tmp_path), ALL_PROVIDERS) == [("CPUExecutionProvider", {})]
    assert providers(spec_of(plain, tmp_path, kind="GPU"), ALL_PROVIDERS) == [
        ("CUDAExecutionProvider", {"device_id": "0", "arena_extend_strategy": "kSameAsRequested"}),
        ("CPUExecutionProvider", {}),
    ]
    tensorrt = {"precision_mode": "FP16", "max_workspace_size_bytes": "1024", "trt_engine_cache_enable": "1"}
    config = config_of("onnxruntime", text=accelerators("gpu", tensorrt=tensorrt, cuda={"use_tf32": "0"}))
    assert providers(spec_of(config, tmp_path, kind="GPU"), ALL_PROVIDERS) == [
        (
            "TensorrtExecutionProvider",
            {
                "device_id": "0",
                "trt_fp16_enable": "True",
                "trt_max_workspace_size": "1024",
                "trt_engine_cache_enable": "True",
            },
        ),
        ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"}),
        ("CPUExecutionProvider", {}),
    ]


def test_providers_that_are_not_installed_are_told(tmp_path: Path) -> None:
    gpu = spec_of(config_of("onnxruntime"), tmp_path, kind="GPU")
    with pytest.raises(BackendUnavailable, match=r"has no CUDAExecutionProvider .*qinfer\[gpu\]"):
        providers(gpu, ["CPUExecutionProvider"])
    config = config_of("onnxruntime", text=accelerators("cpu", openvino={}))
    with pytest.raises(BackendUnavailable, match="has no OpenVINOExecutionProvider"):
        providers(spec_of(config, tmp_path), ["CPUExecutionProvider"])
    config = config_of("onnxruntime", text=accelerators("gpu", magic={}))
    with pytest.raises(
        ConfigError, match=r"gpu_execution_accelerator: found 'magic'; expected one of tensorrt, cuda"
    ):
        providers(spec_of(config, tmp_path, kind="GPU"), ALL_PROVIDERS)


def test_a_batch_size_of_zero_that_is_written_down_is_respected(tmp_path: Path) -> None:
    save_identity(tmp_path, "FP32", ["rows", 2])
    config = BACKEND.complete(config_of("onnxruntime", max_batch_size=0), tmp_path, 1)
    assert config.max_batch_size == 0
    assert config.inputs == (tensor("x", "FP32", -1, 2),)


def test_rows_of_single_numbers_are_reshaped_for_the_model(tmp_path: Path) -> None:
    save_identity(tmp_path, "FP32", ["rows"])
    config = BACKEND.complete(config_of("onnxruntime"), tmp_path, 1)
    assert config.inputs == (tensor("x", "FP32", 1, reshape=()),)
    outputs = BACKEND.load(spec_of(config, tmp_path)).execute(batch_of({"x": np.ones((3, 1), np.float32)}))
    assert isinstance(outputs, dict)
    assert outputs["y"].shape == (3, 1)


def test_scalar_inputs_and_outputs_of_unknown_shape(tmp_path: Path) -> None:
    save(
        tmp_path,
        [helper.make_node("Mul", ["x", "by"], ["y"])],
        [("x", TensorProto.FLOAT, None), ("by", TensorProto.FLOAT, [])],
        [("y", TensorProto.FLOAT, None)],
    )
    with pytest.raises(ConfigError, match=r"output: 'y' is missing; expected its data_type and dims"):
        BACKEND.complete(config_of("onnxruntime"), tmp_path, 1)
    given = config_of("onnxruntime", outputs=[tensor("y", "FP32", 1)])
    config = BACKEND.complete(given, tmp_path, 1)
    assert config.max_batch_size == 0
    assert config.inputs == (tensor("x", "FP32", 1, reshape=()), tensor("by", "FP32", 1, reshape=()))
    two = np.full(1, 2, np.float32)
    inputs = {"x": two, "by": two}
    config = BACKEND.complete(
        config_of("onnxruntime", outputs=[tensor("y", "FP32", 1, reshape=())]), tmp_path, 1
    )
    outputs = BACKEND.load(spec_of(config, tmp_path)).execute(batch_of(inputs, batched=False))
    assert isinstance(outputs, dict)
    assert outputs["y"].tolist() == [4]
