"""Writes a BERT sentence encoder as an ONNX graph, straight from its weights.

Inputs "input_ids" and "attention_mask" INT64 [batch, sequence], output "sentence_embedding" FP32
[batch, hidden]: the mean of the last layer over the tokens that are not masked, at unit length. Both
dimensions are free, so the file serves any batch of any length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.zoo.safetensors import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_OPSET, _IR_VERSION = 20, 9  # 20 brought Gelu; onnxruntime reads both since 1.17
# Far enough below every score that softmax makes it zero, and far enough from overflow.
_MASKED = np.array(-1e9, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """The numbers of `config.json` that shape the network."""

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    layer_norm_eps: float

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> BertConfig:
        return cls(**{name: config[name] for name in cls.__slots__})


def sentence_encoder(weights: Mapping[str, Array], config: BertConfig) -> ModelProto:
    """The ONNX model.

    Args:
        weights: FP32 arrays by the names of the transformers library's BertModel.
        config: the network's shape.

    Raises:
        KeyError: a weight is missing.
    """
    return _Graph(weights, config).model()


class _Graph:
    """Collects nodes and weights; each method appends one part and returns its output's name."""

    def __init__(self, weights: Mapping[str, Array], config: BertConfig) -> None:
        self.weights = weights
        self.config = config
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Array] = {}

    def model(self) -> ModelProto:
        from onnx import TensorProto, helper, numpy_helper

        mask = self.op("Cast", "attention_mask", to=TensorProto.FLOAT)
        bias = self.mask_bias(mask)
        hidden = self.embeddings()
        for layer in range(self.config.num_hidden_layers):
            hidden = self.layer(hidden, bias, f"encoder.layer.{layer}")
        self.unit_mean(hidden, mask, "sentence_embedding")
        free = ["batch", "sequence"]
        graph = helper.make_graph(
            self.nodes,
            "sentence_encoder",
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, free),
                helper.make_tensor_value_info("attention_mask", TensorProto.INT64, free),
            ],
            [
                helper.make_tensor_value_info(
                    "sentence_embedding", TensorProto.FLOAT, ["batch", self.config.hidden_size]
                )
            ],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="qinfer"
        )
        model.ir_version = _IR_VERSION
        return model

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def ints(self, *values: int) -> str:
        return self.constant("ints" + "".join(f"_{value}" for value in values), np.array(values, np.int64))

    def linear(self, value: str, name: str) -> str:
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.op("Add", self.op("MatMul", value, weight), bias)

    def normalise(self, value: str, name: str) -> str:
        scale = self.constant(f"{name}.weight", self.weights[f"{name}.weight"])
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        epsilon = self.config.layer_norm_eps
        return self.op("LayerNormalization", value, scale, bias, axis=-1, epsilon=epsilon)

    def embeddings(self) -> str:
        # One sentence at a time, so every token has type 0: its row goes into the position table.
        words = self.constant("words", self.weights["embeddings.word_embeddings.weight"])
        types = self.weights["embeddings.token_type_embeddings.weight"]
        positions = self.constant(
            "positions", self.weights["embeddings.position_embeddings.weight"] + types[0]
        )
        length = self.op("Shape", "input_ids", start=1, end=2)
        position = self.op("Slice", positions, self.ints(0), length, self.ints(0))
        return self.normalise(
            self.op("Add", self.op("Gather", words, "input_ids"), position), "embeddings.LayerNorm"
        )

    def mask_bias(self, mask: str) -> str:
        """What the scores get added, [batch, 1, 1, sequence]: 0 to see a token, very negative to hide it."""
        hidden = self.op("Sub", self.constant("one", np.array(1, np.float32)), mask)
        bias = self.op("Mul", hidden, self.constant("masked", _MASKED))
        return self.op("Unsqueeze", bias, self.ints(1, 2))

    def layer(self, hidden: str, bias: str, name: str) -> str:
        attended = self.linear(self.attention(hidden, bias, name), f"{name}.attention.output.dense")
        hidden = self.normalise(self.op("Add", hidden, attended), f"{name}.attention.output.LayerNorm")
        wide = self.op("Gelu", self.linear(hidden, f"{name}.intermediate.dense"))
        narrow = self.linear(wide, f"{name}.output.dense")
        return self.normalise(self.op("Add", hidden, narrow), f"{name}.output.LayerNorm")

    def attention(self, hidden: str, bias: str, name: str) -> str:
        query, key, value = (self.heads(hidden, f"{name}.attention.self.{part}") for part in _PARTS)
        scores = self.op("MatMul", query, self.op("Transpose", key, perm=[0, 1, 3, 2]))
        scale = self.constant("scale", np.array(self._head_size**0.5, np.float32))
        visible = self.op("Softmax", self.op("Add", self.op("Div", scores, scale), bias), axis=-1)
        context = self.op("Transpose", self.op("MatMul", visible, value), perm=[0, 2, 1, 3])
        return self.op("Reshape", context, self.ints(0, 0, self.config.hidden_size))

    def heads(self, hidden: str, name: str) -> str:
        """A projection split into heads: [batch, heads, sequence, head size]."""
        split = self.ints(0, 0, self.config.num_attention_heads, self._head_size)
        return self.op("Transpose", self.op("Reshape", self.linear(hidden, name), split), perm=[0, 2, 1, 3])

    def unit_mean(self, hidden: str, mask: str, output: str) -> str:
        weight = self.op("Unsqueeze", mask, self.ints(2))
        total = self.op("ReduceSum", self.op("Mul", hidden, weight), self.ints(1), keepdims=0)
        tiny = self.constant("tiny", np.array(1e-9, np.float32))
        count = self.op("Max", self.op("ReduceSum", weight, self.ints(1), keepdims=0), tiny)
        mean = self.op("Div", total, count)
        length = self.op("Max", self.op("ReduceL2", mean, self.ints(-1), keepdims=1), tiny)
        return self.op("Div", mean, length, output=output)

    @property
    def _head_size(self) -> int:
        return self.config.hidden_size // self.config.num_attention_heads


_PARTS = ("query", "key", "value")
