"""MiniLM: text to tokens in the Python backend, tokens to vectors in onnxruntime, vectors compared here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from examples.showcase.clients import Tensors
from examples.showcase.direct import OnnxFile, load_module
from examples.showcase.samples import SENTENCES
from examples.showcase.stage import Row, Stage, measure
from qinfer.errors import SetupError
from qinfer.repository import Repository

TOKENIZER, ENCODER = "minilm_tokenizer", "minilm"
OUTPUT = "sentence_embedding"


def run(stage: Stage) -> list[Row]:
    """Tokenize the sentences, embed them, and show which are alike."""
    tokens = direct_tokens(stage.repository)
    rows = _tokenize(stage, tokens)
    if ENCODER in stage.models:
        rows += _embed(stage, tokens)
    return rows


def direct_tokens(repository: Path) -> list[Tensors]:
    """What the tokenizer makes of each sentence, by the settings of its configuration.

    Raises:
        SetupError: the repository has no such model.
    """
    entries, _ = Repository(repository).scan()
    entry = next((entry for entry in entries if entry.name == TOKENIZER), None)
    if entry is None:
        raise SetupError(f"{repository}: has no model {TOKENIZER}")
    settings = entry.config.parameters
    version = entry.directory / "1"
    tokenizer = load_module(version / "wordpiece.py").WordPiece.from_file(
        version / "vocab.txt", max_tokens=int(settings["max_tokens"])
    )
    tokens: list[Tensors] = []
    for sentence in SENTENCES:
        input_ids, attention_mask = tokenizer.batch([sentence], multiple=int(settings["pad_to_multiple_of"]))
        tokens.append({"input_ids": input_ids, "attention_mask": attention_mask})
    return tokens


def _tokenize(stage: Stage, tokens: list[Tensors]) -> list[Row]:
    requests = [{"text": np.array([[sentence.encode()]], dtype=object)} for sentence in SENTENCES]
    rows = []
    for client in stage.clients:
        measured = measure(stage, client, TOKENIZER, requests, tokens)
        first = measured.answers[0]
        ids = " ".join(map(str, first["input_ids"][0, : int(first["attention_mask"].sum())]))
        rows.append(measured.row(stage, client, TOKENIZER, asked=f"“{SENTENCES[0]}”", answered=ids))
    return rows


def _embed(stage: Stage, tokens: list[Tensors]) -> list[Row]:
    direct = OnnxFile(stage.repository / ENCODER / "1" / "model.onnx")
    expected = [direct.run(inputs) for inputs in tokens]
    rows = []
    for client in stage.clients:
        measured = measure(stage, client, ENCODER, tokens, expected)
        vectors = np.concatenate([answer[OUTPUT] for answer in measured.answers])
        pair = f"first two alike by {float(vectors[0] @ vectors[1]):.2f}"
        asked = f"{len(SENTENCES)} sentences"
        rows.append(measured.row(stage, client, ENCODER, asked=asked, answered=pair))
        if client is stage.clients[0]:
            stage.console.print(_similarities(vectors))
    return rows


def _similarities(vectors: NDArray[Any]) -> Table:
    table = Table("sentence", "closest other", "cosine", title="Sentences", title_justify="left")
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    for sentence, row in zip(SENTENCES, cosines, strict=True):
        table.add_row(sentence, SENTENCES[int(row.argmax())], f"{row.max():.2f}")
    return table
