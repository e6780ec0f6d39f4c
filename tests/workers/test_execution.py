from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinfer.datatypes import DATATYPES
from qinfer.errors import InvalidRequest
from qinfer.message import Request, Tensor, encode
from qinfer_workers.backends.base import OutputsWithParameters
from qinfer_workers.execution import Executor
from tests.workers.support import Members, StubInstance, answer, config_of, double, error_of, request_of


def column(datatype: str, rows: int) -> Any:
    """An output of `rows` rows of two elements, all different."""
    numbers = np.arange(rows * 2).reshape(rows, 2)
    if datatype == "BYTES":
        return np.array([[f"é{n}".encode() for n in row] for row in numbers], dtype=object)
    return numbers.astype(DATATYPES[datatype].dtype)


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_outputs_of_every_datatype_are_split_by_rows(datatype: str) -> None:
    config = config_of(outputs={"y": datatype})
    whole = column(datatype, 6)
    instance = StubInstance(lambda batch: {"y": whole})
    batch = Members(config).batch(request_of(1, rows=1), request_of(2, rows=3), request_of(3, rows=2))
    timing = Executor(config, instance).execute(batch)
    offset = 0
    for member in batch.members:
        ((name, kind, array),) = answer(member)
        assert (name, kind, array.dtype) == ("y", datatype, whole.dtype)
        assert array.tolist() == whole[offset : offset + member.rows].tolist()
        offset += member.rows
    assert (instance.executed, timing.executions) == ([[1, 2, 3]], 1)


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_outputs_of_any_layout(datatype: str) -> None:
    config = config_of(outputs={"y": datatype})
    whole = np.ascontiguousarray(column(datatype, 3).T).T[::-1]
    assert not whole.flags.c_contiguous
    batch = Members(config).batch(request_of(1), request_of(2, rows=2))
    Executor(config, StubInstance(lambda batch: {"y": whole})).execute(batch)
    arrays = [array.tolist() for member in batch.members for _, _, array in answer(member)]
    assert [row for array in arrays for row in array] == whole.tolist()


def test_inputs_are_joined_by_rows_and_read_only() -> None:
    config = config_of()
    seen = []
    executor = Executor(config, StubInstance(lambda batch: seen.append(batch.inputs["x"]) or double(batch)))
    batch = Members(config).batch(request_of(1), request_of(2, rows=2))
    executor.execute(batch)
    assert seen[0].tolist() == [[1, 1], [2, 2], [2, 2]]
    assert not seen[0].flags.writeable
    assert [answer(member)[0][2].tolist() for member in batch.members] == [[[2, 2]], [[4, 4], [4, 4]]]


def test_string_inputs_are_joined() -> None:
    config = config_of(inputs={"x": "BYTES"}, outputs={"y": "BYTES"}, dims=(1,))

    def named(number: int, *texts: bytes) -> Request:
        return Request(
            number, "", [Tensor.from_numpy("x", np.array([[text] for text in texts], dtype=object))]
        )

    batch = Members(config).batch(named(1, b"a"), named(2, b"bb", b""))
    Executor(config, StubInstance(lambda batch: {"y": batch.inputs["x"]})).execute(batch)
    assert [answer(member)[0][2].tolist() for member in batch.members] == [[[b"a"]], [[b"bb"], [b""]]]


def test_a_model_without_batch_dimension_gives_its_output_whole() -> None:
    config = config_of(max_batch_size=0, outputs={"y": "FP32", "n": "INT64"})
    batch = Members(config).batch(
        Request(1, "", [Tensor.from_numpy("x", np.ones(2, np.float32))]), batched=False
    )
    scalar = np.array(7)
    Executor(config, StubInstance(lambda batch: {"y": np.zeros((5, 3), np.float32), "n": scalar})).execute(
        batch
    )
    (_, _, y), (_, _, n) = answer(batch.members[0])
    assert y.shape == (5, 3)
    assert (n.shape, int(n)) == ((), 7)


def test_members_get_the_outputs_they_want() -> None:
    config = config_of(outputs={"y": "FP32", "z": "FP32"})
    batch = Members(config).batch(request_of(1, outputs=["z"]), request_of(2), request_of(3, outputs=["y"]))
    instance = StubInstance(lambda batch: {"y": batch.inputs["x"], "z": -batch.inputs["x"]})
    Executor(config, instance).execute(batch)
    assert [[name for name, _, _ in answer(member)] for member in batch.members] == [["z"], ["y", "z"], ["y"]]


@given(
    st.integers(1, 16).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(1, n)))),
)
def test_only_the_guilty_are_refused(case: tuple[int, set[int]]) -> None:
    count, guilty = case

    def run(batch: Any) -> Any:
        bad = guilty & {member.request.id for member in batch.members}
        if bad:
            raise ValueError(f"cannot bear {sorted(bad)}")
        return double(batch)

    config = config_of(max_batch_size=16)
    instance = StubInstance(run)
    batch = Members(config).batch(*(request_of(number) for number in range(1, count + 1)))
    Executor(config, instance).execute(batch)
    for member in batch.members:
        number = member.request.id
        if number in guilty:
            assert error_of(member) == ("model_failed", f"model 'stub': ValueError: cannot bear [{number}]")
        else:
            assert answer(member)[0][2].tolist() == [[2.0 * number] * 2]
    # A tree of halves: for each culprit at most one path down and the siblings beside it.
    depth = (count - 1).bit_length()
    assert len(instance.executed) <= 1 + 2 * depth * len(guilty)
    if not guilty:
        assert len(instance.executed) == 1


