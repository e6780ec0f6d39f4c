"""The ONNX graph of the sentence encoder against plain numpy, on small random weights."""

from __future__ import annotations

import json
from math import erf
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from examples.zoo.bert import BertConfig, sentence_encoder
from examples.zoo.safetensors import read_safetensors
from numpy.typing import NDArray

from qinfer.errors import SetupError

Floats = NDArray[Any]

CONFIG = BertConfig(hidden_size=24, num_attention_heads=3, num_hidden_layers=2, layer_norm_eps=1e-12)
_WIDE, _WORDS, _POSITIONS = 40, 50, 16


@pytest.fixture(scope="module")
def weights() -> dict[str, Floats]:
    random = np.random.default_rng(7)
    size = CONFIG.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (_WORDS, size),
        "embeddings.position_embeddings.weight": (_POSITIONS, size),
        "embeddings.token_type_embeddings.weight": (2, size),
    }
    linears: dict[str, tuple[int, int]] = {}
    norms = ["embeddings.LayerNorm"]
    for layer in range(CONFIG.num_hidden_layers):
        name = f"encoder.layer.{layer}"
        linears |= {f"{name}.attention.self.{part}": (size, size) for part in ("query", "key", "value")}
        linears[f"{name}.attention.output.dense"] = (size, size)
        linears[f"{name}.intermediate.dense"] = (_WIDE, size)
        linears[f"{name}.output.dense"] = (size, _WIDE)
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name in norms:
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def session(weights: dict[str, Floats]) -> Any:
    model = sentence_encoder(weights, CONFIG)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _reference(weights: dict[str, Floats], ids: NDArray[np.int64]) -> Floats:
    """Embedding of one sentence without padding, FP64 [hidden], written for reading, a head at a time."""

    def linear(x: Floats, name: str) -> Floats:
        result: Floats = x @ weights[f"{name}.weight"].astype(np.float64).T + weights[f"{name}.bias"]
        return result

    def norm(x: Floats, name: str) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + CONFIG.layer_norm_eps)
        result: Floats = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return result

    x: Floats = weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    size = CONFIG.hidden_size // CONFIG.num_attention_heads
    for layer in range(CONFIG.num_hidden_layers):
        name = f"encoder.layer.{layer}"
        query, key, value = (linear(x, f"{name}.attention.self.{p}") for p in ("query", "key", "value"))
        contexts = []
        for head in range(CONFIG.num_attention_heads):
            part = slice(head * size, (head + 1) * size)
            scores = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
            contexts.append(scores / scores.sum(-1, keepdims=True) @ value[:, part])
        attended = linear(np.concatenate(contexts, axis=1), f"{name}.attention.output.dense")
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        wide = linear(x, f"{name}.intermediate.dense")
        gelu = wide * 0.5 * (1 + np.vectorize(erf)(wide / np.sqrt(2)))
        x = norm(x + linear(gelu, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean = x.mean(0)
    result: Floats = mean / np.linalg.norm(mean)
    return result


def _embed(session: Any, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Floats:
    embedding: Floats = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    return embedding


@pytest.mark.parametrize("length", [1, 5, _POSITIONS])
def test_one_sentence(session: Any, weights: dict[str, Floats], length: int) -> None:
    ids = np.random.default_rng(length).integers(0, _WORDS, length)
    found = _embed(session, ids[None], np.ones((1, length), np.int64))
    np.testing.assert_allclose(found[0], _reference(weights, ids), atol=2e-5)


def test_padding_and_neighbours_do_not_matter(session: Any, weights: dict[str, Floats]) -> None:
    random = np.random.default_rng(3)
    lengths = [2, 9, 6]
    ids = random.integers(0, _WORDS, (3, 12))  # what lies under the mask is no zero
    mask = (np.arange(12) < np.array(lengths)[:, None]).astype(np.int64)
    found = _embed(session, ids, mask)
    for row, sentence, length in zip(found, ids, lengths, strict=True):
        np.testing.assert_allclose(row, _reference(weights, sentence[:length]), atol=2e-5)


def test_a_missing_weight_is_named(weights: dict[str, Floats]) -> None:
    rest = {name: array for name, array in weights.items() if "layer.1.intermediate" not in name}
    with pytest.raises(KeyError, match=r"encoder\.layer\.1\.intermediate\.dense\.weight"):
        sentence_encoder(rest, CONFIG)


def _file(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_safetensors() -> None:
    values = np.arange(6, dtype="<f4")
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]}
    file = _file({"__metadata__": {"format": "pt"}, "a": entry}, bytes(8) + values.tobytes())
    arrays = read_safetensors(file, name="x")
    assert list(arrays) == ["a"]
    np.testing.assert_array_equal(arrays["a"], values.reshape(2, 3))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}, "type F8_E5M2"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "do not hold"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}, "do not hold"),
    ],
)
def test_damaged_safetensors_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=rf"x: a: .*{message}"):
        read_safetensors(_file({"a": entry}, bytes(8)), name="x")


@pytest.mark.parametrize("data", [b"\xff" * 8, (3).to_bytes(8, "little") + b"{{{"])
def test_a_damaged_header_is_refused(data: bytes) -> None:
    with pytest.raises(SetupError, match="x: header"):
        read_safetensors(data, name="x")
