"""What `docs/scoring.md` tells its reader to type does what it says."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from qinfer.cli.app import app
from qinfer.cli.score import EXIT_INCOMPLETE, score
from qinfer.scoring import OnError, run
from qinfer.scoring.formats import base
from qinfer.scoring.plan import MAX_CHUNK
from qinfer_gateway.jobs.batch import BatchSpec
from tests.docs.pages import blocks, first_column, read, section
from tests.helpers import http
from tests.helpers.system import System
from tests.helpers.waiting import PATIENCE

PAGE = read("docs/scoring.md")
FILES = dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [line for block in blocks(PAGE, "sh") for line in block.splitlines() if " score " in line]


@pytest.fixture(scope="module")
def typed(scorer: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    """All commands of the page, in order, in a folder with the files of the page."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("page"))
        patched.setenv("QINFER_URL", f"http://{scorer.http}")
        (scorer.repository.parent / "data" / "reviews.jsonl").write_text(FILES["reviews.jsonl"])
        yield _type()


def _type() -> dict[str, Result]:
    for name in ("reviews.jsonl", "people.csv"):
        Path(name).write_text(FILES[name])
    Path("texts").mkdir()
    for name in ("one", "two"):
        Path("texts", name).write_text(f"Lovely {name}.")
    results = {}
    for line in COMMANDS:
        arguments = shlex.split(line)[1:]
        results[line] = CliRunner().invoke(app, arguments, prog_name="qinfer")
        while "--batch" in arguments and "no jobs at the moment" in results[line].output:
            results[line] = CliRunner().invoke(app, arguments, prog_name="qinfer")
        if "--dry-run" in arguments:
            assert not Path(arguments[2]).exists()
    return results


def test_what_is_typed_makes_what_is_shown(typed: dict[str, Result]) -> None:
    assert len(typed) == 7
    for line, result in typed.items():
        failed = "--on-error record" in line
        assert result.exit_code == (EXIT_INCOMPLETE if failed else 0), f"{line}:\n{result.output}"
    for name, text in FILES.items():
        assert Path(name).read_text() == text, name
    assert pq.read_table("churn.parquet").to_pydict() == {
        "name": ["Ann", "Bo"],
        "risk": [31 + 2700.5 + 4, 58 + 1900 + 11],
    }
    with Path("labels.csv").open(newline="") as file:
        assert [*csv.DictReader(file)] == [
            {"file": "one", "label": "good", "score": "1.0"},
            {"file": "two", "label": "good", "score": "1.0"},
        ]
    assert Path("scores.csv").read_text().splitlines() == ["rating", "1.0", "0.0", "3.0"]


def test_the_message_of_the_page(typed: dict[str, Result], scorer: System) -> None:
    Path("people.csv").write_text("name,age,income,visits\nAnn,31,1,1\nBo,old,1,1\n")
    arguments = ["score", "people.csv", "out.csv", "--model=churn", "--map=x=age,income,visits"]
    result = CliRunner().invoke(app, arguments, prog_name="qinfer")
    (message,) = re.findall(r"`(people\.csv: row 1: [^`]*)`", PAGE)
    assert message in result.output


def test_statuses_are_those_of_the_command() -> None:
    context = click.Context(score)
    epilog = score.get_help(context)
    for status in ("0", "1", "2", "3", "130, 143"):
        assert status in first_column(section(PAGE, "Exit status"))
        assert re.search(rf"^\s*{status}\s", epilog, re.MULTILINE)


def test_numbers_are_those_of_the_code() -> None:
    assert f"`max_batch_size`, at most {MAX_CHUNK};" in PAGE
    assert f"each of {base.CHUNK_BYTES >> 20} MiB" in PAGE
    assert f"the first {base.SAMPLE_ROWS} rows tell" in PAGE
    assert run.PART_SECONDS == 5.0
    assert "the last five seconds" in PAGE
    assert f"or {run.PART_ROWS:,} rows" in PAGE
    assert {f"`{each.value}`" for each in OnError} <= set(
        first_column(section(PAGE, "Rows that cannot be scored"))
    )
    options = {parameter.name: parameter for parameter in score.params}
    assert options["in_flight"].default == 8
    assert "eight are in flight" in PAGE
    assert f"`--patience` seconds ({options['patience'].default:g})" in PAGE


def test_formats_are_those_of_the_code() -> None:
    from qinfer.scoring.formats import _READERS, _WRITERS

    named = {cell.strip("`") for cell in first_column(section(PAGE, "Formats"))} - {"a folder"}
    assert named == set(_READERS) == set(_WRITERS)


def test_the_batch_job_of_the_page(scorer: System) -> None:
    data = scorer.repository.parent / "data"
    (data / "reviews.jsonl").write_text(FILES["reviews.jsonl"])
    ((path, body),) = re.findall(r"curl localhost:8000(\S+) -d '([^']*)'", PAGE)
    told = asyncio.run(_job(scorer.http_port, path, body.encode()))
    assert (told["state"], told["progress"]) == ("succeeded", {"done": 3, "total": 3, "failed": 0})
    assert pq.read_table(data / "labels.parquet").to_pylist() == [
        json.loads(line) for line in FILES["labels.jsonl"].splitlines()
    ]
    fields = {cell.strip("`") for cell in first_column(section(PAGE, "Batch jobs"))}
    assert {name for cell in fields for name in cell.split("`, `")} == set(BatchSpec.__struct_fields__)


async def _job(port: int, path: str, body: bytes) -> dict[str, Any]:
    async with http.connect(port) as connection:
        answer = await connection.ask(http.post(path, body))
        while answer.status == 503:  # jobs begin a moment after the gateway
            answer = await connection.ask(http.post(path, body))
        assert answer.status == 202, answer
        ended = await connection.ask(http.get(f"{answer.json()['status_url']}?wait={PATIENCE:g}"))
        told: dict[str, Any] = ended.json()
        return told
