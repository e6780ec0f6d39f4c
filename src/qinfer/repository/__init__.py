"""The model repository: Triton's directory layout, `config.pbtxt` or `config.yaml`."""

from qinfer.repository.config import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    QueuePolicy,
    TensorSpec,
    VersionPolicy,
    complete,
    from_message,
    to_message,
)
from qinfer.repository.fingerprint import fingerprints
from qinfer.repository.metadata import ModelMetadata, TensorMetadata, config_json, model_metadata
from qinfer.repository.scan import ModelEntry, Problem, Repository

__all__ = [
    "DynamicBatching",
    "InstanceGroup",
    "ModelConfig",
    "ModelEntry",
    "ModelMetadata",
    "Problem",
    "QueuePolicy",
    "Repository",
    "TensorMetadata",
    "TensorSpec",
    "VersionPolicy",
    "complete",
    "config_json",
    "fingerprints",
    "from_message",
    "model_metadata",
    "to_message",
]
