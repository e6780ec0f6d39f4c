"""Models written in Python for Triton's Python backend."""

from qinfer_workers.backends.python.backend import PythonBackend

__all__ = ["PythonBackend"]
