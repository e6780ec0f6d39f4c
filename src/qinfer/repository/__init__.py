"""The model repository: Triton's directory layout, `config.pbtxt` or `config.yaml`."""

from qinfer.repository.config import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    TensorSpec,
    VersionPolicy,
)
from qinfer.repository.scan import ModelEntry, Problem, Repository

__all__ = [
    "DynamicBatching",
    "InstanceGroup",
    "ModelConfig",
    "ModelEntry",
    "Problem",
    "Repository",
    "TensorSpec",
    "VersionPolicy",
]
