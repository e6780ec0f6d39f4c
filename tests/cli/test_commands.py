"""The commands as they are called: help, wrong use, checks before a start, doctor."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from qinfer.cli.app import EXIT_SETUP, app
from qinfer.cli.doctor import packages
from qinfer.cli.options import Size
from qinfer.cli.serve.options import ServeOptions
from qinfer.embedded import EmbeddedServer
from qinfer_gateway.options import GatewayOptions
from qinfer_workers.options import WorkerOptions

COMMANDS = ("doctor", "gateway", "infer", "models", "serve", "worker")

CONFIG = """
name: "%s"
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] }]
"""


def run(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environment, prog_name="qinfer")


def add_model(repository: Path, name: str, config: str = CONFIG) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text("class TritonPythonModel: ...")
    (repository / name / "config.pbtxt").write_text(config % name if "%s" in config else config)


def test_help_lists_every_command_with_examples() -> None:
    shown = run("--help").output
    for command in COMMANDS:
        assert f"\n  {command} " in shown
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "Examples:" in result.output


def test_a_role_is_not_imported_before_its_command_is_wanted() -> None:
    code = (
        "import sys; from qinfer.cli import main; print([m for m in sys.modules if m.startswith('qinfer_')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_version_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qinfer", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"qinfer, version {metadata.version('qinfer')}\n"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("serve", ServeOptions(repositories=())),
        ("gateway", GatewayOptions(nats="")),
        ("worker", WorkerOptions(nats="", repositories=())),
    ],
)
def test_a_command_has_the_options_and_defaults_of_its_role(name: str, options: Any) -> None:
    command = app.get_command(click.Context(app), name)
    assert command is not None
    chosen = command.make_context(name, [], resilient_parsing=True).params
    without_default = {"nats", "repositories", "log_level", "log_format"}
    given = {field: value for field, value in chosen.items() if field not in without_default}
    assert given.keys() == {field.name for field in fields(options)} - without_default
    assert {field: getattr(options, field) for field in given} == given


def test_every_option_has_a_variable(tmp_path: Path) -> None:
    result = run("serve", str(tmp_path), environment={"QINFER_HTTP_PORT": "99999"})
    assert result.exit_code == 2
    assert "Invalid value for '--http-port'" in result.output


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("65536", 65536), ("64K", 65536), ("64KiB", 65536), ("8 MiB", 8 << 20), ("1g", 1 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5M", "1T"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no size; expected for instance"):
        Size().convert(text, None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/place"], "model repository /no/such/place does not exist"),
        (["{file}"], "is not a directory"),
        (["{empty}"], "no model to serve in"),
        (["{good}/good"], "looks like a model; serve the folder it is in: "),
        (["{broken}"], "bad: "),
        (["{good}", "--model", "nope"], "--model nope: no such model in the repository; there are: good"),
        (["{broken}", "--model", "bad"], "--model bad: "),
        (["{good}", "--host", "0.0.0.0"], "--insecure to allow it"),
        (
            ["{good}", "--nats", "http://user:hunter2@host"],
            "--nats: expected a URL that starts with one of nats",
        ),
        (["{good}", "--http-port", "7", "--grpc-port", "7"], "expected three different ports"),
    ],
)
def test_serve_says_what_is_wrong_before_it_starts(
    arguments: Sequence[str], message: str, tmp_path: Path
) -> None:
    places = {name: tmp_path / name for name in ("file", "empty", "broken", "good")}
    places["file"].touch()
    places["empty"].mkdir()
    add_model(places["good"], "good")
    add_model(places["broken"], "bad", "nonsense: 1")
    result = run("serve", *(argument.format(**places) for argument in arguments))
    assert result.exit_code == EXIT_SETUP
    assert message in result.output
    assert "hunter2" not in result.output


def test_serve_says_when_the_program_of_the_broker_is_missing(tmp_path: Path) -> None:
    add_model(tmp_path, "good")
    result = run("serve", str(tmp_path), environment={"QINFER_NATS_SERVER": "/no/nats-server"})
    assert result.exit_code == EXIT_SETUP
    assert "QINFER_NATS_SERVER=/no/nats-server: expected an executable" in result.output


def test_a_url_on_the_command_line_beats_a_broker_in_the_environment() -> None:
    environment = {"QINFER_NATS": "nats://127.0.0.1:1"}
    result = run("models", "--url", "http://127.0.0.1:2", environment=environment)
    assert "no server answers at http://127.0.0.1:2" in result.output
    assert result.exit_code == 1


def doctor(
    *arguments: str, environment: dict[str, str] | None = None
) -> tuple[int, dict[str, dict[str, str]]]:
    result = run("doctor", "--json", *arguments, environment=environment)
    return result.exit_code, {finding["check"]: finding for finding in json.loads(result.stdout)}


def test_doctor_looks_at_everything(tmp_path: Path) -> None:
    add_model(tmp_path, "good")
    add_model(tmp_path, "bad", "nonsense: 1")
    status, found = doctor(str(tmp_path))
    assert status == 1
    assert found["model bad"]["status"] == "fail"
    assert "config.pbtxt" in found["model bad"]["detail"]
    expected = ("Python", "dependencies", "nats-server", "broker", "JetStream", "max_payload", "model good")
    assert {check: found[check]["status"] for check in expected} == dict.fromkeys(expected, "ok")
    assert {"GPU", "ports", "open files", "clock", "backend python"} <= found.keys()


async def test_doctor_looks_at_a_broker_and_keeps_its_password() -> None:
    async with EmbeddedServer() as server:
        _, found = await asyncio.to_thread(doctor, environment={"QINFER_NATS": server.url})
    assert found["broker"]["status"] == "ok"
    assert f"127.0.0.1:{server.port}: nats-server 2." in found["broker"]["detail"]
    assert server.url.split(":")[2].split("@")[0] not in json.dumps(found)


def test_doctor_fails_without_the_broker_that_is_named() -> None:
    status, found = doctor("--nats", "nats://user:hunter2@127.0.0.1:1")
    assert status == 1
    assert found["broker"]["status"] == "fail"
    assert "hunter2" not in json.dumps(found)


def test_doctor_names_ports_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from qinfer.cli.doctor import host

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(host, "default_ports", lambda: [port])
        (finding,) = [finding for finding in host.check() if finding.check == "ports"]
    assert finding.status == "warn"
    assert str(port) in finding.detail


def test_doctor_on_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"click": "8.0.5", "onnxruntime": "1.20", "onnxruntime-gpu": "1.20.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    found = {finding.check: finding for finding in packages.check()}
    assert found["dependencies"].status == "fail"
    assert "click 8.0.5 is older than 8.1" in found["dependencies"].detail
    assert "msgspec is missing" in found["dependencies"].detail
    assert found["extra onnx"].status == "ok"
    assert found["extra torch"].status == "info"
    assert found["extra torch"].advice.startswith("pip install 'qinfer[torch]'")
    conflict = found["extras onnx and gpu"]
    assert conflict.status == "fail"
    assert "exclude each other" in conflict.detail
