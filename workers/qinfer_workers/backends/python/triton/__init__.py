"""The module that models import as `triton_python_backend_utils`.

Its names, arguments and return values are those of Triton's module, so that a `model.py` runs unchanged.
`docs/backends.md` lists what is not there.
"""

from qinfer_workers.backends.python.triton.datatypes import (
    TRITON_STRING_TO_NUMPY,
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
)
from qinfer_workers.backends.python.triton.errors import TritonError, TritonModelException
from qinfer_workers.backends.python.triton.logger import Logger
from qinfer_workers.backends.python.triton.metrics import Metric, MetricFamily
from qinfer_workers.backends.python.triton.model_config import (
    ModelConfig,
    get_input_config_by_name,
    get_output_config_by_name,
    using_decoupled_model_transaction_policy,
)
from qinfer_workers.backends.python.triton.request import (
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    InferenceRequest,
    InferenceResponse,
    get_input_tensor_by_name,
    get_output_tensor_by_name,
)
from qinfer_workers.backends.python.triton.sender import InferenceResponseSender
from qinfer_workers.backends.python.triton.tensor import Tensor

MODULE = "triton_python_backend_utils"
"""The name models import this module by."""

__all__ = [
    "MODULE",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "Logger",
    "Metric",
    "MetricFamily",
    "ModelConfig",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "np_to_triton_dtype",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "using_decoupled_model_transaction_policy",
]
