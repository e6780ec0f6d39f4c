"""Every format is read and written; what is read again is what was written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qinfer.errors import InvalidRequest, QInferError
from qinfer.scoring import Columns, Settings
from qinfer.scoring.columns import ArrayColumn, Block, ListColumn
from qinfer.scoring.formats import Field, Reader, open_reader, writer_of
from tests.scoring.models import DOUBLE, ECHO, Server, doubling, echoing, model, score, spec


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


VECTORS = np.arange(22, dtype=np.float32).reshape(11, 2) + 0.5


def npy(path: Path) -> Path:
    np.save(path / "in.npy", VECTORS)
    return path / "in.npy"


def jsonl(path: Path) -> Path:
    lines = [json.dumps({"id": row, "x": vector.tolist()}) for row, vector in enumerate(VECTORS)]
    (path / "in.jsonl").write_text("\n".join(lines))
    return path / "in.jsonl"


def parquet(path: Path) -> Path:
    table = pa.table({"id": range(len(VECTORS)), "x": VECTORS.tolist()})
    pq.write_table(table, path / "in.parquet", row_group_size=3)
    return path / "in.parquet"


def comma(path: Path) -> Path:
    with (path / "in.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "x"])
        writer.writerows((row, json.dumps(vector.tolist())) for row, vector in enumerate(VECTORS))
    return path / "in.csv"


def folder(path: Path) -> Path:
    (path / "in" / "below").mkdir(parents=True)
    for row, vector in enumerate(VECTORS):
        np.save(path / "in" / ("below" if row > 5 else ".") / f"{chr(97 + row)}.npy", vector)
    return path / "in"


def read_npy(path: Path) -> Any:
    return np.load(path)


def read_jsonl(path: Path) -> Any:
    return np.array([json.loads(line)["y"] for line in path.read_text().splitlines()], dtype=np.float32)


def read_parquet(path: Path) -> Any:
    table = pq.read_table(path)
    assert table.schema.field("y").type == pa.list_(pa.float32())
    return np.array(table["y"].to_pylist(), dtype=np.float32)


def read_csv(path: Path) -> Any:
    with path.open(newline="") as file:
        return np.array([json.loads(row["y"]) for row in csv.DictReader(file)], dtype=np.float32)


def read_folder(path: Path) -> Any:
    return np.array([np.load(file) for file in sorted(path.rglob("*.npy"))])


WRITERS = [npy, jsonl, parquet, comma, folder]
READERS: dict[str, Callable[[Path], Any]] = {
    "out.npy": read_npy,
    "out.jsonl": read_jsonl,
    "out.parquet": read_parquet,
    "out.csv": read_csv,
    "out": read_folder,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("made", WRITERS)
async def test_any_format_to_any_other(tmp_path: Path, made: Callable[[Path], Path], name: str) -> None:
    server = doubling()
    ended = await score(made(tmp_path), tmp_path / name, DOUBLE, server)
    assert (ended.rows, ended.written, ended.failed, ended.fraction) == (11, 11, 0, 1.0)
    found = READERS[name](tmp_path / name)
    if made is folder:  # whose rows come in the order of their paths
        order = np.argsort([f"{'below/' if row > 5 else ''}{chr(97 + row)}" for row in range(len(VECTORS))])
        np.testing.assert_array_equal(found, 2 * VECTORS[order])
    else:
        np.testing.assert_array_equal(found, 2 * VECTORS)
    assert set(server.rows) <= {1, 2, 3, 4}
    assert sum(server.rows) == 11
    assert len(names(tmp_path)) == 2, "nothing but input and output is left"


@pytest.mark.parametrize("made", WRITERS)
def test_a_reader_begins_anywhere(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    reader = open_reader(made(tmp_path))
    name = "data" if "data" in reader.columns else "x"
    whole = [value for chunk in reader.read([name], 3) for value in chunk.columns[name].values()]
    for chunk in reader.read([name], 3):
        rest = [
            value
            for later in reader.read([name], 4, first=chunk.first + chunk.rows, begin=chunk.end)
            for value in later.columns[name].values()
        ]
        assert [str(value) for value in rest] == [str(v) for v in whole[chunk.first + chunk.rows :]]
    assert chunk.end == reader.extent
    reader.close()


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl", "out.parquet", "out.csv", "out"])
@pytest.mark.parametrize("suffix", ["npy", "jsonl", "parquet", "csv", ""])
async def test_no_rows(tmp_path: Path, suffix: str, name: str) -> None:
    source = tmp_path / (f"in.{suffix}" if suffix else "in")
    if suffix == "npy":
        np.save(source, VECTORS[:0])
    elif suffix == "parquet":
        pq.write_table(pa.table({"x": pa.array([], pa.list_(pa.float32()))}), source)
    elif suffix:
        source.write_text("x\n" if suffix == "csv" else "")
    else:
        source.mkdir()
    if suffix == "jsonl":  # nobody knows its columns
        with pytest.raises(InvalidRequest, match="found no column 'x'"):
            await score(source, tmp_path / name, DOUBLE, doubling())
        return
    ended = await score(source, tmp_path / name, DOUBLE, doubling())
    assert (ended.rows, ended.written, ended.fraction) == (0, 0, 1.0)
    assert len(READERS[name](tmp_path / name)) == 0


async def test_texts(tmp_path: Path) -> None:
    words = ["plain", "with, comma", 'with "quotes"', "with\nline", "Grüße", ""]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"x": word}) for word in words))
    await score(tmp_path / "in.jsonl", tmp_path / "one.csv", ECHO, echoing())
    columns = Settings(columns=Columns(inputs={"x": ["y"]}))
    await score(tmp_path / "one.csv", tmp_path / "two.parquet", ECHO, echoing(), columns)
    assert pq.read_table(tmp_path / "two.parquet")["y"].to_pylist() == words
    await score(tmp_path / "two.parquet", tmp_path / "three.jsonl", ECHO, echoing(), columns)
    found = [json.loads(line)["y"] for line in (tmp_path / "three.jsonl").read_text().splitlines()]
    assert found == words


async def test_files_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    contents = {"a.bin": b"\x00\xff", "b.txt": b"text", "c": b""}
    for name, content in contents.items():
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / ".hidden").write_bytes(b"no")
    binary = Settings(binary=True)
    await score(tmp_path / "in", tmp_path / "out", ECHO, echoing(), binary)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        f"{name}.bin": content for name, content in contents.items()
    }
    kept = Settings(binary=True, columns=Columns(keep=("file",)))
    await score(tmp_path / "in", tmp_path / "out.parquet", ECHO, echoing(), kept)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("y").type == pa.binary()
    assert dict(zip(table["file"].to_pylist(), table["y"].to_pylist(), strict=True)) == contents
    with pytest.raises(InvalidRequest, match=r"row 0: output 'y': found byte 0xff at 1; expected UTF-8"):
        await score(tmp_path / "in", tmp_path / "out.jsonl", ECHO, echoing())


async def test_kept_columns_keep_their_type(tmp_path: Path) -> None:
    when = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC"))
    table = pa.table(
        {
            "when": when,
            "money": pa.array([None], pa.decimal128(9, 2)),
            "x": [[1.0, 2.0]],
            "n": pa.array([7], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    keep = Settings(columns=Columns(keep=("when", "money", "n")))
    await score(tmp_path / "in.parquet", tmp_path / "out.parquet", DOUBLE, doubling(), keep)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.drop(["y"]).equals(table.drop(["x"]))
    await score(
        tmp_path / "in.parquet",
        tmp_path / "out.jsonl",
        DOUBLE,
        doubling(),
        Settings(columns=Columns(keep=("n", "money"))),
    )
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"n": 7, "money": None, "y": [2.0, 4.0]}


async def test_a_kept_column_of_two_types_is_told(tmp_path: Path) -> None:
    rows = [{"id": row, "x": [0, 1]} for row in range(150)]
    rows[120]["id"] = "last"
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keep = Settings(columns=Columns(keep=("id",)))
    with pytest.raises(InvalidRequest, match=r"in.jsonl: row 120: column 'id': found 'last'; expected int64"):
        await score(tmp_path / "in.jsonl", tmp_path / "out.parquet", DOUBLE, doubling(), keep)


async def test_outputs_of_every_datatype(tmp_path: Path) -> None:
    given = {
        "BOOL": np.array([True, False]),
        "UINT64": np.array([2**64 - 1, 0], dtype="<u8"),
        "INT64": np.array([-(2**63), 2**63 - 1]),
        "FP16": np.array([0.5, -2], dtype="<f2"),
        "BF16": np.array([0x3FC0, 0xC000], dtype="<u2"),
        "FP64": np.array([0.1, np.pi]),
    }
    signature = model([spec("x", "FP32")], [spec(name.lower(), name) for name in given])
    np.save(tmp_path / "in.npy", np.zeros(2, np.float32))

    class Typed(Server):
        async def __call__(self, inputs: Any) -> Any:
            from qinfer.message import Tensor

            return [Tensor.from_numpy(name.lower(), array, name) for name, array in given.items()]

    expected = {
        "bool": [True, False], "uint64": [2**64 - 1, 0], "int64": [-(2**63), 2**63 - 1],
        "fp16": [0.5, -2.0], "bf16": [1.5, -2.0], "fp64": [0.1, np.pi],
    }  # fmt: skip
    server = Typed(dict)
    await score(tmp_path / "in.npy", tmp_path / "out.parquet", signature, server)
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == expected
    await score(tmp_path / "in.npy", tmp_path / "out.jsonl", signature, server)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {name: [line[name] for line in lines] for name in expected} == expected
    await score(tmp_path / "in.npy", tmp_path / "out.csv", signature, server)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert rows[0] == {
        "bool": "true", "uint64": str(2**64 - 1), "int64": str(-(2**63)),
        "fp16": "0.5", "bf16": "1.5", "fp64": "0.1",
    }  # fmt: skip
    await score(tmp_path / "in.npy", tmp_path / "out", signature, server)
    for name, array in given.items():
        for row in range(2):
            assert np.load(tmp_path / "out" / f"{row:09d}.{name.lower()}.npy") == array[row]


async def test_vectors_of_vectors_and_of_different_lengths(tmp_path: Path) -> None:
    signature = model([spec("x", "FP32", -1, 2)], [spec("y", "FP32", -1, 2)])
    rows = [[[1, 2]] * length for length in (1, 1, 3, 2, 2, 0, 1)]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"x": row}) for row in rows))
    server = doubling()
    await score(tmp_path / "in.jsonl", tmp_path / "out.parquet", signature, server)
    found = pq.read_table(tmp_path / "out.parquet")["y"].to_pylist()
    assert found == [[[2.0, 4.0]] * len(row) for row in rows]
    assert server.rows == [2, 1, 1, 1, 1, 1], "rows of one shape share a request, within a chunk"
    with pytest.raises(QInferError, match=r"shapes .* which one array cannot hold"):
        await score(tmp_path / "in.jsonl", tmp_path / "out.npy", signature, doubling())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.npy", b"no array", "in.npy: no .npy file"),
        ("in.npy", b"\x93NUMPY\x01\x00", "in.npy: no .npy file"),
        ("in.parquet", b"PAR1", "in.parquet: no Parquet file"),
        ("in.csv", b"", "in.csv: line 1: found nothing; expected a name for each column"),
        ("in.csv", b"a,a\n", "found a, a; expected a name for each column, all different"),
        ("in.csv", b"a,\xff\n", "line 1: found byte 0xff at 2; expected UTF-8"),
        ("in.tsv", b"x", "in.tsv: expected a folder or a file of .npy, .jsonl, .parquet, .csv"),
        ("in.jsonl", None, "in.jsonl: cannot be read: No such file"),
        ("in.npy", None, "in.npy: cannot be read: No such file"),
        ("in.parquet", None, "in.parquet: cannot be read: No such file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        open_reader(tmp_path / name)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidRequest, match=r"no \.npy file: "):
        open_reader(tmp_path / "in.npy")


def test_what_is_read_at_once_is_bounded_by_bytes(tmp_path: Path) -> None:
    line = json.dumps({"x": "y" * (3 << 20)})
    (tmp_path / "in.jsonl").write_text("\n".join([line] * 7))
    np.save(tmp_path / "in.npy", np.zeros((7, 3 << 20), np.uint8))
    (tmp_path / "in").mkdir()
    for number in range(7):
        (tmp_path / "in" / str(number)).write_bytes(b"y" * (3 << 20))
    pq.write_table(pa.table({"x": ["y" * (3 << 20)] * 7}), tmp_path / "in.parquet", use_dictionary=False)
    for name in ("in.jsonl", "in.npy", "in", "in.parquet"):
        reader: Reader = open_reader(tmp_path / name)
        sizes = [chunk.rows for chunk in reader.read(list(reader.columns), 100)]
        assert sum(sizes) == 7
        assert max(sizes) <= 3, name
        reader.close()


def test_how_rows_came_does_not_show_in_parquet(tmp_path: Path) -> None:
    """Pages end where Arrow's arrays do, unless they are made one before they are written."""
    fields = [Field(name="y", output="y", datatype="FP32", dims=(8,)), Field(name="id", hint=pa.string())]
    values = np.random.default_rng(0).normal(size=(60_000, 8)).astype(np.float32)
    names = [str(row) * (row % 7) for row in range(len(values))]
    written = []
    for size in (100, 640, 60_000):
        writer = writer_of(tmp_path / "out.parquet", fields)
        part = writer.part(tmp_path / "part")
        for begin in range(0, len(values), size):
            rows = values[begin : begin + size]
            columns = {"y": ArrayColumn(rows), "id": ListColumn(names[begin : begin + size])}
            part.write(Block(rows=range(begin, begin + len(rows)), columns=columns))
        part.close()
        writer.join([tmp_path / "part"], tmp_path / "out.parquet")
        written.append((tmp_path / "out.parquet").read_bytes())
    assert written[0] == written[1] == written[2]
