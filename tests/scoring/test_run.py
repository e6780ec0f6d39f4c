"""Runs: order, bounds, errors, and going on after an end at any moment."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow.parquet import ParquetFile

from qinfer.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotFound,
    NoWorker,
    Poisoned,
    QInferError,
    QueueFull,
    Unavailable,
)
from qinfer.scoring import Columns, OnError, Progress, Refused, Run, Settings, make_plan, run
from qinfer.scoring.formats import parquet
from tests.helpers.waiting import eventually
from tests.scoring.models import DOUBLE, ECHO, Server, doubling, echoing, model, score, spec

RECORD = Settings(on_error=OnError.RECORD)
SKIP = Settings(on_error=OnError.SKIP)


def vectors(path: Path, count: int) -> Path:
    np.save(path / "in.npy", np.arange(2 * count, dtype=np.float32).reshape(count, 2))
    return path / "in.npy"


def lines(path: Path, *rows: Any) -> Path:
    (path / "in.jsonl").write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path / "in.jsonl"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Order and bounds


async def test_order_is_kept_when_answers_are_not(tmp_path: Path) -> None:
    waiting: list[asyncio.Future[None]] = []

    class Backwards(Server):
        async def __call__(self, inputs: Any) -> Any:
            waiting.append(asyncio.get_running_loop().create_future())
            mine = waiting[-1]
            if len(waiting) == 5:  # the last is answered first
                while waiting:
                    waiting.pop().set_result(None)
            await mine
            return await super().__call__(inputs)

    server = Backwards(lambda x: {"y": 2 * x})
    await score(vectors(tmp_path, 200), tmp_path / "out.npy", DOUBLE, server, in_flight=5)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), 2 * np.load(tmp_path / "in.npy"))


@pytest.mark.parametrize("count", [200, 2000])
async def test_what_is_held_does_not_grow_with_the_file(tmp_path: Path, count: int) -> None:
    stuck = asyncio.Event()

    class Stuck(Server):
        async def __call__(self, inputs: Any) -> Any:
            if len(self.rows) == 20:
                self.rows.append(0)
                await stuck.wait()  # the first in order: nothing behind it can be written
            return await super().__call__(inputs)

    server = Stuck(lambda x: {"y": x})
    scoring = Run(
        make_plan(vectors(tmp_path, count), tmp_path / "out.npy", DOUBLE, Settings()), server, in_flight=5
    )
    running = asyncio.create_task(scoring())
    await eventually(lambda: scoring.held == 5 and len(server.rows) > 20, "it waits")
    before = len(server.rows)
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(server.rows) <= before + 5, "it reads on while nothing is written"
    stuck.set()
    assert (await running).rows == count
    assert scoring.most_held == 5
    assert server.most <= 5
    assert scoring.held == 0


async def test_requests_have_as_many_rows_as_the_model_takes(tmp_path: Path) -> None:
    server = doubling()
    await score(vectors(tmp_path, 10), tmp_path / "out.npy", DOUBLE, server)
    assert sorted(server.rows) == [2, 4, 4]
    small = doubling()
    await score(tmp_path / "in.npy", tmp_path / "two.npy", DOUBLE, small, Settings(chunk=3))
    assert sorted(small.rows) == [1, 3, 3, 3]


async def test_a_model_without_batch_dimension_is_asked_row_by_row(tmp_path: Path) -> None:
    whole = model([spec("x", "FP32", 2)], [spec("y", "FP32", 2)], max_batch_size=0)
    shapes = []

    def answer(x: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append(x.shape)
        return {"y": 2 * x}

    await score(vectors(tmp_path, 3), tmp_path / "out.npy", whole, Server(answer))
    assert shapes == [(2,)] * 3
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), 2 * np.load(tmp_path / "in.npy"))


async def test_progress_is_told(tmp_path: Path) -> None:
    told: list[Progress] = []
    await score(vectors(tmp_path, 10), tmp_path / "out.npy", DOUBLE, doubling(), told=told.append)
    assert [progress.rows for progress in told] == [0, 4, 8, 10]
    assert {progress.total for progress in told} == {10}
    source = lines(tmp_path, *[{"x": [1, 2]}] * 10)
    told.clear()
    await score(source, tmp_path / "out.jsonl", DOUBLE, doubling(), told=told.append)
    assert [progress.total for progress in told] == [None] * 4
    assert [round(progress.fraction, 2) for progress in told] == [0.0, 0.4, 0.8, 1.0]


# Rows that cannot be scored

BAD = [
    {"x": [1, 2]},
    "{no json",
    {"x": [1, 13]},
    {"x": "abc"},
    {"x": [5, 6]},
    {"z": 1},
    {"x": [1, 2, 3]},
    {"x": None},
    [1, 2],
    {"x": [7, 8]},
]


def picky() -> Server:
    def answer(x: np.ndarray) -> dict[str, np.ndarray]:
        if 13 in x:
            raise ModelFailed("thirteen")
        return {"y": 2 * x}

    return Server(answer)


async def test_rows_that_fail_are_recorded(tmp_path: Path) -> None:
    source = lines(tmp_path, *BAD)
    ended = await score(source, tmp_path / "out.jsonl", DOUBLE, picky(), RECORD)
    assert (ended.rows, ended.written, ended.failed) == (10, 3, 7)
    assert [row["y"] for row in read(tmp_path / "out.jsonl")] == [[2, 4], [10, 12], [14, 16]]
    told = {row["row"]: (row["reason"], row["message"]) for row in read(tmp_path / "out.jsonl.errors.jsonl")}
    assert list(told) == [1, 2, 3, 5, 6, 7, 8]
    assert told[2] == ("model_failed", "thirteen")
    for row, message in {
        1: "found '{no json', which is not JSON",
        3: "field 'x': found 'abc'; expected FP32 of shape [2]",
        5: "field 'x': found nothing; expected FP32 of shape [2]",
        6: "field 'x': found shape [3]; expected FP32 of shape [2]",
        7: "field 'x': found null; expected FP32 of shape [2]",
        8: "found '[1, 2]'; expected a JSON object",
    }.items():
        assert told[row][0] == "invalid_request"
        assert message in told[row][1]


async def test_rows_that_fail_are_skipped(tmp_path: Path) -> None:
    ended = await score(lines(tmp_path, *BAD), tmp_path / "out.jsonl", DOUBLE, picky(), SKIP)
    assert (ended.written, ended.failed) == (3, 7)
    assert names(tmp_path) == {"in.jsonl", "out.jsonl"}


async def test_the_first_row_that_fails_ends_the_run(tmp_path: Path) -> None:
    source = lines(tmp_path, *[{"x": [1, 2]}] * 9, {"x": [1, 13]}, "{")
    with pytest.raises(ModelFailed, match=r"in\.jsonl: row 9: thirteen"):
        await score(source, tmp_path / "out.jsonl", DOUBLE, picky())
    assert not (tmp_path / "out.jsonl").exists()


async def test_errors_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    await score(lines(tmp_path, *BAD), tmp_path / "out.jsonl", DOUBLE, picky(), RECORD)
    await score(lines(tmp_path, BAD[0]), tmp_path / "out.jsonl", DOUBLE, picky(), RECORD, restart=True)
    assert names(tmp_path) == {"in.jsonl", "out.jsonl"}


async def test_a_request_that_kills_workers_is_not_taken_apart(tmp_path: Path) -> None:
    server = doubling()
    server.failing = [Poisoned("it kills")]
    ended = await score(vectors(tmp_path, 8), tmp_path / "out.npy", DOUBLE, server, RECORD, in_flight=1)
    assert (ended.written, ended.failed) == (4, 4)
    assert server.rows == [4, 4]


async def test_what_is_no_rows_fault_ends_the_run(tmp_path: Path) -> None:
    server = doubling()
    server.failing = [ModelNotFound("gone")]
    with pytest.raises(ModelNotFound):
        await score(vectors(tmp_path, 8), tmp_path / "out.npy", DOUBLE, server, RECORD, in_flight=1)
    assert (await score(tmp_path / "in.npy", tmp_path / "out.npy", DOUBLE, doubling(), RECORD)).rows == 8


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was paused between tries; it is not really."""
    slept: list[float] = []
    really = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
        await really(0)

    monkeypatch.setattr("asyncio.sleep", sleep)
    return slept


