"""The Python backend on `model.py` files as they are written for Triton."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.support import batch_of, config_of, spec_of, tensor

from qinfer.errors import (
    Cancelled,
    ConfigError,
    InvalidRequest,
    ModelFailed,
    NotFound,
    QInferError,
    Unavailable,
    Unsupported,
)
from qinfer_workers.backends.base import OutputsWithParameters
from qinfer_workers.backends.python import PythonBackend

BACKEND = PythonBackend()
X = np.arange(6, dtype=np.float32).reshape(2, 3)
SIGNATURE: dict[str, Any] = {
    "inputs": [tensor("x", "FP32", 3)],
    "outputs": [tensor("y", "FP32", 3)],
    "max_batch_size": 8,
}

HEAD = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils
"""


def write(directory: Path, text: str, **helpers: str) -> Path:
    version = directory / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(HEAD + textwrap.dedent(text))
    for name, source in helpers.items():
        (version / f"{name}.py").write_text(textwrap.dedent(source))
    return directory


def load(directory: Path, source: str, *, helpers: Mapping[str, str] | None = None, **more: Any) -> Any:
    write(directory, source, **(helpers or {}))
    return BACKEND.load(spec_of(config_of("python", **(SIGNATURE | more)), directory))


def execute_body(body: str) -> str:
    """A model whose `execute` makes one response for each request `r` by `body`."""
    lines = textwrap.indent(textwrap.dedent(body), " " * 12)
    return f"""
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for r in requests:
            x = pb_utils.get_input_tensor_by_name(r, "x").as_numpy()
{lines}
        return responses
"""


def answer(directory: Path, body: str, **tells: Any) -> Any:
    """What one request gets from a model of that body."""
    instance = load(directory, execute_body(body))
    try:
        (only,) = instance.execute(batch_of({"x": X}, **tells))
    finally:
        instance.close()
    return only


DOUBLE = "responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor('y', x * 2)]))"


def test_each_request_gets_its_own_answer(tmp_path: Path) -> None:
    instance = load(tmp_path, execute_body(DOUBLE))
    first, second = instance.execute(batch_of({"x": X}, {"x": X[:1] + 1}))
    np.testing.assert_array_equal(first["y"], X * 2)
    np.testing.assert_array_equal(second["y"], (X[:1] + 1) * 2)


def test_initialize_is_told_what_triton_tells(tmp_path: Path) -> None:
    instance = load(
        tmp_path,
        """
        class TritonPythonModel:
            def initialize(self, args):
                self.args = args

            def execute(self, requests):
                text = json.dumps(self.args)
                return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([[text]], dtype=object))])]
        """,
        outputs=[tensor("y", "BYTES", 1)],
        parameters={"threshold": "0.5"},
        text={"dynamic_batching": {"max_queue_delay_microseconds": 100}, "instance_group": [{"count": 2}]},
    )
    (only,) = instance.execute(batch_of({"x": X[:1]}))
    args = json.loads(only["y"][0, 0])
    assert {key for key, value in args.items() if not isinstance(value, str)} == set()
    config = json.loads(args.pop("model_config"))
    assert args == {
        "model_instance_kind": "CPU",
        "model_instance_name": "model_0",
        "model_instance_device_id": "0",
        "model_repository": str(tmp_path),
        "model_version": "1",
        "model_name": "model",
    }
    assert config["max_batch_size"] == 8
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][0]["dims"] == [3]
    assert config["input"][0]["optional"] is False
    assert config["output"][0]["data_type"] == "TYPE_STRING"
    assert config["parameters"] == {"threshold": {"string_value": "0.5"}}
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 100


def test_a_model_may_write_into_its_inputs(tmp_path: Path) -> None:
    body = "x += 1\nresponses.append(pb_utils.InferenceResponse([pb_utils.Tensor('y', x)]))"
    instance = load(tmp_path, execute_body(body))
    batch = batch_of({"x": X})
    for _ in range(2):
        (only,) = instance.execute(batch)
        np.testing.assert_array_equal(only["y"], X + 1)
    np.testing.assert_array_equal(batch.members[0].inputs["x"], X)


def test_read_only_inputs_are_not_copied(tmp_path: Path) -> None:
    body = "responses.append(pb_utils.InferenceResponse([pb_utils.Tensor('y', x)]))"
    instance = load(tmp_path, execute_body(body), parameters={"READ_ONLY_INPUTS": "true"})
    batch = batch_of({"x": X})
    (only,) = instance.execute(batch)
    assert np.shares_memory(only["y"], batch.members[0].inputs["x"])


