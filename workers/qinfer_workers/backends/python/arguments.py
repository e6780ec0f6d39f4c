"""What a Python model is told: the configuration as JSON and the arguments of `initialize`."""

from __future__ import annotations

import json
from typing import Any

from qinfer.repository import ModelConfig
from qinfer.repository.metadata import config_json
from qinfer_workers.backends.base import InstanceSpec


def config_tree(config: ModelConfig) -> dict[str, Any]:
    """The configuration under the names of `config.pbtxt`, fields at their defaults included."""
    return {**config_json(config.proto), "name": config.name}


def initialize_arguments(spec: InstanceSpec) -> dict[str, str]:
    """The argument of `initialize`: all values are strings.

    `model_repository` is the model's own directory, as in Triton.
    """
    return {
        "model_config": json.dumps(config_tree(spec.config)),
        "model_instance_kind": spec.kind,
        "model_instance_name": spec.name,
        "model_instance_device_id": str(spec.device),
        "model_repository": str(spec.directory),
        "model_version": str(spec.version),
        "model_name": spec.config.name,
    }
