"""Many clients at once: batches form, and every counter tells the same story."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import numpy as np
from loadtest.mlp import example_rows, reference
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import http
from tests.helpers.http import Answer, Connection, infer, tensor
from tests.helpers.served_models import MLP, MLP_PATIENT, PICKY, RAISES
from tests.helpers.system import System

CLIENTS, REQUESTS = 64, 20


async def statistics(system: System, model: str) -> dict[str, Any]:
    async with http.connect(system.http_port) as connection:
        answer = await connection.ask(http.get(f"/v2/models/{model}/stats"))
    (stats,) = answer.json()["model_stats"]
    return dict(stats)


async def metrics(system: System, model: str) -> dict[str, float]:
    """Sums of the samples about a model, by name (and reason or outcome, where there is one)."""

    def scrape() -> str:
        with urllib.request.urlopen(system.metrics, timeout=20) as response:
            return str(response.read().decode())

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(scrape)):
        for sample in family.samples:
            if sample.labels.get("model") == model and "le" not in sample.labels:
                detail = sample.labels.get("reason") or sample.labels.get("outcome")
                key = f"{sample.name}[{detail}]" if detail else sample.name
                found[key] = found.get(key, 0) + sample.value
    return found


def request(model: str, row: Any, number: int) -> bytes:
    data = np.round(row.astype(float), 4).tolist()
    return infer(model, {"inputs": [tensor(data, "FP32", [1, len(data)])], "id": str(number)})


async def one_after_the_other(connection: Connection, requests: list[bytes]) -> list[Answer]:
    return [await connection.ask(request) for request in requests]


async def test_64_clients_fill_batches(system: System) -> None:
    rows = example_rows(CLIENTS)
    expected = reference(system.repository / MLP / "1" / "model.onnx", rows)
    before, scraped_before = await statistics(system, MLP_PATIENT), await metrics(system, MLP_PATIENT)
    async with asyncio.timeout(60):
        results = await asyncio.gather(*(client(system, rows[index], index) for index in range(CLIENTS)))
    for index, answers in enumerate(results):
        for number, answer in enumerate(answers):
            assert answer.json()["id"] == str(index * REQUESTS + number)
            np.testing.assert_allclose(answer.outputs()["y"], expected[index], rtol=1e-4, atol=1e-5)
    after, scraped_after = await statistics(system, MLP_PATIENT), await metrics(system, MLP_PATIENT)

    def grown(key: str) -> float:
        return scraped_after.get(key, 0) - scraped_before.get(key, 0)

    rows_answered = after["inference_count"] - before["inference_count"]
    batches = after["execution_count"] - before["execution_count"]
    assert rows_answered == CLIENTS * REQUESTS
    assert rows_answered / batches > 8, f"{batches} batches of {rows_answered} rows"
    assert grown("nv_inference_count") == rows_answered
    assert grown("nv_inference_exec_count") == batches
    assert grown("nv_inference_request_success") == rows_answered
    assert grown("qinfer_requests_total[ok]") == rows_answered
    assert grown("qinfer_request_duration_seconds_count[ok]") == rows_answered
    assert grown("qinfer_frame_requests_sum") == rows_answered
    assert grown("qinfer_batch_size_count") == batches
    assert grown("qinfer_batch_size_sum") == rows_answered
    assert sum(grown(key) for key in scraped_after if key.startswith("qinfer_batches_total")) == batches
    assert sum(grown(key) for key in scraped_after if "failure" in key) == 0
    for name, part in (
        ("request", "success"),
        ("queue", "queue"),
        ("compute_input", "compute_input"),
        ("compute_infer", "compute_infer"),
        ("compute_output", "compute_output"),
    ):
        told = after["inference_stats"][part]["ns"] // 1000
        assert scraped_after[f"nv_inference_{name}_duration_us"] == told
    assert sum(size["compute_infer"]["count"] for size in after["batch_stats"]) == after["execution_count"]
    assert (
        sum(size["batch_size"] * size["compute_infer"]["count"] for size in after["batch_stats"])
        == after["inference_count"]
    )
    assert scraped_after["qinfer_requests_in_flight"] == 0
    assert scraped_after["nv_inference_pending_request_count"] == 0


async def client(system: System, row: Any, index: int) -> list[Answer]:
    requests = [request(MLP_PATIENT, row, index * REQUESTS + number) for number in range(REQUESTS)]
    async with http.connect(system.http_port) as connection:
        return await one_after_the_other(connection, requests)


async def test_failures_are_counted_as_failures(system: System) -> None:
    before, scraped_before = await statistics(system, PICKY), await metrics(system, PICKY)
    bad = infer(PICKY, {"inputs": [tensor([RAISES], "FP32", [1, 1])]})
    good = infer(PICKY, {"inputs": [tensor([1.0], "FP32", [1, 1])]})
    async with http.connect(system.http_port) as connection:
        answers = await one_after_the_other(connection, [bad, good, bad, infer(PICKY, {})])
    assert [answer.status for answer in answers] == [500, 200, 500, 400]
    after, scraped_after = await statistics(system, PICKY), await metrics(system, PICKY)
    counted = [stats["inference_stats"] for stats in (before, after)]
    assert counted[1]["fail"]["count"] - counted[0]["fail"]["count"] == 2
    assert counted[1]["success"]["count"] - counted[0]["success"]["count"] == 1
    assert after["inference_count"] - before["inference_count"] == 1

    def grown(key: str) -> float:
        return scraped_after.get(key, 0) - scraped_before.get(key, 0)

    assert grown("nv_inference_request_failure[BACKEND]") == 2
    assert grown("nv_inference_request_success") == 1
    assert grown("qinfer_requests_total[model_failed]") == 2
    assert grown("qinfer_requests_total[invalid_request]") == 1
    assert grown("qinfer_requests_total[ok]") == 1
