"""Backends: what runs a model, behind one contract (`qinfer_workers.backends.base`)."""

from qinfer_workers.backends.registry import find, installed

__all__ = ["find", "installed"]
