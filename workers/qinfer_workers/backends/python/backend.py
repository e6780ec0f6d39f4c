"""Loads `model.py` files written for Triton's Python backend, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from qinfer.datatypes import DATATYPES
from qinfer.errors import ConfigError, QInferError, Unsupported
from qinfer.proto import ModelConfig as ModelConfigMessage
from qinfer.repository import DynamicBatching, ModelConfig, TensorSpec
from qinfer.repository.config import complete
from qinfer_workers.backends.base import Instance, InstanceSpec, StreamingInstance
from qinfer_workers.backends.files import model_file, short_name
from qinfer_workers.backends.parameters import boolean, complain, where
from qinfer_workers.backends.python import triton
from qinfer_workers.backends.python.arguments import config_tree, initialize_arguments
from qinfer_workers.backends.python.decoupled import DecoupledInstance
from qinfer_workers.backends.python.failures import describe
from qinfer_workers.backends.python.instance import PythonInstance
from qinfer_workers.backends.python.scope import Scope
from qinfer_workers.backends.reshape import reshaping, reshaping_streams

CLASS = "TritonPythonModel"


class PythonBackend:
    """Models in Python, in the worker's process: each instance has a thread and modules of its own."""

    name: ClassVar[str] = "python"
    filename: ClassVar[str] = "model.py"
    streams: ClassVar[bool] = True

    def check(self) -> None:
        """See `Backend.check`. Nothing beyond qinfer itself is needed."""

    def complete(self, config: ModelConfig, directory: Path, version: int) -> ModelConfig:
        """See `Backend.complete`. Asks the model's `auto_complete_config` where it has one."""
        path = model_file(config, directory, version, self.filename)
        name = short_name(config, version, path)
        scope = Scope(config.name, (path.parent, directory))
        try:
            hook = getattr(_model_class(scope, path, name), "auto_complete_config", None)
            if hook is None:
                return config
            given = config_tree(config)
            try:
                with scope.active():
                    answer = hook(triton.ModelConfig(json.dumps(given)))
            except (Exception, SystemExit) as error:
                raise ConfigError(f"{name}: auto_complete_config raised {describe(error, path)}") from error
            if not isinstance(answer, triton.ModelConfig):
                raise ConfigError(
                    f"{name}: auto_complete_config returned {type(answer).__name__}; expected the"
                    " ModelConfig it"
                    " was given"
                )
            return _apply(config, name, given, answer.as_dict())
        finally:
            scope.close()

    def load(self, spec: InstanceSpec) -> Instance | StreamingInstance:
        """See `Backend.load`.

        Raises:
            Unsupported: the model wants an environment of its own.
        """
        config = spec.config
        if config.parameters.get("EXECUTION_ENV_PATH"):
            raise Unsupported(
                f"{where(config)}: parameters.EXECUTION_ENV_PATH: found"
                f" {config.parameters['EXECUTION_ENV_PATH']!r}; expected none: install what the model"
                " imports in"
                " the worker's environment"
            )
        read_only = boolean(config, "READ_ONLY_INPUTS", default=False)
        path = model_file(config, spec.directory, spec.version, self.filename)
        name = short_name(config, spec.version, path)
        scope = Scope(config.name, (path.parent, spec.directory))
        try:
            model = _initialize(scope, path, name, spec)
        except BaseException:
            scope.close()
            raise
        if config.decoupled:
            return reshaping_streams(config, DecoupledInstance(model, scope, spec, path, read_only=read_only))
        return reshaping(config, PythonInstance(model, scope, spec, path, read_only=read_only))


def _model_class(scope: Scope, path: Path, name: str) -> Any:
    # Models import this module by name; it is the same for all of them.
    sys.modules[triton.MODULE] = triton
    try:
        module = scope.load(path)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{name}: importing it raised {describe(error, path)}") from error
    model_class = getattr(module, CLASS, None)
    if not isinstance(model_class, type) or not callable(getattr(model_class, "execute", None)):
        raise ConfigError(f"{name}: found no class {CLASS} with a method execute; expected one")
    return model_class


def _initialize(scope: Scope, path: Path, name: str, spec: InstanceSpec) -> Any:
    model_class = _model_class(scope, path, name)
    try:
        with scope.active():
            model = model_class()
            initialize = getattr(model, "initialize", None)
            if initialize is not None:
                initialize(initialize_arguments(spec))
    except QInferError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{name}: initialize of {spec.name} raised {describe(error, path)}") from error
    return model


def _apply(
    config: ModelConfig, name: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> ModelConfig:
    """Carry what `auto_complete_config` changed over into the configuration."""
    inputs = _specs(config, name, "input", config.inputs, after.get("input", ()))
    outputs = _specs(config, name, "output", config.outputs, after.get("output", ()))
    rows = int(after.get("max_batch_size", 0))
    if (inputs, outputs, rows) != (config.inputs, config.outputs, config.max_batch_size):
        config = complete(config, inputs=inputs, outputs=outputs, max_batch_size=rows)
    message = ModelConfigMessage.FromString(config.proto)
    if "dynamic_batching" in after and "dynamic_batching" not in before:
        message.dynamic_batching.SetInParent()
        config = replace(config, dynamic_batching=DynamicBatching(), proto=message.SerializeToString())
    decoupled = triton.using_decoupled_model_transaction_policy(after)
    if decoupled != config.decoupled:
        message.model_transaction_policy.decoupled = decoupled
        config = replace(config, decoupled=decoupled, proto=message.SerializeToString())
    return config


def _specs(
    config: ModelConfig, name: str, role: str, known: Iterable[TensorSpec], trees: Iterable[Mapping[str, Any]]
) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in known}
    specs = []
    for tree in trees:
        datatype = str(tree["data_type"]).removeprefix("TYPE_")
        datatype = "BYTES" if datatype == "STRING" else datatype
        dims = tuple(int(dim) for dim in tree["dims"])
        optional = bool(tree.get("optional", False))
        spec = by_name.get(tree["name"]) or TensorSpec(name=tree["name"], datatype=datatype, dims=dims)
        if datatype not in DATATYPES:
            raise complain(
                config,
                f"{role} {spec.name!r}",
                f"auto_complete_config of {name} gives data_type {tree['data_type']!r}",
                "one of TYPE_FP32, TYPE_INT64, TYPE_STRING, ...",
            )
        specs.append(replace(spec, datatype=datatype, dims=dims, optional=optional))
    return tuple(specs)