async def test_what_is_worth_it_is_tried_again(tmp_path: Path, pauses: list[float]) -> None:
    server = doubling()
    server.failing = [QueueFull("full", retry_after=3.0), NoWorker("none"), DeadlineExceeded("late")]
    await score(vectors(tmp_path, 4), tmp_path / "out.npy", DOUBLE, server)
    assert server.rows == [4] * 4
    assert len(pauses) == 3
    assert pauses[0] > 2


async def test_patience_ends(tmp_path: Path, pauses: list[float]) -> None:
    server = doubling()
    server.failing = [NoWorker("none")] * 100
    with pytest.raises(NoWorker):
        await score(vectors(tmp_path, 4), tmp_path / "out.npy", DOUBLE, server, RECORD, patience=0)
    assert len(server.rows) == 1


async def test_a_row_that_is_always_late_is_found(tmp_path: Path, pauses: list[float]) -> None:
    def answer(x: np.ndarray) -> dict[str, np.ndarray]:
        if 6.0 in x:
            raise DeadlineExceeded("late")
        return {"y": x}

    ended = await score(vectors(tmp_path, 8), tmp_path / "out.npy", DOUBLE, Server(answer), RECORD)
    assert (ended.written, ended.failed) == (7, 1)
    (told,) = read(tmp_path / "out.npy.errors.jsonl")
    assert told == {"row": 3, "reason": "deadline_exceeded", "message": "late"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: {"y": x[:, :1]},
            r"output 'y': found FP32 of shape \[1, 1\]; expected FP32 of shape \[1, 2\]",
        ),
        (lambda x: {"y": x.astype(np.int32)}, "found INT32 of shape"),
        (lambda x: {"z": x}, "the answer has no output 'y'"),
    ],
)
async def test_answers_that_are_none(
    tmp_path: Path, pauses: list[float], answer: Callable[..., Any], message: str
) -> None:
    with pytest.raises(QInferError, match=message):
        await score(vectors(tmp_path, 4), tmp_path / "out.npy", DOUBLE, Server(answer), Settings(chunk=4))


