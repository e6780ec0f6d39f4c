"""The built models give the answers their authors' own code gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples.showcase import file_types, sentences, speech
from examples.showcase.direct import OnnxFile, TorchScriptFile, load_module
from examples.showcase.samples import SENTENCES, sample_files
from examples.zoo import RECIPES


@pytest.fixture(scope="session")
def tokenizer(models: Path):  # type: ignore[no-untyped-def]  # the module is loaded by path
    version = models / sentences.TOKENIZER / "1"
    module = load_module(version / "wordpiece.py")
    return module.WordPiece.from_file(version / "vocab.txt", max_tokens=256)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pyproject.toml", "toml"),
        ("src/qinfer/errors.py", "python"),
        ("made.png", "png"),
        ("made.wav", "wav"),
        ("made.zip", "zip"),
        ("made.gz", "gzip"),
        ("made.sqlite", "sqlite"),
        ("made.csv", "csv"),
        ("made.sh", "shell"),
    ],
)
def test_magika_knows_files(models: Path, name: str, expected: str) -> None:
    half = file_types.FileTypes(models / "magika")
    tokens = half.tokens(sample_files()[name])
    assert tokens is not None
    direct = OnnxFile(models / "magika" / "1" / "model.onnx")
    scores = direct.run({file_types.INPUT: tokens[None]})[file_types.OUTPUT]
    assert half.decide(scores[0]).label == expected


def test_magika_cuts_blanks_and_pads(models: Path) -> None:
    half = file_types.FileTypes(models / "magika")
    tokens = half.tokens(b"  \n{'a': 12}\n\n")
    assert tokens is not None
    content = list(b"{'a': 12}")
    assert tokens.shape == (2048,)
    # Only the front of the first half and the end of the second are stripped.
    assert tokens[: len(content)].tolist() == content
    assert tokens[-len(content) :].tolist() == content
    assert set(tokens[len(content) + 2 : -len(content) - 3].tolist()) == {256}
    assert half.tokens(b"") is None
    assert half.tokens(b"   short\n") is None


def test_magika_says_txt_or_unknown_when_it_is_not_sure(models: Path) -> None:
    half = file_types.FileTypes(models / "magika")
    labels = (models / "magika" / "labels.txt").read_text().split()
    for label, score, expected in [
        ("python", 0.6, "python"),
        ("python", 0.4, "txt"),
        ("elf", 0.4, "unknown"),
        ("markdown", 0.7, "txt"),  # has a threshold of its own, 0.75
        ("randombytes", 0.9, "unknown"),
    ]:
        scores = np.full(len(labels), 0.001, dtype=np.float32)
        scores[labels.index(label)] = score
        assert half.decide(scores).label == expected


def test_silero_hears_speech_and_silence(models: Path) -> None:
    direct = OnnxFile(models / speech.ONNX / "1" / "model.onnx")
    recording = speech.streams(models / speech.ONNX / "speech.wav")
    silence = np.zeros_like(recording[:1])
    heard, _ = speech.listen(
        np.concatenate([recording[:1], silence]), lambda requests: [direct.run(inputs) for inputs in requests]
    )
    assert heard.shape == (2, speech.STEPS)
    assert (heard[0] > 0.5).mean() > 0.9
    assert heard[1].max() < 0.1


def test_silero_streams_in_one_batch_do_not_mix(models: Path) -> None:
    direct = OnnxFile(models / speech.ONNX / "1" / "model.onnx")
    recording = speech.streams(models / speech.ONNX / "speech.wav")[:, : 12 * speech.STEP]
    alone, _ = speech.listen(recording, lambda requests: [direct.run(inputs) for inputs in requests])
    states = np.zeros((len(recording), 2, 128), dtype=np.float32)
    for step, window in enumerate(speech.windows(recording)):
        answer = direct.run({"input": window, "state": states})
        states = answer["stateN"]
        np.testing.assert_allclose(answer["output"][:, 0], alone[:, step], atol=1e-5)


def test_silero_is_the_same_in_torchscript(models: Path) -> None:
    pytest.importorskip("torch", reason="the torch extra is not installed")
    onnx = OnnxFile(models / speech.ONNX / "1" / "model.onnx")
    torch = TorchScriptFile(
        models / speech.TORCH / "1" / "model.pt", inputs=("input", "state"), outputs=("output", "stateN")
    )
    recording = speech.streams(models / speech.ONNX / "speech.wav")[:3]
    by_onnx, _ = speech.listen(recording, lambda requests: [onnx.run(inputs) for inputs in requests])
    by_torch, _ = speech.listen(recording, lambda requests: [torch.run(inputs) for inputs in requests])
    np.testing.assert_allclose(by_onnx, by_torch, atol=1e-5)


# Ids made once by the reference implementation (tokenizers 0.23.3) with the model's own tokenizer.json.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man is eating food.", [101, 1037, 2158, 2003, 5983, 2833, 1012, 102]),
        (
            "Ünïcode naïve café — 東京タワー $5.00 isn't",
            [
                101, 27260, 15743, 7668, 1517, 1879, 1755, 1709, 30262, 30265, 1002, 1019, 1012, 4002, 3475,
                1005, 1056, 102,
            ],
        ),
        ("ΑΣ İstanbul straße", [101, 1155, 29733, 9960, 2358, 27807, 102]),
        ("", [101, 102]),
        ("\t \n", [101, 102]),
        ("don't—stop… 🙂", [101, 2123, 1005, 1056, 1517, 2644, 1529, 100, 102]),
        ("zero\u200bwidth nul\x00byte", [101, 5717, 9148, 11927, 2232, 16371, 14510, 2618, 102]),
        (
            "unbelievably antidisestablishmentarianism",
            [101, 4895, 8671, 2666, 3567, 6321, 3424, 10521, 4355, 7875, 13602, 3672, 12199, 2964, 102],
        ),
        ("x" * 101, [101, 100, 102]),
    ],
)  # fmt: skip
def test_tokenizer(tokenizer, text: str, expected: list[int]) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.ids(text) == expected


def test_tokenizer_cuts_and_pads(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer.ids("word " * 1000)
    assert (len(ids), ids[0], ids[-1]) == (256, 101, 102)
    input_ids, mask = tokenizer.batch(["one", "one two three"], multiple=8)
    assert input_ids.shape == mask.shape == (2, 8)
    assert mask.sum(axis=1).tolist() == [3, 5]
    assert (input_ids[mask == 0] == 0).all()


def test_minilm_puts_like_meanings_together(models: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    direct = OnnxFile(models / sentences.ENCODER / "1" / "model.onnx")
    ids, mask = tokenizer.batch([*SENTENCES[:2], SENTENCES[5]])
    vectors = direct.run({"input_ids": ids, "attention_mask": mask})[sentences.OUTPUT]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # The first is what the sentence-transformers library gives for this pair.
    assert vectors[0] @ vectors[1] == pytest.approx(0.755, abs=0.002)
    assert abs(vectors[0] @ vectors[2]) < 0.2


def test_every_model_directory_is_a_model_of_the_repository(models: Path) -> None:
    from qinfer.repository import Repository

    entries, problems = Repository(models).scan()
    assert problems == []
    built = {recipe.name: recipe.backend for recipe in RECIPES if not recipe.missing()}
    assert {entry.name: entry.config.backend for entry in entries} == built
