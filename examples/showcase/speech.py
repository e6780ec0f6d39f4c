"""silero-vad: where in a recording somebody speaks, from many streams at once, each with its own state."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from examples.showcase.clients import Tensors
from examples.showcase.direct import ABSOLUTE, Direct, OnnxFile, TorchScriptFile
from examples.showcase.samples import speech
from examples.showcase.stage import Row, Stage

ONNX, TORCH = "silero_vad", "silero_vad_torch"
RATE = 16_000
STEP = 512
CONTEXT = 64
STREAMS = 16
STEPS = 60

_INPUTS, _OUTPUTS = ("input", "state"), ("output", "stateN")
_SPEECH = 0.5

Floats: TypeAlias = NDArray[np.float32]
Infer: TypeAlias = Callable[[Sequence[Tensors]], Sequence[Tensors]]
"""Answers to the requests of all streams for one step."""


def windows(samples: Floats) -> Iterator[Floats]:
    """The network's windows over some streams, FP32 [streams, 576]: 64 samples already seen and 512 new ones.

    Args:
        samples: FP32 [streams, n], 16 kHz; what does not fill a step at the end is left out.
    """
    padded = np.pad(samples, ((0, 0), (CONTEXT, 0)))
    for start in range(0, samples.shape[1] - STEP + 1, STEP):
        yield padded[:, start : start + CONTEXT + STEP]


def listen(samples: Floats, infer: Infer) -> tuple[Floats, list[float]]:
    """Run all streams to their end, one step of each side by side.

    Returns:
        Probability of speech, FP32 [streams, steps], and the seconds each step took.
    """
    states = [np.zeros((1, 2, 128), dtype=np.float32) for _ in samples]
    probabilities, seconds = [], []
    for window in windows(samples):
        requests = [{"input": row[None], "state": state} for row, state in zip(window, states, strict=True)]
        started = time.perf_counter()
        answers = infer(requests)
        seconds.append(time.perf_counter() - started)
        states = [answer["stateN"] for answer in answers]
        probabilities.append([answer["output"][0, 0] for answer in answers])
    return np.array(probabilities, dtype=np.float32).T, seconds


def streams(path: Path) -> Floats:
    """Cuts of one recording, FP32 [STREAMS, STEPS * 512], as if that many people were on the line."""
    samples = speech(path)
    length = STEPS * STEP
    starts = np.linspace(0, len(samples) - length, STREAMS).astype(int)
    return np.stack([samples[start : start + length] for start in starts])


def run(stage: Stage) -> list[Row]:
    """Listen to the recording over every transport, with the ONNX network and, where served, with torch."""
    samples = streams(stage.repository / ONNX / "speech.wav")
    rows = []
    for model in (ONNX, TORCH):
        if model in stage.models:
            rows += _run_model(stage, model, samples)
    return rows


def _run_model(stage: Stage, model: str, samples: Floats) -> list[Row]:
    version = stage.repository / model / "1"
    direct: Direct = (
        OnnxFile(version / "model.onnx")
        if model == ONNX
        else TorchScriptFile(version / "model.pt", inputs=_INPUTS, outputs=_OUTPUTS)
    )
    expected, _ = listen(samples, lambda requests: [direct.run(inputs) for inputs in requests])
    rows = []
    for client in stage.clients:
        lone = stage.statistics.read(model)
        _, latencies = listen(
            samples[:1],
            lambda requests: [client.infer(model, inputs, _OUTPUTS) for inputs in requests],  # noqa: B023  called here
        )
        stage.statistics.wait(model, lone, STEPS)
        before = stage.statistics.read(model)
        found, _ = listen(samples, lambda requests: client.infer_many(model, requests, _OUTPUTS))  # noqa: B023  called here
        batches = stage.statistics.wait(model, before, found.size)
        speaking = 100 * float((found > _SPEECH).mean())
        rows.append(
            Row(
                model=model,
                backend=stage.models[model],
                via=client.via,
                asked=f"{len(samples)} streams, {STEPS * STEP / RATE:.1f} s each",
                answered=f"{speaking:.0f} % speech",
                latency_ms=1e3 * statistics.median(latencies),
                batches=batches,
                wrong=int((np.abs(found - expected) > ABSOLUTE).sum()),
                answers=found.size,
            )
        )
        if model == ONNX and client is stage.clients[0]:
            stage.console.print(_drawing(found))
    return rows


def _drawing(probabilities: Floats) -> Text:
    text = Text("Speech (█) and pauses (·) in four of the streams\n", style="italic")
    for row in probabilities[:: max(1, len(probabilities) // 4)]:
        text.append("".join("█" if value > _SPEECH else "·" for value in row) + "\n", style="not italic")
    return text