# Going on


async def interrupted(source: Path, target: Path, settings: Settings, behind: int) -> None:
    """A run that is cancelled once so many rows are done."""
    scoring: asyncio.Task[Progress]

    def told(progress: Progress) -> None:
        if progress.rows >= behind:
            scoring.cancel()

    scoring = asyncio.create_task(score(source, target, DOUBLE, doubling(), settings, told=told))
    with pytest.raises(asyncio.CancelledError):
        await scoring


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl", "out.csv", "out.parquet", "out"])
async def test_what_is_done_is_not_done_again(tmp_path: Path, name: str) -> None:
    source = vectors(tmp_path, 100)
    await score(source, tmp_path / f"whole_{name}", DOUBLE, doubling())
    for behind in (20, 60):
        await interrupted(source, tmp_path / name, Settings(), behind)
        assert not (tmp_path / name).exists()
    server = doubling()
    told: list[Progress] = []
    ended = await score(source, tmp_path / name, DOUBLE, server, told=told.append)
    assert (ended.rows, ended.written) == (100, 100)
    assert told[0].rows >= 60
    assert sum(server.rows) == 100 - told[0].rows
    assert contents(tmp_path / name) == contents(tmp_path / f"whole_{name}")
    assert not (tmp_path / f"{name}.progress").exists()


def contents(path: Path) -> Any:
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return path.read_bytes()


CHANGES: dict[str, Callable[[Path], tuple[Any, Settings]]] = {
    "input": lambda path: (lines(path, *[{"x": [3, 4]}] * 40), Settings()),
    "model": lambda path: (model(DOUBLE.inputs, DOUBLE.outputs, max_batch_size=4), Settings()),
    "on-error": lambda path: (None, SKIP),
    "keep": lambda path: (None, Settings(columns=Columns(keep=("id",)))),
    "mapping": lambda path: (None, Settings(columns=Columns(inputs={"x": ["w"]}))),
    "columns": lambda path: (None, Settings(columns=Columns(outputs={"z": "y"}))),
    "bytes": lambda path: (None, Settings(binary=True)),
}


@pytest.mark.parametrize("changed", CHANGES)
async def test_another_run_is_refused(tmp_path: Path, changed: str) -> None:
    source = lines(tmp_path, *[{"x": [1, 2], "id": 1, "w": [0, 0]}] * 40)
    await interrupted(source, tmp_path / "out.jsonl", Settings(), 20)
    other, settings = CHANGES[changed](tmp_path)
    signature = DOUBLE
    if changed == "model":
        signature = replace(other, versions=("2",))
    with pytest.raises(
        Refused, match=f"is of a run with other .*{changed}: was .*, is .*--restart begins anew"
    ):
        await score(source, tmp_path / "out.jsonl", signature, doubling(), settings)
    server = doubling()
    await score(source, tmp_path / "out.jsonl", signature, server, settings, restart=True)
    assert sum(server.rows) == 40


