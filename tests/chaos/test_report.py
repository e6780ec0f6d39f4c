"""What is reported of a run: counts, tables, and the page that has them."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from loadtest import environment
from loadtest.chaos import cli, client, models, report, result
from loadtest.chaos.faults import FAULTS, Way, Window
from loadtest.chaos.judge import Violation
from loadtest.chaos.models import QUICK, Execution
from loadtest.chaos.records import GRACE, Intent, Outcome, Record
from loadtest.chaos.result import CALM, Result, summarise
from loadtest.chaos.run import LANES
from rich.console import Console

from qinfer.errors import ConfigError
from tests.docs.pages import blocks

PAGE = environment.ROOT / "docs" / "reliability.md"
KILL = Window(fault="worker-kill", target=0, began=110.0, undone=111.0, until=112.0)


def record(number: int, sent: float, outcome: Outcome = Outcome.RIGHT, **fields: object) -> Record:
    defaults = {"way": Way.HTTP, "intent": Intent.STEADY, "model": QUICK, "run": number, "version": 1}
    times = {"sent": sent, "ended": sent + 0.5, "deadline": sent + 12}
    return Record(**{"id": number, "outcome": outcome, **defaults, **times, **fields})  # type: ignore[arg-type]


def a_result(*troubles: Violation) -> Result:
    steady = [record(number, 100 + number / 10) for number in range(200)]
    records = [
        *steady,
        record(200, 110.2, way=Way.GRPC, keyed=True, sends=2),
        record(200, 110.8, way=Way.GRPC, keyed=True, intent=Intent.REPLAY),
        record(201, 105.0, Outcome.REFUSED, intent=Intent.HURRIED, reason="deadline_exceeded", status=504),
        record(202, 111.0, Outcome.REFUSED, reason="no_worker", status=503, pause=1.0),
        record(3, 111.0, Outcome.SPARE, way=Way.NATS),
    ]
    executions = [Execution(number, number, 100 + number / 10) for number in range(201)]
    return summarise(
        records,
        [*executions, Execution(101, 999, 110.5)],
        [KILL],
        troubles,
        end=120.0,
        seed=7,
        seconds=20,
        started="2026-11-22T10:00:00+00:00",
        commit="0123456789ab",
        machine=environment.machine(),
    )


def test_counts() -> None:
    done = a_result()
    assert done.requests == {"right": 202, "refused": 2}
    assert done.refused == {"deadline_exceeded": 1, "no_worker": 1}
    assert done.ways == {"http": 202, "grpc": 2}
    assert (done.keyed, done.replayed, done.spare, done.executions) == (1, 1, 1, 202)
    assert done.p50 == pytest.approx(0.5)
    assert done.faults == 1
    assert done.rows.keys() == {CALM, KILL.fault}
    calm, felt = done.rows[CALM], done.rows[KILL.fault]
    assert calm.requests + felt.requests == 204
    assert (calm.hurried, calm.refused, calm.again, calm.reruns) == (1, {}, 0, 0)
    assert (felt.hurried, felt.refused, felt.again, felt.reruns) == (0, {"no_worker": 1}, 1, 1)
    assert felt.caused == len(felt.gaps) == len(felt.recoveries) + felt.unrecovered == 1


def test_what_is_not_allowed_fails_the_run() -> None:
    done = a_result(Violation(kind="process", text="worker 1 was killed by SIGSEGV"))
    assert not done.passed
    assert done.violations == {"process": 1, "refused": 1}
    assert done.shown[0] == "worker 1 was killed by SIGSEGV"
    assert "no_worker" in done.shown[1]


def test_a_result_is_kept_as_json(tmp_path: Path) -> None:
    done = a_result()
    result.write(done, tmp_path / "r.json")
    assert result.read(tmp_path / "r.json") == done


def test_the_report_names_what_was_not_allowed() -> None:
    text = report.markdown(a_result())
    assert "# Chaos, seed 7" in text
    assert "during worker-kill: no_worker" in text
    assert FAULTS["worker-kill"].title in text


def test_the_terminal_shows_the_verdict() -> None:
    console = Console(width=250)
    with console.capture() as shown:
        report.show(a_result(), console)
    assert "FAILED: 1 refused" in shown.get()
    assert "worker: SIGKILL, started again" in shown.get()


def test_the_figures_of_several_runs_are_one_section() -> None:
    text = report.section([a_result(), a_result()])
    assert text.count("\n| 7 |") == 2
    assert "| worker: SIGKILL, started again | 2 |" in text, "the rows of all runs are added up"


def test_the_page_says_what_is_allowed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert report.replaced(page, report.ALLOWED, report.allowed()) == page, "python -m loadtest.chaos page"


def test_the_page_has_figures_of_runs_that_passed() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- {report.FIGURES} -->\n")
    figures, found, _ = rest.partition(f"<!-- /{report.FIGURES} -->\n")
    assert found
    seeds = [line.split("|") for line in figures.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert seeds
    for cells in seeds:
        assert [cell.strip() for cell in cells[6:10]] == ["0"] * 4, "lost, wrong, duplicate, not allowed"


def test_the_page_tells_the_numbers_that_the_clients_use() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    shortest, longest = client._DEADLINES
    quick, slow = client._HURRIED
    for text in (
        f"{sum(LANES.values())} requests in flight at most",
        f"a deadline of {shortest:.0f} to {longest:.0f} seconds",
        f"one in {1 / client._HURRIED_SHARE:.0f} has one of {quick * 1000:.0f} to {slow * 1000:.0f} ms",
        f"nothing within {GRACE[Way.HTTP]:.0f} seconds after its deadline; {GRACE[Way.NATS]:.0f} on NATS",
        f"one takes {models.SLOW_SECONDS * 1000:.0f} ms a batch",
    ):
        assert text in page
    assert client._KEYED_SHARE == 0.3, "three in ten"


def test_the_commands_of_the_page_are_understood() -> None:
    lines = [
        line for block in blocks(PAGE.read_text(encoding="utf-8"), "console") for line in block.splitlines()
    ]
    typed = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    chaos = [words[3:] for words in typed if words[:3] == ["python", "-m", "loadtest.chaos"]]
    made = [words for words in typed if words[0] == "make"]
    assert chaos
    assert made
    for arguments in chaos:
        cli.run.make_context("run", list(arguments))
    for words in made:
        told = subprocess.run(
            [*words, "-n"], cwd=environment.ROOT, capture_output=True, text=True, timeout=60, check=True
        ).stdout
        command = next(line for line in told.splitlines() if "-m loadtest.chaos" in line)
        context = cli.run.make_context("run", shlex.split(command)[3:])
        given = dict(word.split("=") for word in words[2:])
        assert str(context.params["seed"]) == given.get("SEED", "None")
        assert context.params["minutes"] == float(given.get("MINUTES", 3))


def test_the_page_is_rewritten(tmp_path: Path) -> None:
    page, kept = tmp_path / "page.md", tmp_path / "r.json"
    page.write_text("a\n<!-- faults -->\n<!-- /faults -->\nb\n<!-- chaos -->\nold\n<!-- /chaos -->\nc\n")
    result.write(a_result(), kept)
    done = CliRunner().invoke(cli.main, ["page", str(kept), "--into", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("a\n<!-- faults -->\n| to |")
    assert text.endswith("<!-- /chaos -->\nc\n")
    with pytest.raises(ConfigError, match="<!-- chaos -->"):
        report.replaced("no marks", report.FIGURES, "")


def test_figures_stay_when_only_what_is_allowed_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- faults -->\n<!-- /faults -->\n<!-- chaos -->\nold\n<!-- /chaos -->\n")
    assert CliRunner().invoke(cli.main, ["page", "--into", str(page)]).exit_code == 0
    assert "<!-- chaos -->\nold\n<!-- /chaos -->\n" in page.read_text()
