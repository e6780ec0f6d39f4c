"""The seeded perceptron, which has no configuration file: its signature comes from the ONNX file."""

from __future__ import annotations

from loadtest import mlp

from examples.showcase.direct import OnnxFile
from examples.showcase.stage import Row, Stage, measure

MODEL = mlp.MODEL_NAME


def run(stage: Stage) -> list[Row]:
    """Send rows of the load test."""
    rows = mlp.example_rows(stage.requests)
    requests = [{mlp.INPUT_NAME: row[None]} for row in rows]
    direct = OnnxFile(stage.repository / MODEL / "1" / "model.onnx")
    expected = [direct.run(inputs) for inputs in requests]
    report = []
    for client in stage.clients:
        measured = measure(stage, client, MODEL, requests, expected)
        first = measured.answers[0][mlp.OUTPUT_NAME][0]
        answered = " ".join(f"{value:.2f}" for value in first[:4]) + " …"
        asked = f"{len(rows)} rows of {rows.shape[1]} floats"
        report.append(measured.row(stage, client, MODEL, asked=asked, answered=answered))
    return report
