"""TorchScript and `torch.export` models on PyTorch."""

from qinfer_workers.backends.torch.backend import TorchBackend

__all__ = ["TorchBackend"]