def test_requests_tell_what_triton_requests_tell(tmp_path: Path) -> None:
    body = """
    told = [r.request_id(), r.correlation_id(), r.flags(), r.model_name(), r.model_version(), r.priority(),
            json.loads(r.parameters()), r.requested_output_names(), r.is_cancelled(), r.timeout() > 0,
            [t.name() for t in r.inputs()], r.inputs()[0].is_cpu(), r.inputs()[0].triton_dtype()]
    responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(json.dumps(told))))
    """
    parameters = {"sequence_id": 7, "sequence_start": True, "custom": "value"}
    error = answer(
        tmp_path,
        body,
        request_id="abc",
        parameters=parameters,
        priority=3,
        deadline_us=1,
        outputs=["y"],
        cancelled=True,
    )
    assert json.loads(error.message) == [
        "abc", 7, 1, "model", 1, 3, parameters, ["y"], True, True, ["x"], True, 11,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INTERNAL", ModelFailed),
        ("UNKNOWN", ModelFailed),
        ("NOT_FOUND", NotFound),
        ("INVALID_ARG", InvalidRequest),
        ("UNAVAILABLE", Unavailable),
        ("UNSUPPORTED", Unsupported),
        ("ALREADY_EXISTS", InvalidRequest),
        ("CANCELLED", Cancelled),
    ],
)
def test_error_codes_become_errors(tmp_path: Path, code: str, kind: type[QInferError]) -> None:
    body = f"""
    error = pb_utils.TritonError("why not", pb_utils.TritonError.{code})
    responses.append(pb_utils.InferenceResponse(output_tensors=[], error=error))
    """
    error = answer(tmp_path, body)
    assert type(error) is kind
    assert error.message == "why not"