async def test_a_run_may_be_gone_on_with_in_smaller_requests(tmp_path: Path) -> None:
    source = vectors(tmp_path, 40)
    await interrupted(source, tmp_path / "out.npy", Settings(), 20)
    await score(source, tmp_path / "out.npy", DOUBLE, doubling(), Settings(chunk=1), in_flight=2)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), 2 * np.load(source))


async def test_a_run_that_did_nothing_stands_in_nobodys_way(tmp_path: Path) -> None:
    source = lines(tmp_path, {"x": "no vector", "w": [1, 2]}, {"x": [1, 2], "w": [3, 4]})
    with pytest.raises(InvalidRequest, match="row 0"):
        await score(source, tmp_path / "out.jsonl", DOUBLE, doubling())
    (tmp_path / "out.jsonl").write_text("precious")
    mended = Settings(columns=Columns(inputs={"x": ["w"]}))
    with pytest.raises(Refused, match="is there already"):
        await score(source, tmp_path / "out.jsonl", DOUBLE, doubling(), mended)
    (tmp_path / "out.jsonl").unlink()
    await score(source, tmp_path / "out.jsonl", DOUBLE, doubling(), mended)
    assert read(tmp_path / "out.jsonl") == [{"y": [2, 4]}, {"y": [6, 8]}]


@pytest.mark.parametrize("name", ["in.npy", "sub/../in.npy", "link.npy"])
async def test_an_output_never_replaces_its_input(tmp_path: Path, name: str) -> None:
    source = vectors(tmp_path, 4)
    before = source.read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.npy").symlink_to(source)
    with pytest.raises(InvalidRequest, match="is the input; expected another name"):
        await score(source, tmp_path / name, DOUBLE, doubling(), restart=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["texts/out.jsonl", "texts/sub/out", "link/out.npy"])
async def test_an_output_is_none_of_its_inputs(tmp_path: Path, name: str) -> None:
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "texts")
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(InvalidRequest, match="is in the folder of inputs"):
        await score(tmp_path / "texts", tmp_path / name, ECHO, echoing())
    assert names(tmp_path / "texts") == {"sub", "a.txt"}


async def test_a_decoupled_model_is_asked_nothing(tmp_path: Path) -> None:
    server = doubling()
    many = replace(DOUBLE, decoupled=True)
    with pytest.raises(InvalidRequest, match="is decoupled"):
        await score(vectors(tmp_path, 4), tmp_path / "out.npy", many, server, RECORD)
    assert server.rows == []
    assert names(tmp_path) == {"in.npy"}


async def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.jsonl")
    with pytest.raises(InvalidRequest, match="found a pipe or device"):
        await score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", DOUBLE, doubling())


async def test_an_output_is_not_overwritten_unasked(tmp_path: Path) -> None:
    source = vectors(tmp_path, 4)
    (tmp_path / "out.npy").write_text("precious")
    with pytest.raises(Refused, match=r"out\.npy: is there already; --restart replaces it"):
        await score(source, tmp_path / "out.npy", DOUBLE, doubling())
    assert (tmp_path / "out.npy").read_text() == "precious"
    await score(source, tmp_path / "out.npy", DOUBLE, doubling(), restart=True)
    assert len(np.load(tmp_path / "out.npy")) == 4
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(Refused, match="there is such a folder with something in it already"):
        await score(source, tmp_path / "out", DOUBLE, doubling(), restart=True)
    with pytest.raises(Refused, match="there is no folder"):
        await score(source, tmp_path / "no" / "out.npy", DOUBLE, doubling())


async def test_two_at_once_are_refused(tmp_path: Path) -> None:
    source = vectors(tmp_path, 4)
    stuck = asyncio.Event()

    async def wait(inputs: Any) -> Any:
        stuck.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(score(source, tmp_path / "out.npy", DOUBLE, wait))
    await stuck.wait()
    with pytest.raises(Unavailable, match="another process is at it"):
        await score(source, tmp_path / "out.npy", DOUBLE, doubling())
    with pytest.raises(Unavailable, match="another process is at it"):
        await score(source, tmp_path / "out.npy", DOUBLE, doubling(), restart=True)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await score(source, tmp_path / "out.npy", DOUBLE, doubling())).rows == 4


async def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", "out.npy")

    source = vectors(tmp_path, 4)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match="No space left on device"):
            await score(source, tmp_path / "out.npy", DOUBLE, doubling())
    assert (await score(source, tmp_path / "out.npy", DOUBLE, doubling())).rows == 4


