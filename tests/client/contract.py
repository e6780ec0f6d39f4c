"""What every client does. Each way in runs this suite (see the neighbours)."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from qinfer.client import (
    AsyncClient,
    Client,
    JobOptions,
    JobState,
    ModelInfo,
    Options,
    Result,
    connect,
)
from qinfer.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    KeyReused,
    ModelFailed,
    ModelNotFound,
    NoWorker,
    QInferError,
    QueueFull,
    SetupError,
    Unsupported,
)
from qinfer.message import Request, Tensor, decode_request_frame
from qinfer.naming import Names
from tests.client.conftest import GONE
from tests.faults.load import began
from tests.helpers import served_models
from tests.helpers.served_models import AUTO, GATED, IDENTITY, MLP, PICKY, SAYS_ALL, SCALAR, VERSIONS, WHOLE
from tests.helpers.system import Fleet
from tests.helpers.waiting import PATIENCE, Mailbox, eventually
from tests.streams.models import COUNTS, GENERATES, ONE, SQUARE, lines

FP32 = IDENTITY["FP32"]
LARGE = 2_500_000  # numbers of 4 bytes: more than a message of the broker takes


def gated(gate: object) -> dict[str, list[list[str]]]:
    """Inputs of a request that is answered when the file `gate` is there."""
    return {"x": [[str(gate)]]}


@asynccontextmanager
async def overheard(running: Fleet, model: str) -> AsyncIterator[list[Request]]:
    """The requests for a model as they pass the broker, whoever sent them."""
    heard: list[Request] = []

    async def hear(message: Any) -> None:
        heard.extend(decode_request_frame(message.data).requests)

    client = await nats.connect(running.nats)
    await client.subscribe(Names(running.namespace).requests(model), cb=hear)
    await client.flush()
    try:
        yield heard
    finally:
        await client.close()


class ClientContract:
    """Subclasses say how a client finds a fleet."""

    def arguments(self, running: Fleet) -> tuple[str, dict[str, Any]]:
        """URL and options of a client of this way in."""
        raise NotImplementedError

    def connect(self, running: Fleet, **options: Any) -> AsyncClient:
        url, own = self.arguments(running)
        return connect(url, **{"timeout": PATIENCE, **own, **options})

    def connect_sync(self, running: Fleet, **options: Any) -> Client:
        url, own = self.arguments(running)
        return Client(url, **{"timeout": PATIENCE, **own, **options})

    async def test_an_answer(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            result = await client.infer(
                FP32, {"x": np.array([[1, 2]], np.float32)}, Options(request_id="mine")
            )
            assert (result.model, result.version, result.request_id) == (FP32, "1", "mine")
            assert result.outputs["y"].tolist() == result["y"].tolist() == [[1.0, 2.0]]
            with pytest.raises(KeyError):
                result["z"]

    @pytest.mark.parametrize(
        ("datatype", "value"),
        [
            ("FP32", [[0.5, -1.0]]),
            ("FP16", [[0.5, 2.0]]),
            ("BF16", [[0.5, 2.0]]),
            ("BYTES", [["text", b"\xff\x00"]]),
            ("BOOL", [[True, False]]),
            ("INT64", [[-(2**63), 2**63 - 1]]),
            ("UINT16", [[0, 65535]]),
        ],
    )
    async def test_values_come_back(self, running: Fleet, datatype: str, value: Any) -> None:
        async with self.connect(running) as client:
            found = (await client.infer(IDENTITY[datatype], {"x": value}))["y"].tolist()
        patterns = {"BF16": [[0x3F00, 0x4000]], "BYTES": [[b"text", b"\xff\x00"]]}
        assert found == patterns.get(datatype, value)

    async def test_raw_tensors_are_sent_as_they_are(self, running: Fleet) -> None:
        tensor = Tensor.from_numpy("x", np.ones((1, 2), np.float32))
        async with self.connect(running) as client:
            for _ in range(2):
                assert (await client.infer(FP32, [tensor]))["y"].tolist() == [[1.0, 1.0]]
        assert len(tensor.data) == 8

    async def test_models_without_batch_dimension(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            assert (await client.infer(WHOLE, {"x": np.zeros((2, 3), np.float32)}))["y"].sum() == 6
            assert (await client.infer(SCALAR, {"x": [[1, 2], [3, 4]]}))["y"].tolist() == [[1, 2], [3, 4]]

    async def test_options_arrive(self, running: Fleet) -> None:
        options = Options(
            request_id="id", priority=1, parameters={"text": "a", "number": 2, "yes": True}, outputs=["y"]
        )
        async with self.connect(running) as client:
            result = await client.infer(SAYS_ALL, {"x": [[1]]}, options)
            told = json.loads(result["y"][0, 0])
            assert told["parameters"] == {"text": "a", "number": 2, "yes": True}
            assert (told["id"], told["priority"]) == ("id", 1)
            assert result.parameters == {"said": True, "count": 3}
            for version in ("1", "2"):
                result = await client.infer(VERSIONS, {"x": [[3]]}, Options(version=version))
                assert (result.version, result["y"].tolist()) == (version, [[3.0 * int(version)]])
            assert (await client.infer(VERSIONS, {"x": [[3]]})).version == "2"

    @pytest.mark.parametrize(
        ("model", "inputs", "options", "kind", "message"),
        [
            ("nothing", {"x": [[1]]}, Options(), ModelNotFound, "'nothing'"),
            (PICKY, {"x": [[1]]}, Options(version="7"), ModelNotFound, "version"),
            (GONE, {"x": [[1]]}, Options(), NoWorker, "no live worker"),
            (PICKY, {"x": [[1, 2]]}, Options(), InvalidRequest, r"'x': shape \[1, 2\]; expected \[-1, 1\]"),
            (PICKY, {"x": np.ones((1, 1))}, Options(), InvalidRequest, "'x': found float64.*expected FP32"),
            (PICKY, {"z": [[1]]}, Options(), InvalidRequest, "'z' is not one of x"),
            (PICKY, {}, Options(), InvalidRequest, "no inputs; expected x"),
            (PICKY, {"x": [[1]]}, Options(outputs=["z"]), InvalidRequest, "output 'z' is not one of y"),
            (PICKY, {"x": [[served_models.REFUSED]]}, Options(), InvalidRequest, "fourteen"),
            (PICKY, {"x": [[served_models.RAISES]]}, Options(), ModelFailed, "thirteen"),
            (PICKY, {"x": [[1]]}, Options(timeout=0), InvalidRequest, "Options.timeout"),
            (PICKY, {"x": [[1]]}, Options(idempotency_key="ü"), InvalidRequest, "Idempotency-Key"),
            (PICKY, {"x": [[1]]}, Options(parameters={"timeout": 5}), InvalidRequest, "reserved"),
        ],
    )
    async def test_errors(
        self, running: Fleet, model: str, inputs: Any, options: Options, kind: type[QInferError], message: str
    ) -> None:
        async with self.connect(running, retries=0) as client:
            with pytest.raises(kind, match=message) as caught:
                await client.infer(model, inputs, options)
            assert type(caught.value) is kind

    async def test_a_deadline_that_passes(self, running: Fleet, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        try:
            async with self.connect(running) as client:
                with pytest.raises(DeadlineExceeded):
                    await client.infer(GATED, gated(gate), Options(timeout=0.3))
        finally:
            gate.touch()

    async def test_the_deadline_travels(self, running: Fleet) -> None:
        async with self.connect(running) as client, overheard(running, AUTO) as heard:
            await client.infer(AUTO, {"x": [[1]]}, Options(timeout=7.0))
            await eventually(lambda: heard, "the request passes")
        left = heard[0].deadline_us / 1e6 - time.time()
        assert 0 < left <= 7.0

    async def test_requests_beyond_the_limit_wait_or_are_refused(
        self, running: Fleet, tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        async with (
            self.connect(running, max_in_flight=1, when_full="raise") as refusing,
            self.connect(running, max_in_flight=1) as waiting,
        ):
            tasks = [asyncio.create_task(client.infer(GATED, gated(gate))) for client in (refusing, waiting)]
            await eventually(lambda: began(gate), "a batch is in work")
            with pytest.raises(QueueFull, match="max_in_flight"):
                await refusing.infer(FP32, {"x": [[1]]})
            with pytest.raises(DeadlineExceeded, match="max_in_flight"):
                await waiting.infer(FP32, {"x": [[1]]}, Options(timeout=0.1))
            third = asyncio.create_task(waiting.infer(FP32, {"x": [[1]]}))
            gate.touch()
            await asyncio.gather(*tasks, third)
            assert (await refusing.infer(FP32, {"x": [[1]]}))["y"].tolist() == [[1.0]]

    async def test_cancelling_takes_the_request_out_of_the_queue(
        self, running: Fleet, tmp_path: Path
    ) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        async with self.connect(running) as client:
            busy = asyncio.create_task(client.infer(GATED, gated(first)))
            await eventually(lambda: began(first), "a batch is in work")
            async with overheard(running, GATED) as heard:
                unwanted = asyncio.create_task(client.infer(GATED, gated(second)))
                await eventually(lambda: heard, "the second one is on its way")
            unwanted.cancel()
            with pytest.raises(asyncio.CancelledError):
                await unwanted
            # The notice is on its way when a later request that is sent the same way has been answered.
            await client.infer(FP32, {"x": [[1]]})
            first.touch()
            await busy
            assert (await client.infer(GATED, {"x": [[""]]}))["y"].tolist() == [[str(os.getpid()).encode()]]
            assert began(second) == []

    async def test_large_tensors(self, running: Fleet) -> None:
        values = np.arange(LARGE, dtype=np.float32).reshape(1, -1)
        async with self.connect(running) as client:
            result = await client.infer(FP32, {"x": values})
            assert np.array_equal(result["y"], values)
        broker = await nats.connect(running.nats)
        try:
            store = await broker.jetstream().stream_info(f"OBJ_qinfer_{running.namespace}_tensors")
            async with asyncio.timeout(PATIENCE):
                while store.state.messages:
                    await asyncio.sleep(0.01)
                    store = await broker.jetstream().stream_info(store.config.name)
        finally:
            await broker.close()

    async def test_a_thousand_at_once(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            results = await asyncio.gather(
                *(client.infer(IDENTITY["INT64"], {"x": [[number]]}) for number in range(1000))
            )
        assert [int(result["y"][0, 0]) for result in results] == list(range(1000))

    async def test_a_key_is_run_once(self, running: Fleet, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        options = Options(idempotency_key=f"key of {gate}")
        async with self.connect(running) as one, self.connect(running) as other:
            asked = [asyncio.create_task(each.infer(GATED, gated(gate), options)) for each in (one, other)]
            await eventually(lambda: began(gate), "a batch is in work")
            gate.touch()
            answers = [result["y"].tolist() for result in await asyncio.gather(*asked)]
            answers.append((await other.infer(GATED, gated(gate), options))["y"].tolist())
            assert answers == [answers[0]] * 3
            assert len(began(gate)) == 1
            with pytest.raises(KeyReused):
                await one.infer(GATED, gated(tmp_path / "another"), options)

    async def test_large_tensors_with_a_key(self, running: Fleet, tmp_path: Path) -> None:
        values = np.ones((1, LARGE), np.float32)
        async with self.connect(running) as client:
            for _ in range(2):
                result = await client.infer(FP32, {"x": values}, Options(idempotency_key=str(tmp_path)))
                assert np.array_equal(result["y"], values)

    async def test_who_has_cancelled_a_request_with_a_key_can_ask_again(
        self, running: Fleet, tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        options = Options(idempotency_key=f"key of {gate}")
        async with self.connect(running) as client:
            task = asyncio.create_task(client.infer(GATED, gated(gate), options))
            await eventually(lambda: began(gate), "a batch is in work")
            task.cancel()
            await asyncio.wait([task])
            gate.touch()
            await client.infer(GATED, gated(gate), options)
        assert len(began(gate)) == 1

    async def test_models(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            assert not await client.ready()  # one model has nobody
            known = {info.name: info for info in await client.models()}
            assert known[PICKY] == await client.model(PICKY)
            assert (known[PICKY].ready, known[GONE].ready) == (True, False)
            assert known[VERSIONS].versions == ("1", "2")
            assert (await client.model(VERSIONS, "1")).versions == ("1",)
            assert known[WHOLE].max_batch_size == 0
            assert [(spec.name, spec.datatype, spec.dims) for spec in known[WHOLE].inputs] == [
                ("x", "FP32", (2, 3))
            ]
            assert isinstance(known[MLP], ModelInfo)
            assert (known[MLP].platform, known[MLP].inputs[0].dims) == ("onnxruntime_onnx", (64,))
            with pytest.raises(ModelNotFound):
                await client.model("nothing")

    async def test_the_current_span_is_the_parent(self, running: Fleet) -> None:
        context = SpanContext(
            0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(0), trace_state=TraceState([("a", "b")])
        )
        async with self.connect(running) as client, overheard(running, AUTO) as heard:
            with trace.use_span(NonRecordingSpan(context)):
                await client.infer(AUTO, {"x": [[1]]})
            given = Options(traceparent=f"00-{1:032x}-{2:016x}-00")
            await client.infer(AUTO, {"x": [[1]]}, given)
            await client.infer(AUTO, {"x": [[1]]})
            await eventually(lambda: len(heard) == 3, "all requests pass")
        assert [request.traceparent for request in heard] == [
            f"00-{0xABC:032x}-{0xDEF:016x}-00",
            given.traceparent,
            "",
        ]
        assert heard[0].tracestate == "a=b"

    async def test_closing_cancels_what_is_in_flight(self, running: Fleet, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        client = self.connect(running)
        with pytest.raises(SetupError, match="not connected"):
            await client.infer(FP32, {"x": [[1]]})
        await client.start()
        with pytest.raises(SetupError, match="open"):
            await client.start()
        keys = ("", f"key of {gate}")
        tasks = [
            asyncio.create_task(client.infer(GATED, gated(gate), Options(idempotency_key=key)))
            for key in keys
        ]
        await eventually(lambda: began(gate), "a batch is in work")
        await client.close()
        await client.close()
        done, _ = await asyncio.wait(tasks, timeout=PATIENCE)
        gate.touch()
        assert [type(task.exception()) for task in done] == [Cancelled] * 2
        with pytest.raises(Cancelled):
            await client.infer(FP32, {"x": [[1]]})
        with pytest.raises(Cancelled):
            await client.models()

    # Streams

    async def test_responses_come_one_by_one(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            for count in (0, 1, 300):  # none, one, more than a window
                found = [
                    (result.model, result.version, result.request_id, int(result["i"][0]))
                    async for result in client.stream(COUNTS, {"n": [count]}, Options(request_id="a"))
                ]
                assert found == [(COUNTS, "1", "a", number) for number in range(count)]
            result = await anext(client.stream(COUNTS, {"n": [1]}, Options(parameters={"size": 3})))
            assert (result["i"].shape, result["blob"].tolist()) == ((1,), [0, 0, 0])
            assert set(result.parameters) == {"pid"}
            result = await anext(client.stream(COUNTS, {"n": [1]}, Options(outputs=["i"])))
            assert list(result.outputs) == ["i"]

    async def test_a_model_with_one_answer_has_a_stream_of_one(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            found = [result["OUT"].tolist() async for result in client.stream(ONE, {"IN": [4]})]
            assert found == [[8]]
            assert (await client.model(SQUARE)).decoupled
            with pytest.raises(Unsupported, match="decoupled"):
                await client.infer(SQUARE, {"IN": [1]})

    async def test_what_came_before_an_error_is_read(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            stream = client.stream(COUNTS, {"n": [5]}, Options(parameters={"raise_at": 2}))
            assert [int((await anext(stream))["i"][0]) for _ in range(2)] == [0, 1]
            with pytest.raises(ModelFailed, match="at 2"):
                await anext(stream)
            for model, kind in (("nothing", ModelNotFound), (GONE, NoWorker)):
                with pytest.raises(kind):
                    await anext(client.stream(model, {"x": [[1]]}, Options(timeout=0.2)))

    async def test_leaving_a_stream_stops_the_model(self, running: Fleet, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        parameters = {"journal": str(journal)}
        async with self.connect(running) as client:
            stream = client.stream(COUNTS, {"n": [10_000_000]}, Options(parameters=parameters))
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            await eventually(lambda: "c" in "".join(lines(journal)[-1:]), "the model has stopped")

    async def test_a_slow_reader_holds_the_model_up(self, running: Fleet, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        options = Options(parameters={"journal": str(journal), "size": 10_000})
        async with self.connect(running) as client:
            stream = client.stream(GENERATES, {"n": [600]}, options)
            await anext(stream)
            service = running.workers[0].services[GENERATES]
            await eventually(
                lambda: any(each.waits for each in list(service._streams._open)), "the model waits"
            )
            assert len(lines(journal)) < 550
            assert [int(result["i"][0]) async for result in stream] == list(range(1, 600))

    async def test_a_stream_has_a_deadline(self, running: Fleet, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        options = Options(timeout=0.5, parameters={"stop_at": 1, "gate": str(gate)})
        async with self.connect(running) as client:
            stream = client.stream(GENERATES, {"n": [2]}, options)
            assert int((await anext(stream))["i"][0]) == 0
            with pytest.raises(DeadlineExceeded):
                await anext(stream)
        gate.touch()

    async def test_streams_without_await(self, running: Fleet, tmp_path: Path) -> None:
        journal = tmp_path / "journal"

        def work() -> list[int]:
            with self.connect_sync(running) as client:
                options = Options(parameters={"journal": str(journal)})
                for _ in client.stream(COUNTS, {"n": [10_000_000]}, options):
                    break
                return [int(result["i"][0]) for result in client.stream(COUNTS, {"n": [100]})]

        assert await asyncio.to_thread(work) == list(range(100))
        await eventually(lambda: "c" in "".join(lines(journal)[-1:]), "the model has stopped")

    # Jobs

    async def test_a_job(self, running: Fleet) -> None:
        values = np.arange(3, dtype=np.float32).reshape(1, -1)
        async with self.connect(running) as client:
            record = await client.submit(
                FP32, {"x": values}, Options(priority=1), JobOptions(max_attempts=2, keep=200 / 3)
            )
            assert (record.model, record.version, record.priority) == (FP32, "", 1)
            assert record.created_us > 1_700_000_000_000_000
            result = await client.result(record.id)
            assert (result.model, result.version) == (FP32, "1")
            assert np.array_equal(result["y"], values)
            ended = await client.job(record.id, wait=PATIENCE)
            assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
            assert record.created_us <= ended.started_us <= ended.ended_us

    async def test_jobs_that_cannot_be(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            with pytest.raises(InvalidRequest, match="job option keep is -1; expected 0 to 604800 seconds"):
                await client.submit(FP32, {"x": [[1]]}, job=JobOptions(keep=-1))
            with pytest.raises(InvalidRequest, match="priority"):
                await client.submit(FP32, {"x": [[1]]}, Options(priority=-1))

    async def test_a_priority_that_is_none(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            with pytest.raises(InvalidRequest, match="priority: found -1; expected 0 or above"):
                await client.infer(FP32, {"x": [[1]]}, Options(priority=-1))

    async def test_a_job_that_runs(self, running: Fleet, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        async with self.connect(running) as client:
            record = await client.submit(GATED, gated(gate))
            await eventually(lambda: began(gate), "a batch is in work")
            assert (await client.job(record.id, wait=0.05)).ended_us == 0
            with pytest.raises(DeadlineExceeded, match=record.id):
                await client.result(record.id, timeout=0.05)
            gate.touch()
            assert (await client.result(record.id))["y"].shape == (1, 1)

    async def test_a_job_is_cancelled(self, running: Fleet, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        async with self.connect(running) as client:
            record = await client.submit(GATED, gated(gate))
            await eventually(lambda: began(gate), "a batch is in work")
            assert (await client.cancel(record.id)).state is JobState.CANCELLED
            assert (await client.cancel(record.id)).state is JobState.CANCELLED
            gate.touch()
            with pytest.raises(JobCancelled):
                await client.result(record.id)

    async def test_jobs_that_fail(self, running: Fleet) -> None:
        async with self.connect(running) as client:
            record = await client.submit(PICKY, {"x": [[served_models.RAISES]]})
            with pytest.raises(ModelFailed, match="thirteen"):
                await client.result(record.id)
            failed = await client.job(record.id)
            assert failed.state is JobState.FAILED
            assert failed.error is not None
            assert failed.error.reason == "model_failed"
            for unknown in ("0" * 32, "../models", ""):
                for ask in (client.job, client.result, client.cancel):
                    with pytest.raises(JobNotFound):
                        await ask(unknown)
            with pytest.raises(ModelNotFound):
                await client.submit("nothing", {"x": [[1]]})
            with pytest.raises(InvalidRequest, match="max_attempts"):
                await client.submit(FP32, {"x": [[1]]}, job=JobOptions(max_attempts=1000))

    async def test_what_a_job_failed_with_is_not_asked_for_again(
        self, running: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Although trying again would be safe, were it the question that failed."""
        gate = tmp_path / "gate"
        async with self.connect(running) as client:
            asked = Mailbox()
            monkeypatch.setattr(client, "_pause", asked)
            job = JobOptions(timeout=0.2, max_attempts=1)
            record = await client.submit(GATED, gated(gate), job=job)
            with pytest.raises(DeadlineExceeded):
                await client.result(record.id)
            gate.touch()
            assert asked.items == []

    async def test_a_job_with_a_key_is_one_job(self, running: Fleet, tmp_path: Path) -> None:
        options = Options(idempotency_key=str(tmp_path))
        async with self.connect(running) as client:
            records = [await client.submit(FP32, {"x": [[1]]}, options) for _ in range(2)]
            assert records[0].id == records[1].id
            with pytest.raises(KeyReused):
                await client.submit(FP32, {"x": [[2]]}, options)

    async def test_jobs_without_await(self, running: Fleet) -> None:
        def work() -> None:
            with self.connect_sync(running) as client:
                record = client.submit(FP32, {"x": [[1]]})
                assert client.result(record.id)["y"].tolist() == [[1.0]]
                assert client.job(record.id, wait=PATIENCE).state is JobState.SUCCEEDED
                assert client.cancel(record.id).state is JobState.SUCCEEDED

        await asyncio.to_thread(work)

    # Without await

    async def test_threads_share_a_client(self, running: Fleet) -> None:
        threads, each = 8, 20

        def ask(client: Client, first: int, results: dict[int, Result]) -> None:
            for number in range(first, first + each):
                results[number] = client.infer(IDENTITY["INT64"], {"x": [[number]]})

        def work() -> dict[int, Result]:
            results: dict[int, Result] = {}
            with self.connect_sync(running) as client:
                workers = [
                    threading.Thread(target=ask, args=(client, index * each, results))
                    for index in range(threads)
                ]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join(PATIENCE)
            return results

        results = await asyncio.to_thread(work)
        assert {number: int(result["y"][0, 0]) for number, result in results.items()} == {
            number: number for number in range(threads * each)
        }

    async def test_every_method_without_await(self, running: Fleet) -> None:
        def work() -> None:
            with self.connect_sync(running) as client:
                assert client.model(FP32).name == FP32
                assert FP32 in {info.name for info in client.models()}
                assert not client.ready()
                with pytest.raises(ModelNotFound):
                    client.infer("nothing", {"x": [[1]]})

        await asyncio.to_thread(work)

    async def test_closing_without_await_cancels_what_other_threads_wait_for(
        self, running: Fleet, tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        client = self.connect_sync(running)
        await asyncio.to_thread(client.start)
        waiting = asyncio.create_task(asyncio.to_thread(client.infer, GATED, gated(gate)))
        await eventually(lambda: began(gate), "a batch is in work")
        await asyncio.to_thread(client.close)
        await asyncio.to_thread(client.close)
        with pytest.raises(Cancelled):
            await waiting
        gate.touch()
        with pytest.raises(Cancelled):
            client.infer(FP32, {"x": [[1]]})
