"""magika: what type a file is, from 1024 bytes of its beginning and 1024 of its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from examples.zoo.recipe import Recipe
from examples.zoo.sources import MAGIKA, read_members

_MODEL = "magika/models/standard_v3_3/model.onnx"
_CONFIG = "magika/models/standard_v3_3/config.min.json"
_TYPES = "magika/config/content_types_kb.min.json"

_RULES = (
    "beg_size", "end_size", "block_size", "padding_token", "min_file_size_for_dl",
    "medium_confidence_threshold", "thresholds", "overwrite_map",
)  # fmt: skip


def _write(model: Path, archives: Mapping[str, Path]) -> None:
    members = read_members(archives[MAGIKA.project], (_MODEL, _CONFIG, _TYPES))
    (model / "1" / "model.onnx").write_bytes(members[_MODEL])
    config = json.loads(members[_CONFIG])
    labels = config["target_labels_space"]
    (model / "labels.txt").write_text("\n".join(labels) + "\n")
    # What a client needs besides the network: how to cut a file, and when to believe the answer.
    types = json.loads(members[_TYPES])
    rules = {key: config[key] for key in _RULES}
    rules["text_labels"] = sorted(label for label in labels if types[label]["is_text"])
    (model / "rules.json").write_text(json.dumps(rules, indent=1) + "\n")


RECIPE = Recipe(
    name="magika",
    backend="onnxruntime",
    summary="type of a file, 214 classes",
    write=_write,
    sources=(MAGIKA,),
    needs={"onnxruntime": "pip install 'qinfer[onnx]'"},
)
