"""Ask models from Python: over HTTP through a gateway, or over the broker straight to the workers.

    async with connect("http://localhost:8000") as client:
        result = await client.infer("mlp", {"x": array})

`Client` is the same without `await`. Both ways answer alike, and raise the errors of `qinfer.errors`.
"""

from qinfer.client.base import AsyncClient, Inputs, ModelInfo, Options, Result
from qinfer.client.factory import KEY_VARIABLE, ConnectOptions, connect
from qinfer.client.sync import Client
from qinfer.jobs.record import JobOptions, JobRecord, JobState

__all__ = [
    "KEY_VARIABLE",
    "AsyncClient",
    "Client",
    "ConnectOptions",
    "Inputs",
    "JobOptions",
    "JobRecord",
    "JobState",
    "ModelInfo",
    "Options",
    "Result",
    "connect",
]
