"""The snippets of docs/model-repository.md do what the text around them says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qinfer.repository import Repository, pbtxt
from qinfer.repository.validate import WITHOUT_EFFECT, check

from .models import fault, write_model

PAGE = Path(__file__).parents[2] / "docs" / "model-repository.md"
BLOCK = re.compile(r"^```(\w+) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [match.groups() for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]
LABELS = "\n".join("0123456789")


def blocks(kind: str, model: str) -> list[str]:
    return [text for language, name, text in BLOCKS if (language, name) == (kind, model)]


def test_pbtxt_and_yaml_say_the_same(tmp_path: Path) -> None:
    configs = []
    for kind in ("pbtxt", "yaml"):
        (text,) = blocks(kind, "digits")
        directory = write_model(tmp_path / kind, "digits", text, filename=f"config.{kind}")
        (directory / "labels.txt").write_text(LABELS)
        configs.append(Repository(tmp_path / kind).load("digits").config)
    assert configs[0].proto == configs[1].proto
    assert configs[0].inputs == configs[1].inputs
    assert configs[0].outputs[0].labels == tuple("0123456789")


@pytest.mark.parametrize("text", blocks("pbtxt", ""))
def test_fragments_are_valid(text: str) -> None:
    faults = check(pbtxt.read(text, "fragment").message)
    assert faults == []


def test_what_has_no_effect_yet_is_listed() -> None:
    rows = [
        line.split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if "| no effect yet" in line
    ]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    assert listed - set(WITHOUT_EFFECT) == {name for names in WITHOUT_EFFECT.values() for name in names}


WRONG = [
    (language, text, BLOCKS[index + 1][2])
    for index, (language, name, text) in enumerate(BLOCKS)
    if name == "wrong"
]


@pytest.mark.parametrize(("language", "text", "expected"), WRONG)
def test_errors_read_as_shown(tmp_path: Path, language: str, text: str, expected: str) -> None:
    write_model(tmp_path, "wrong", text, filename=f"config.{language}", files=("model.py",))
    assert fault(tmp_path).replace("wrong/config", "models/wrong/config") == expected.rstrip("\n")


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (config,) = blocks("pbtxt", "digits")
    directory = write_model(tmp_path / "models", "digits", config)
    (directory / "labels.txt").write_text(LABELS)
    write_model(tmp_path / "models", "broken", None)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", "")
    exec(compile(code, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    assert "'shape': [-1, 28, 28]" in printed
    assert "'max_queue_delay_microseconds': 500" in printed
    assert "broken" in printed