async def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    source = vectors(tmp_path, 4)
    (tmp_path / "out.npy.progress").mkdir()
    (tmp_path / "out.npy.progress" / "journal.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(Refused, match="is none of ours"):
        await score(source, tmp_path / "out.npy", DOUBLE, doubling())
    (tmp_path / "out.npy.progress" / "journal.jsonl").write_text('{"version": 9, "run": {}}\n')
    with pytest.raises(Refused, match="of version 9; expected 1"):
        await score(source, tmp_path / "out.npy", DOUBLE, doubling())


async def test_a_line_of_the_journal_that_was_cut_is_none(tmp_path: Path) -> None:
    source, target = vectors(tmp_path, 100), tmp_path / "out.npy"
    await interrupted(source, target, Settings(), 20)
    append(tmp_path / "out.npy.progress" / "journal.jsonl", '{"first": 20, "last": 1')
    await interrupted(source, target, Settings(), 60)
    await score(source, target, DOUBLE, doubling())
    np.testing.assert_array_equal(np.load(target), 2 * np.load(source))


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


async def test_half_a_chunk_is_not_kept(tmp_path: Path) -> None:
    signature = model([spec("x", "FP32", -1)], [spec("y", "FP32", -1)])
    source = lines(tmp_path, *[{"x": [1, 2]}] * 6, {"x": [1]}, {"x": [1]})
    with pytest.raises(InvalidRequest, match="which one array cannot hold"):
        await score(source, tmp_path / "out.npy", signature, doubling(), in_flight=1)
    (head,) = read(tmp_path / "out.npy.progress" / "journal.jsonl")
    assert "run" in head, "the second chunk's first two rows were written, so nothing of the part counts"


@pytest.mark.parametrize("rows", [4, 12])
async def test_parts_do_not_show_in_the_output(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 7)
    texts = lines(tmp_path, *[{"x": f"{row}" * row} for row in range(30)])
    await score(texts, tmp_path / "whole.parquet", ECHO, echoing())
    monkeypatch.setattr(run, "PART_ROWS", rows)
    await score(texts, tmp_path / "out.parquet", ECHO, echoing())
    assert contents(tmp_path / "out.parquet") == contents(tmp_path / "whole.parquet")
    found = ParquetFile(tmp_path / "out.parquet").metadata
    assert [found.row_group(group).num_rows for group in range(found.num_row_groups)] == [7, 7, 7, 7, 2]


# Dying at any moment


class Died(BaseException):
    """Nothing that the process does from now on reaches the disk."""


@contextmanager
def dying(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The process dies before the given step of those that change what is on the disk; the steps it did."""
    steps: list[str] = []

    def mortal(holder: Any, name: str) -> None:
        original = getattr(holder, name)

        def replaced(*arguments: Any, **options: Any) -> Any:
            if len(steps) >= step:
                raise Died
            steps.append(name)
            return original(*arguments, **options)

        patched.setattr(holder, name, replaced)

    with monkeypatch.context() as patched:
        for name in ("write", "ftruncate"):
            mortal(os, name)
        for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "hardlink_to"):
            mortal(Path, name)
        yield steps


@pytest.mark.parametrize("name", ["out.jsonl", "out"])
async def test_it_may_die_before_any_step(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PART_ROWS", 8)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the process dies, not the machine
    source = lines(tmp_path, *[{"x": [row, 13 if row in (3, 17) else 0]} for row in range(18)])
    await score(source, tmp_path / f"whole_{name}", DOUBLE, picky(), RECORD)
    expected = contents(tmp_path / f"whole_{name}"), contents(tmp_path / f"whole_{name}.errors.jsonl")
    for step in range(500):
        target = tmp_path / f"{step}" / name
        target.parent.mkdir()
        try:
            with dying(step, monkeypatch) as steps:
                await score(source, target, DOUBLE, picky(), RECORD, in_flight=1)
        except Died:
            try:
                await score(source, target, DOUBLE, picky(), RECORD)
            except Refused as error:
                assert "already" in str(error), steps  # noqa: PT017 (it had finished)
                assert not any(target.parent.glob("*.progress")), steps
            found = contents(target), contents(target.with_name(f"{name}.errors.jsonl"))
            assert found == expected, steps
            assert names(target.parent) == {name, f"{name}.errors.jsonl"}, steps
        else:
            assert step > 20
            return
    raise AssertionError("it never came to its end")
