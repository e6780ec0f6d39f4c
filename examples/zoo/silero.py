"""silero-vad: is somebody speaking in these 32 ms? One network, as ONNX and as TorchScript.

Both files are changed in the same way, so that one client drives either and streams share a batch:

- the recurrent state has the batch dimension first ([n, 2, 128] instead of [2, n, 128]);
- the sampling rate is fixed at 16 kHz, the only one the 576-sample window is for;
- the TorchScript module, which keeps the state of one stream within itself, gets it from the caller instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from examples.zoo.recipe import Recipe
from examples.zoo.sources import SILERO, read_members

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

SPEECH = "speech.wav"
"""File in the ONNX model's directory: a minute of recorded speech, 16 kHz, mono, 16 bit."""

_ONNX = "src/silero_vad/data/silero_vad_16k_op15.onnx"
_JIT = "src/silero_vad/data/silero_vad.jit"
_WAV = "tests/data/test.wav"
_LICENSE = "LICENSE"

_RATE = 16_000
_WINDOW = 576


def _write_onnx(model: Path, archives: Mapping[str, Path]) -> None:
    import onnx

    members = read_members(archives[SILERO.project], (_ONNX, _WAV, _LICENSE))
    proto = batch_first(onnx.load_model_from_string(members[_ONNX]))
    onnx.checker.check_model(proto)
    (model / "1" / "model.onnx").write_bytes(proto.SerializeToString())
    (model / SPEECH).write_bytes(members[_WAV])
    (model / "LICENSE").write_bytes(members[_LICENSE])


def batch_first(model: ModelProto) -> ModelProto:
    """The model with "state" and "stateN" of shape [batch, 2, 128] and no input "sr"; changed in place."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    _rename(graph, {"state": "state_by_layer", "stateN": "stateN_by_layer"})
    rate = numpy_helper.from_array(np.array(_RATE, dtype=np.int64), "sr")
    graph.initializer.append(rate)
    nodes = [
        helper.make_node("Transpose", ["state"], ["state_by_layer"], perm=[1, 0, 2]),
        *graph.node,
        helper.make_node("Transpose", ["stateN_by_layer"], ["stateN"], perm=[1, 0, 2]),
    ]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)

    def tensor(name: str, *dims: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])

    graph.input.extend([tensor("input", _WINDOW), tensor("state", 2, 128)])
    graph.output.extend([tensor("output", 1), tensor("stateN", 2, 128)])
    return model


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename values wherever nodes use or make them, in the branches of `If` as well."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)


def _write_torch(model: Path, archives: Mapping[str, Path]) -> None:
    import torch

    members = read_members(archives[SILERO.project], (_JIT, _LICENSE))
    original = model / "original.jit"
    original.write_bytes(members[_JIT])

    class Stream(torch.nn.Module):
        """One step of many streams, each with its own state."""

        def __init__(self, net: torch.jit.ScriptModule) -> None:
            super().__init__()
            self.net = net

        def forward(self, input: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: A002
            output, state_by_layer = self.net(input, state.transpose(0, 1).contiguous())
            return output, state_by_layer.transpose(0, 1).contiguous()

    with warnings.catch_warnings():
        # TorchScript is deprecated in favour of torch.export, and still what such packages ship.
        warnings.simplefilter("ignore", category=FutureWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        whole = torch.jit.load(original)  # type: ignore[no-untyped-call]
        inner = dict(whole.named_children())["_model"]
        stream = torch.jit.script(Stream(inner).eval())
        torch.jit.save(stream, model / "1" / "model.pt")
    original.unlink()
    (model / "LICENSE").write_bytes(members[_LICENSE])


ONNX_RECIPE = Recipe(
    name="silero_vad",
    backend="onnxruntime",
    summary="voice activity in 32 ms of sound",
    write=_write_onnx,
    sources=(SILERO,),
    needs={
        "onnx": "pip install -r examples/requirements.txt",
        "onnxruntime": "pip install 'qinfer[onnx]'",
    },
)

TORCH_RECIPE = Recipe(
    name="silero_vad_torch",
    backend="torch",
    summary="the same network in TorchScript",
    write=_write_torch,
    sources=(SILERO,),
    needs={"torch": "pip install 'qinfer[torch]'"},
)
