"""magika: type of a file. The client cuts the file and decides whether to believe the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from examples.showcase.direct import OnnxFile
from examples.showcase.samples import sample_files
from examples.showcase.stage import Row, Stage, measure

MODEL = "magika"
INPUT, OUTPUT = "bytes", "target_label"

Tokens: TypeAlias = NDArray[np.int32]
Scores: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileType:
    """What was found.

    Attributes:
        label: the type, or "txt" or "unknown" where the network was not sure enough.
        score: the network's probability for its own best class, 0..1.
    """

    label: str
    score: float


class FileTypes:
    """The client's half of magika.

    Args:
        directory: the model's directory, for its rules and labels.
    """

    def __init__(self, directory: Path) -> None:
        self._rules: dict[str, Any] = json.loads((directory / "rules.json").read_text())
        self._labels = (directory / "labels.txt").read_text().split()

    def tokens(self, content: bytes) -> Tokens | None:
        """The network's input, INT32 [2048]: the beginning and the end without the blanks around them.

        Returns:
            None where so little is left that the network has nothing to go by.
        """
        rules = self._rules
        start = content[: rules["block_size"]].lstrip()[: rules["beg_size"]]
        end = content[-rules["block_size"] :].rstrip()[-rules["end_size"] :]
        if len(start) < rules["min_file_size_for_dl"]:
            return None
        tokens = np.full(rules["beg_size"] + rules["end_size"], rules["padding_token"], dtype=np.int32)
        tokens[: len(start)] = np.frombuffer(start, dtype=np.uint8)
        if end:
            tokens[-len(end) :] = np.frombuffer(end, dtype=np.uint8)
        return tokens

    def decide(self, scores: Scores) -> FileType:
        """The type for one row of the network's output, FP32 [214]."""
        rules = self._rules
        best = int(scores.argmax())
        found, score = self._labels[best], float(scores[best])
        label = rules["overwrite_map"].get(found, found)
        if score < rules["thresholds"].get(found, rules["medium_confidence_threshold"]):
            label = "txt" if label in rules["text_labels"] or label == "txt" else "unknown"
        return FileType(label=label, score=score)


def run(stage: Stage) -> list[Row]:
    """Ask for the types of files of this repository, of this machine and of some made on the spot."""
    directory = stage.repository / MODEL
    client_half = FileTypes(directory)
    files = {
        name: tokens
        for name, content in sample_files().items()
        if (tokens := client_half.tokens(content)) is not None
    }
    requests = [{INPUT: tokens[None]} for tokens in files.values()]
    direct = OnnxFile(directory / "1" / "model.onnx")
    expected = [direct.run(inputs) for inputs in requests]
    rows = []
    table = Table("file", "type", "probability", title="Types of files", title_justify="left")
    for client in stage.clients:
        measured = measure(stage, client, MODEL, requests, expected)
        types = [client_half.decide(answer[OUTPUT][0]) for answer in measured.answers]
        labels = list(dict.fromkeys(found.label for found in types))
        answered = f"{', '.join(labels[:4])} … {len(labels)} types"
        rows.append(measured.row(stage, client, MODEL, asked=f"{len(files)} files", answered=answered))
        if client is stage.clients[0]:
            for name, found in zip(files, types, strict=True):
                table.add_row(name, found.label, f"{found.score:.3f}")
    stage.console.print(table)
    return rows