def test_an_error_for_one_request_spares_the_others(tmp_path: Path) -> None:
    body = """
    if x[0, 0] == 0:
        responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("zero")))
    else:
        responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
    """
    instance = load(tmp_path, execute_body(body))
    bad, good = instance.execute(batch_of({"x": X}, {"x": X + 1}))
    assert isinstance(bad, ModelFailed)
    np.testing.assert_array_equal(good["y"], X + 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("responses.append(None)", "returned NoneType for a request; expected InferenceResponse"),
        (
            "responses.append(pb_utils.InferenceResponse([]))",
            r"output 'y' is missing .*; expected FP32 \[3\]",
        ),
        (
            "responses.append(pb_utils.InferenceResponse([pb_utils.Tensor('y', x.astype('f8'))]))",
            "output 'y': data_type: found FP64; expected FP32",
        ),
        (
            "responses.append(pb_utils.InferenceResponse([pb_utils.Tensor('y', x[:1])]))",
            r"output 'y': shape: found \[1, 3\]; expected \[2, 3\] \(rows first\)",
        ),
        (
            "responses.append(pb_utils.InferenceResponse([pb_utils.Tensor('y', x.reshape(-1))]))",
            r"shape: found \[6\]; expected \[2, 3\]",
        ),
    ],
)
def test_a_wrong_response_is_that_requests_error(tmp_path: Path, body: str, message: str) -> None:
    error = answer(tmp_path, body)
    assert isinstance(error, ModelFailed)
    with pytest.raises(ModelFailed, match=message):
        raise error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "execute returned 0 of them; expected a list of 1 InferenceResponse"),
        ("return None", "execute returned None; expected a list of 1"),
        ("raise KeyError('weights')", r"execute raised KeyError: 'weights' \(model\.py:\d+\)"),
        ("raise pb_utils.TritonModelException('no')", "execute raised TritonModelException: no"),
        ("raise SystemExit(3)", "execute raised SystemExit: 3"),
        ("pb_utils.Tensor('y', [1, 2])", "tensor 'y': found list; expected a numpy array"),
        ("pb_utils.Tensor('y', np.array([1j]))", "tensor 'y': numpy dtype complex128"),
        ("pb_utils.InferenceResponse(['y'])", "output_tensors: found str; expected pb_utils.Tensor"),
    ],
)
def test_a_failing_execute_is_told_with_its_cause(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(ModelFailed, match=f"model/1/model.py: {message}|{message}"):
        answer(tmp_path, body)


@pytest.mark.parametrize(
    "body", ["r.get_response_sender()", "pb_utils.InferenceRequest(model_name='other', inputs=[])"]
)
def test_what_is_not_there_yet_is_unsupported(tmp_path: Path, body: str) -> None:
    with pytest.raises(Unsupported):
        answer(tmp_path, body)


def test_only_wanted_outputs_are_returned_and_strings_become_bytes(tmp_path: Path) -> None:
    body = """
    text = np.array([["é", 1, b"raw"]], dtype=object)
    responses.append(pb_utils.InferenceResponse(
        [pb_utils.Tensor("text", text), pb_utils.Tensor("y", x), pb_utils.Tensor("extra", x)],
        parameters={"score": 0.5, "label": "cat"},
    ))
    """
    outputs = [tensor("y", "FP32", 3), tensor("text", "BYTES", 3)]
    instance = load(tmp_path, execute_body(body), outputs=outputs)
    (everything,) = instance.execute(batch_of({"x": X[:1]}))
    assert isinstance(everything, OutputsWithParameters)
    assert sorted(everything) == ["text", "y"]
    assert everything["text"].tolist() == [["é".encode(), b"1", b"raw"]]
    assert everything.parameters == {"score": 0.5, "label": "cat"}
    (wanted,) = instance.execute(batch_of({"x": X[:1]}, outputs=["text"]))
    assert list(wanted) == ["text"]


def test_string_inputs_are_objects_of_bytes(tmp_path: Path) -> None:
    body = """
    upper = np.array([[element.decode().upper() for element in row] for row in x], dtype=object)
    responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", upper)]))
    """
    instance = load(
        tmp_path, execute_body(body), inputs=[tensor("x", "BYTES", 2)], outputs=[tensor("y", "BYTES", 2)]
    )
    (only,) = instance.execute(batch_of({"x": np.array([[b"a", "é".encode()]], dtype=object)}))
    assert only["y"].tolist() == [[b"A", "É".encode()]]


def test_a_model_without_batch_dimension(tmp_path: Path) -> None:
    instance = load(tmp_path, execute_body(DOUBLE), max_batch_size=0)
    (only,) = instance.execute(batch_of({"x": X[0]}, batched=False))
    np.testing.assert_array_equal(only["y"], X[0] * 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_library",
            r"importing it raised ModuleNotFoundError: .*no_such_library.*\(model\.py:\d+\)",
        ),
        ("raise SystemExit('stop')", "importing it raised SystemExit: stop"),
        ("class Other: pass", "found no class TritonPythonModel with a method execute"),
        ("class TritonPythonModel: pass", "found no class TritonPythonModel with a method execute"),
        (
            "class TritonPythonModel:\n    execute = print\n    def initialize(self, args): 1 / 0",
            r"initialize of model_0 raised ZeroDivisionError: division by zero \(model\.py:\d+\)",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded_is_told_with_its_cause(
    tmp_path: Path, text: str, message: str
) -> None:
    modules = set(sys.modules)
    with pytest.raises(ConfigError, match=f"model/1/model.py: {message}"):
        load(tmp_path, text)
    assert {name for name in set(sys.modules) - modules if name.startswith("qinfer_model_")} == set()


def test_what_the_backend_cannot_do_is_told_when_loading(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"EXECUTION_ENV_PATH: found 'env\.tar\.gz'"):
        load(tmp_path, execute_body(DOUBLE), parameters={"EXECUTION_ENV_PATH": "env.tar.gz"})
    with pytest.raises(ConfigError, match=r"no model file; expected model\.py"):
        BACKEND.load(spec_of(config_of("python"), tmp_path / "nowhere"))


def test_finalize_is_called_and_may_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = """
    class TritonPythonModel:
        def execute(self, requests): return []
        def finalize(self):
            raise OSError("cannot save")
    """
    instance = load(tmp_path, text)
    with caplog.at_level(logging.ERROR):
        instance.close()
    assert "model/1/model.py: finalize raised" in caplog.text
    assert "cannot save" in caplog.text


HELPED = """
import helper
from helper import value as imported
from tools.shape import sides
from . import helper as relative


class TritonPythonModel:
    def execute(self, requests):
        import late  # only now
        assert relative is helper and imported == helper.value
        values = np.full((1, 3), [helper.value, late.value, sides], np.float32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", values)]) for _ in requests]
"""


def helped(directory: Path, value: int) -> Any:
    tools = directory / "1" / "tools"
    tools.mkdir(parents=True)
    (tools / "__init__.py").write_text("from helper import value\n")
    (tools / "shape.py").write_text(
        f"from tools import value\nfrom . import value as own\nsides = own + {value}\n"
    )
    (directory / "late.py").write_text("import helper\nvalue = helper.value * 10\n")
    return load(directory, HELPED, helpers={"helper": f"value = {value}"})


def test_helper_modules_of_models_do_not_meet(tmp_path: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    instances = [helped(tmp_path / str(value), value) for value in (1, 2)]
    for value, instance in zip((1, 2), instances, strict=True):
        (only,) = instance.execute(batch_of({"x": X[:1]}))
        assert only["y"].tolist() == [[value, value * 10, value * 2]]
    assert sys.path == path
    assert not {"helper", "late", "tools", "model"} & set(sys.modules)
    for instance in instances:
        instance.close()
    assert {name for name in set(sys.modules) - modules if name.startswith("qinfer_model_")} == set()


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    for value in (1, 2):
        body = f"responses.append(pb_utils.InferenceResponse([pb_utils.Tensor('y', x * 0 + {value})]))"
        outputs = answer(tmp_path, body)
        assert (outputs["y"] == value).all()
    assert not (tmp_path / "1" / "__pycache__").exists()


def test_pickles_find_the_classes_of_the_model_that_opens_them(tmp_path: Path) -> None:
    text = """
    import os
    import pickle

    class TritonPythonModel:
        def initialize(self, args):
            path = os.path.join(args["model_repository"], args["model_version"], "scaler.pkl")
            with open(path, "rb") as file:
                self.scaler = pickle.load(file)

        def execute(self, requests):
            from scaling import Scaler
            assert isinstance(self.scaler, Scaler)
            x = requests[0].inputs()[0].as_numpy()
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", self.scaler.scale(x))])]
    """
    for factor in (2, 3):
        directory = tmp_path / str(factor)
        source = f"class Scaler:\n    def scale(self, x): return x * {factor}\n"
        write(directory, text, scaling=source)
        # As `pickle.dumps(Scaler())` writes it where the class is imported as scaling.Scaler.
        (directory / "1" / "scaler.pkl").write_bytes(b"\x80\x04cscaling\nScaler\n)\x81.")
        instance = BACKEND.load(spec_of(config_of("python", **SIGNATURE), directory))
        (only,) = instance.execute(batch_of({"x": X}))
        np.testing.assert_array_equal(only["y"], X * factor)
    with pytest.raises((AttributeError, pickle.UnpicklingError, ImportError)):
        pickle.loads(b"\x80\x04cscaling\nScaler\n)\x81.")


def test_the_log_names_the_model_and_its_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = """
    pb_utils.Logger.log_warn("careful")
    pb_utils.Logger.log("told", pb_utils.Logger.INFO)
    responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
    """
    with caplog.at_level(logging.DEBUG, logger="qinfer.model.model"):
        answer(tmp_path, body)
    records = [
        (r.name, r.levelname, r.getMessage(), r.filename) for r in caplog.records if "qinfer.model" in r.name
    ]
    assert records == [
        ("qinfer.model.model", "WARNING", "careful", "model.py"),
        ("qinfer.model.model", "INFO", "told", "model.py"),
    ]


COMPLETING = """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({{"name": "x", "data_type": "TYPE_STRING", "dims": [-1], "optional": False}})
        config.add_output({{"name": "y", "data_type": "TYPE_BF16", "dims": [2, 2]}})
        config.set_max_batch_size({rows})
        config.set_dynamic_batching()
        return config

    def execute(self, requests): return []
"""


def test_a_model_completes_its_configuration(tmp_path: Path) -> None:
    write(tmp_path, COMPLETING.format(rows=16))
    config = BACKEND.complete(config_of("python"), tmp_path, 1)
    assert config.inputs == (tensor("x", "BYTES", -1),)
    assert config.outputs == (tensor("y", "BF16", 2, 2),)
    assert config.max_batch_size == 16
    assert config.dynamic_batching is not None


def test_a_model_that_contradicts_its_configuration_is_refused(tmp_path: Path) -> None:
    write(tmp_path, COMPLETING.format(rows=16))
    for given, message in (
        ({"max_batch_size": 32}, "max_batch_size: found 32; expected at most 16"),
        ({"inputs": [tensor("x", "FP32", 3)]}, "input 'x': data_type: found TYPE_FP32; expected TYPE_STRING"),
        ({"text": {"sequence_batching": {}}}, "sequence_batching: found; expected dynamic_batching"),
    ):
        with pytest.raises(
            ConfigError, match=f"auto_complete_config raised ValueError: model/config: {message}"
        ):
            BACKEND.complete(config_of("python", **given), tmp_path, 1)
    write(tmp_path, execute_body(DOUBLE))
    config = config_of("python")
    assert BACKEND.complete(config, tmp_path, 1) is config


def test_the_worst_answers_of_auto_complete_config(tmp_path: Path) -> None:
    template = """
    class TritonPythonModel:
        @staticmethod
        def auto_complete_config(config):
            {line}
        def execute(self, requests): return []
    """
    lines: Sequence[tuple[str, str]] = (
        ("return None", "returned NoneType; expected the ModelConfig it was given"),
        ("config.add_input({'name': 'x'})", "input 'x': data_type is missing"),
        ("config.add_output({'name': 'y', 'shape': [1]})", "output: found property 'shape'"),
        (
            "config.add_input({'name': 'x', 'data_type': 'FLOAT', 'dims': [1]}); return config",
            "gives data_type 'FLOAT'; expected one of TYPE_FP32",
        ),
    )
    for line, message in lines:
        write(tmp_path, template.format(line=line))
        with pytest.raises(ConfigError, match=message):
            BACKEND.complete(config_of("python"), tmp_path, 1)