def test_a_half_that_nobody_waits_for_is_not_run_again() -> None:
    def leave(batch: Any) -> Any:
        for member in batch.members[2:]:
            member.cancelled = True
        raise ValueError("no")

    instance = StubInstance(lambda batch: leave(batch) if len(batch.members) > 2 else double(batch))
    batch = Members(config_of()).batch(*(request_of(number) for number in range(1, 5)))
    Executor(config_of(), instance).execute(batch)
    assert instance.executed == [[1, 2, 3, 4], [1, 2]]
    assert [member.response.error is None for member in batch.members] == [True, True, False, False]
    assert error_of(batch.members[3])[0] == "cancelled"


def test_one_culprit_of_eight_costs_seven_executions() -> None:
    def run(batch: Any) -> Any:
        if any(member.request.id == 3 for member in batch.members):
            raise InvalidRequest("three is not a number")
        return double(batch)

    config = config_of()
    instance = StubInstance(run)
    batch = Members(config).batch(*(request_of(number) for number in range(1, 9)))
    Executor(config, instance).execute(batch)
    assert instance.executed == [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [1, 2, 3, 4],
        [1, 2],
        [3, 4],
        [3],
        [4],
        [5, 6, 7, 8],
    ]
    assert error_of(batch.members[2]) == ("invalid_request", "three is not a number")


@pytest.mark.parametrize(
    ("output", "shape"), [(np.zeros((3, 2), np.float32), r"\[3, 2\]"), (np.float32(1).reshape(()), r"\[\]")]
)
def test_a_wrong_number_of_rows_is_the_models_fault(output: Any, shape: str) -> None:
    config = config_of()
    batch = Members(config).batch(request_of(1, rows=2))
    Executor(config, StubInstance(lambda batch: {"y": output})).execute(batch)
    reason, message = error_of(batch.members[0])
    assert reason == "model_failed"
    assert f"has shape {shape}; expected 2 rows".replace("\\", "") in message


def test_results_one_a_member() -> None:
    refusal = InvalidRequest("no")

    def run(batch: Any) -> Any:
        first, _, third = batch.members
        return [
            OutputsWithParameters({"y": first.inputs["x"]}, parameters={"tokens": 3}),
            refusal,
            {"y": third.inputs["x"], "z": third.inputs["x"]},
        ]

    config = config_of(outputs={"y": "FP32", "z": "FP32"})
    instance = StubInstance(run)
    batch = Members(config).batch(request_of(1), request_of(2), request_of(3, rows=2, outputs=["z"]))
    Executor(config, instance).execute(batch)
    first, second, third = batch.members
    assert answer(first)[0][2].tolist() == [[1, 1]]
    assert first.response is not None
    assert first.response.parameters == {"tokens": 3}
    assert error_of(second) == ("invalid_request", "no")
    ((name, _, array),) = answer(third)
    assert (name, array.tolist()) == ("z", [[3, 3], [3, 3]])
    assert len(instance.executed) == 1


def test_a_members_output_of_a_wrong_type_is_its_own() -> None:
    wrong = {"y": np.zeros((1, 2), np.complex64)}
    config = config_of()
    batch = Members(config).batch(request_of(1), request_of(2))
    instance = StubInstance(lambda batch: [{"y": batch.members[0].inputs["x"]}, wrong])
    Executor(config, instance).execute(batch)
    assert error_of(batch.members[1])[0] == "model_failed"
    assert answer(batch.members[0])[0][2].tolist() == [[1, 1]]
    assert len(instance.executed) == 1


@pytest.mark.parametrize("result", [None, [], 3])
def test_results_that_are_none(result: object) -> None:
    config = config_of()
    batch = Members(config).batch(request_of(1), request_of(2))
    Executor(config, StubInstance(lambda batch: result)).execute(batch)
    assert [error_of(member)[0] for member in batch.members] == ["model_failed"] * 2


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("error", [SystemExit(3), Unprintable(), MemoryError(), ValueError("caf\udce9")])
def test_whatever_model_code_raises_is_an_answer(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")  # half a character in a test's report is more than pytest-xdist can send

    def run(batch: Any) -> Any:
        raise error

    config = config_of()
    batch = Members(config).batch(request_of(1), request_of(2))
    Executor(config, StubInstance(run)).execute(batch)
    for member in batch.members:
        reason, message = error_of(member)
        assert reason == "model_failed"
        assert type(error).__name__ in message
        encode(member.response)  # type: ignore[arg-type]


def test_responses_say_which_delivery_they_answer() -> None:
    config = config_of()
    members = Members(config)
    batch = members.batch(request_of(1))
    batch.members = [members.of(request_of(5, attempt=2), attempt=3)]
    Executor(config, StubInstance(double)).execute(batch)
    assert batch.members[0].response is not None
    assert (batch.members[0].response.id, batch.members[0].response.attempt) == (5, 5)


def test_times_are_counted_retries_included() -> None:
    def run(batch: Any) -> Any:
        if len(batch.members) > 1:
            raise ValueError
        return double(batch)

    config = config_of()
    batch = Members(config).batch(request_of(1), request_of(2))
    timing = Executor(config, StubInstance(run)).execute(batch)
    assert timing.executions == 2
    assert min(timing.input_ns, timing.infer_ns, timing.output_ns) > 0


def test_closing_closes_the_instance() -> None:
    instance = StubInstance(double)
    Executor(config_of(), instance).close()
    assert instance.closed
