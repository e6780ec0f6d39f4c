"""ONNX models on ONNX Runtime."""

from qinfer_workers.backends.onnxruntime.backend import OnnxRuntimeBackend

__all__ = ["OnnxRuntimeBackend"]
