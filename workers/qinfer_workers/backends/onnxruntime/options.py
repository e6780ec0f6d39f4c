"""From a model's configuration to ONNX Runtime's options, under Triton's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qinfer.errors import BackendUnavailable
from qinfer.proto import ModelConfig as ModelConfigMessage
from qinfer.repository import ModelConfig
from qinfer_workers.backends.base import InstanceSpec
from qinfer_workers.backends.parameters import boolean, complain, integer
from qinfer_workers.backends.threads import threads_per_instance

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

_GPU_ACCELERATORS = {"tensorrt": TENSORRT_PROVIDER, "cuda": CUDA_PROVIDER}
_CPU_ACCELERATORS = {"openvino": "OpenVINOExecutionProvider", "dnnl": "DnnlExecutionProvider"}

_SESSION_ENTRIES = ("session.", "optimization.", "mlas.")
_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_SPINNING = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")

_TENSORRT_NAMES = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_TENSORRT_FLAGS = (
    "trt_int8_use_native_calibration_table",
    "trt_dump_subgraphs",
    "trt_layer_norm_fp32_fallback",
)
_PRECISIONS = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "True"},
    "INT8": {"trt_int8_enable": "True"},
}
_CUDA_PARAMETERS = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "gpu_mem_limit": {},
    "do_copy_in_default_stream": {},
}


def session_options(ort: Any, config: ModelConfig) -> Any:
    """Options of the instance's session.

    Threads default to the instance's share of the CPUs, and idle ones sleep instead of spinning: an ONNX
    Runtime thread that spins takes about a millisecond of CPU after every batch from whoever else is there.

    Raises:
        ConfigError: a parameter has a wrong value.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = integer(config, "intra_op_thread_count", threads_per_instance(config))
    mode = config.parameters.get("execution_mode", "0")
    if mode not in ("0", "1"):
        raise complain(
            config, "parameters.execution_mode", f"found {mode!r}", "0 (sequential) or 1 (parallel)"
        )
    if mode == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.inter_op_num_threads = integer(config, "inter_op_thread_count", threads_per_instance(config))
    options.enable_cpu_mem_arena = boolean(config, "enable_mem_arena", default=True)
    options.enable_mem_pattern = boolean(config, "enable_mem_pattern", default=mode == "0")
    options.graph_optimization_level = _graph_level(ort, config)
    for key in _SPINNING:
        options.add_session_config_entry(key, "0")
    for key, value in config.parameters.items():
        if key.startswith(_SESSION_ENTRIES):
            options.add_session_config_entry(key, value)
    return options


def run_options(ort: Any, spec: InstanceSpec) -> Any | None:
    """Options of every run; None when the model asks for none, which is quicker."""
    devices = spec.config.parameters.get(_SHRINKAGE)
    if not devices:
        return None
    options = ort.RunOptions()
    # "1" is Triton's spelling for the device the instance is on; ONNX Runtime wants the device's name.
    if devices == "1":
        devices = f"gpu:{spec.device}" if spec.kind == "GPU" else "cpu:0"
    options.add_run_config_entry(_SHRINKAGE, devices)
    return options


def providers(spec: InstanceSpec, available: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Execution providers of an instance with their options, the preferred first; the CPU is always the last.

    A GPU instance gets CUDA. TensorRT goes before it only where the configuration names it as an
    accelerator, as in Triton: building its engines takes minutes, which nobody wants by surprise.

    Raises:
        BackendUnavailable: a wanted provider is not in the installed library.
        ConfigError: an accelerator or one of its parameters is unknown.
    """
    config = spec.config
    accelerators = _optimization(config).execution_accelerators
    chosen: dict[str, dict[str, str]] = {}
    if spec.kind == "GPU":
        wanted = accelerators.gpu_execution_accelerator
        named = {item.name: dict(item.parameters) for item in wanted}
        _known(config, "gpu", named, _GPU_ACCELERATORS)
        device = {"device_id": str(spec.device)}
        if "tensorrt" in named:
            chosen[TENSORRT_PROVIDER] = device | _tensorrt(config, named["tensorrt"])
        chosen[CUDA_PROVIDER] = device | _cuda(config) | named.get("cuda", {})
    else:
        wanted = accelerators.cpu_execution_accelerator
        named = {item.name: dict(item.parameters) for item in wanted}
        _known(config, "cpu", named, _CPU_ACCELERATORS)
        for name, parameters in named.items():
            chosen[_CPU_ACCELERATORS[name]] = parameters
    chosen[CPU_PROVIDER] = {}
    missing = [name for name in chosen if name not in available]
    if missing:
        extra = "pip install 'qinfer[gpu]'" if spec.kind == "GPU" else "a build of onnxruntime that has it"
        raise BackendUnavailable(
            f"{spec.name}: the installed onnxruntime has no {', '.join(missing)} (it has"
            f" {', '.join(available)});"
            f" expected {extra}"
        )
    return list(chosen.items())


def _optimization(config: ModelConfig) -> Any:
    return ModelConfigMessage.FromString(config.proto).optimization


def _graph_level(ort: Any, config: ModelConfig) -> Any:
    levels = ort.GraphOptimizationLevel
    by_level = {
        0: levels.ORT_ENABLE_ALL,
        -1: levels.ORT_ENABLE_BASIC,
        1: levels.ORT_ENABLE_EXTENDED,
        2: levels.ORT_DISABLE_ALL,
    }
    level = _optimization(config).graph.level
    if level not in by_level:
        raise complain(
            config,
            "optimization.graph.level",
            f"found {level}",
            "-1 (basic), 0 (all), 1 (extended) or 2 (none)",
        )
    return by_level[level]


def _known(config: ModelConfig, kind: str, named: Mapping[str, object], known: Mapping[str, str]) -> None:
    for name in named:
        if name not in known:
            field = f"optimization.execution_accelerators.{kind}_execution_accelerator"
            raise complain(config, field, f"found {name!r}", f"one of {', '.join(known)}")


def _tensorrt(config: ModelConfig, parameters: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in parameters.items():
        if key == "precision_mode":
            if value not in _PRECISIONS:
                raise complain(config, "tensorrt precision_mode", f"found {value!r}", "FP32, FP16 or INT8")
            options.update(_PRECISIONS[value])
            continue
        name = _TENSORRT_NAMES.get(key, key)
        if name.endswith("_enable") or name in _TENSORRT_FLAGS:
            # Triton's configurations say 1 or true; ONNX Runtime understands only True and False here.
            value = "True" if value.lower() in ("1", "true") else "False"
        options[name] = value
    return options


def _cuda(config: ModelConfig) -> dict[str, str]:
    """CUDA options given as model parameters, Triton's older way."""
    options = {}
    for key, names in _CUDA_PARAMETERS.items():
        value = config.parameters.get(key)
        if value is not None:
            options[key] = names.get(value, value)
    return options
