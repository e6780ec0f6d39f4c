"""The file of API keys, and `qinfer keys`."""

from __future__ import annotations

import json
import logging
import re
import shlex
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qinfer.cli.app import app
from qinfer.errors import ConfigError, Forbidden, RateLimited
from qinfer.keys import Grant, Permission, digest, new_key, parse_keys, read_keys
from qinfer.message import Request
from qinfer_gateway.auth.access import Access
from qinfer_gateway.auth.limiter import RateLimit
from qinfer_gateway.auth.principal import ANONYMOUS, Principal
from qinfer_gateway.http.limits import MIN_RATE, ConnectionLimits
from qinfer_gateway.options import GatewayOptions
from tests.docs.pages import blocks, read, section

SHA = "ab" * 32


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "line 2: expected YAML"),
        ("keys: {}", "keys: Expected `array"),
        ("key: []", "unknown field `key`"),
        ("7", "Expected `object`"),
        (f"keys: [{{sha256: {SHA}}}]", "missing required field `name`"),
        ("keys: [{name: a}]", r"keys\[0\]: neither sha256 nor certificate"),
        ("keys: [{name: a, sha256: secret}]", r"keys\[0\].sha256"),
        (f"keys: [{{name: '', sha256: {SHA}}}]", r"keys\[0\].name"),
        (f"keys: [{{name: a, sha256: {SHA}, model: x}}]", "unknown field `model`"),
        (f"keys: [{{name: a, sha256: {SHA}, models: x}}]", r"keys\[0\].models"),
        (f"keys: [{{name: a, sha256: {SHA}, permissions: [root]}}]", r"keys\[0\].permissions\[0\]"),
        (f"keys: [{{name: a, sha256: {SHA}, rate: 0}}]", r"keys\[0\].rate"),
        (f"keys: [{{name: a, sha256: {SHA}, rate: fast}}]", r"keys\[0\].rate"),
        (f"keys: [{{name: a, sha256: {SHA}, burst: 3}}]", r"keys\[0\].burst"),
        (f"keys: [{{name: a, sha256: {SHA}, expires: 2030-01-01}}]", r"keys\[0\].expires"),
        (f"keys: [{{name: a, sha256: {SHA}, expires: 2030-01-01 00:00:00}}]", r"keys\[0\].expires"),
        (
            f"keys: [{{name: a, sha256: {SHA}}}, {{name: a, certificate: c}}]",
            r"keys\[1\].name: found 'a' twice",
        ),
        (f"keys: [{{name: a, sha256: {SHA}}}, {{name: b, sha256: {SHA.upper()}}}]", r"keys\[1\].sha256"),
        ("keys: [{name: a, certificate: c}, {name: b, certificate: c}]", r"keys\[1\].certificate"),
        ("keys: !!python/object/apply:os.getpid []", "expected YAML"),
        ("a: &a [*a]\nkeys: *b", "expected YAML"),
    ],
)
def test_what_a_file_may_not_say(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^F: .*{told}") as refused:
        parse_keys(text, "F")
    assert "secret" not in refused.value.message
    assert SHA not in refused.value.message


def test_what_a_file_may_say() -> None:
    assert parse_keys("", "F") == parse_keys("keys:", "F") == parse_keys("keys: []", "F") == ()
    (text,) = blocks(read("docs/security.md"), "yaml")
    ci, operator = parse_keys(text, "F")
    assert (ci.models, ci.rate, ci.burst, ci.priority_ceiling) == (("mlp", "text-*"), 100, 200, 2)
    assert ci.expires == datetime(2030, 1, 31, tzinfo=UTC)
    assert ci.permissions == (Permission.INFERENCE,)
    assert operator.certificate == "operator.example.com"


def test_fields_are_those_of_the_page() -> None:
    (table,) = [part for part in read("docs/security.md").split("\n\n") if part.startswith("| field |")]
    listed = set(re.findall(r"`([a-z0-9_]+)`", " ".join(row.split("|")[1] for row in table.splitlines())))
    from qinfer.keys import KeyEntry

    assert listed == set(KeyEntry.__struct_fields__)
    (token,) = blocks(read("docs/security.md"), "json")
    assert set(json.loads(token)["qinfer"]) == set(Grant.__struct_fields__)


def test_whom_a_file_may_belong_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("keys: []")
    for mode in (0o600, 0o640, 0o400):
        path.chmod(mode)
        assert read_keys(path) == ()
    assert not caplog.records
    path.chmod(0o644)
    assert read_keys(path) == ()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"mode 0{mode:o}"):
            read_keys(path)
    for other in (tmp_path, tmp_path / "nobody"):
        with pytest.raises(ConfigError, match=str(other)):
            read_keys(other)


def test_keys_are_long_and_random() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"qk_[A-Za-z0-9_-]{43}", key) for key in made)


# What a principal may do


def test_patterns_of_models() -> None:
    principal = Principal("a", Grant(models=("mlp", "text-*", "v?", "[ab]x")))
    allowed = ["mlp", "text-", "text-a/b", "v1", "ax"]
    refused = ["MLP", "mlp2", "xmlp", "text", "v", "v12", "cx", "", "mlp\n", "a\nmlp"]
    assert [model for model in (*allowed, *refused) if principal.allows(model)] == allowed
    assert not Principal("nobody", Grant()).allows("")
    assert ANONYMOUS.allows("anything\nat all")
    for number in range(5000):  # clients choose the names
        principal.allows(str(number))
    assert len(principal._known) <= 1024
    with pytest.raises(Forbidden):
        principal.require_model("bert")


def test_priorities_are_held_to_the_ceiling() -> None:
    asked = (0, 1, 2, 3, 9)

    def given(ceiling: int) -> list[int]:
        principal = Principal("a", Grant(priority_ceiling=ceiling))
        requests = [Request(id=1, request_id="", inputs=[], priority=priority) for priority in asked]
        for request in requests:
            principal.stamp(request)
        return [request.priority for request in requests]

    assert given(0) == list(asked)
    assert given(1) == list(asked)
    assert given(3) == [0, 3, 3, 3, 9]


def test_tenants_are_apart_unless_told_otherwise() -> None:
    """Answers under idempotency keys are kept by tenant."""
    assert Principal("a", Grant()).tenant == "a"
    assert Principal("a", Grant(tenant="t")).tenant == "t"


def test_a_bucket_fills_up_with_time() -> None:
    limit = RateLimit(10.0, 3)
    assert [limit.take(5.0) for _ in range(3)] == [0, 0, 0]
    assert limit.take(5.0) == pytest.approx(0.1)
    assert limit.take(5.05) == pytest.approx(0.05)
    assert limit.take(5.1) == 0
    assert limit.take(5.1) > 0
    assert [limit.take(1000.0) for _ in range(4)][-1] > 0  # never more than the burst
    assert RateLimit(0.5).burst == 1
    assert RateLimit(2.5).burst == 3


def test_a_refused_request_takes_nothing() -> None:
    principal = Principal("a", Grant(), RateLimit(1e-6, 1))
    principal.check_rate()
    principal.take()
    for refuse in (principal.take, principal.check_rate, principal.take):
        with pytest.raises(RateLimited) as refused:
            refuse()
        assert refused.value.retry_after == pytest.approx(1e6, rel=0.01)


def test_two_kinds_of_credentials_of_one_entry() -> None:
    text = f"keys: [{{name: a, sha256: {digest(b'k').hex()}, certificate: c, models: ['*']}}]"
    access = Access(parse_keys(text, "F"))
    by_key = access.identify({b"x-api-key": b"k"}, (), Permission.INFERENCE)
    assert access.identify({}, ("other", "c"), Permission.INFERENCE) is by_key


# The command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def run(file: Path, *arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["keys", arguments[0], "--keys-file", str(file), *arguments[1:]])
    assert result.exit_code == status, result.output
    return result


def test_a_key_is_made_shown_and_revoked(file: Path) -> None:
    result = run(
        file, "create", "ci", "--model", "text-*", "--model", "mlp", "--rate", "5", "--burst", "7",
        "--tenant", "é", "--priority-ceiling", "2", "--days", "30", "--permission", "management",
        "--certificate", "ci.example.com",
    )  # fmt: skip
    key = result.stdout.strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    (entry,) = read_keys(file)
    assert bytes.fromhex(entry.sha256) == digest(key.encode())
    assert (entry.name, entry.models, entry.rate, entry.burst) == ("ci", ("text-*", "mlp"), 5, 7)
    assert (entry.tenant, entry.priority_ceiling, entry.certificate) == ("é", 2, "ci.example.com")
    assert entry.permissions == (Permission.MANAGEMENT,)
    assert entry.expires is not None
    assert 29 <= (entry.expires - datetime.now(UTC)).days <= 30
    (row,) = json.loads(run(file, "list", "--json").stdout)
    assert row["name"] == "ci"
    assert entry.sha256 not in run(file, "list", "--json").stdout
    assert "text-* mlp" in run(file, "list").stdout
    run(file, "revoke", "ci")
    assert read_keys(file) == ()
    run(file, "create", "next", "--model", "*")
    assert [entry.name for entry in read_keys(file)] == ["next"]


WRITTEN = f"""# ours
keys:
# the first
- name: a   # why
  sha256: {SHA}
  models: [x,
    y]

# the second
- {{name: b, certificate: c}}
- name: c
  certificate: d
# the end
"""


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_what_people_wrote_stays(file: Path, name: str) -> None:
    file.touch(0o640)
    file.write_text(WRITTEN)
    run(file, "create", "new", "--model", "*")
    assert file.read_text().startswith(WRITTEN)
    run(file, "revoke", name)
    assert [entry.name for entry in read_keys(file)] == [
        other for other in ("a", "b", "c", "new") if other != name
    ]
    kept = [line for line in WRITTEN.splitlines() if line.startswith("#")]
    assert [line for line in file.read_text().splitlines() if line.startswith("#")] == kept
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_file_of_another_shape_is_left_alone(file: Path) -> None:
    text = f"{{keys: [{{name: a, sha256: {SHA}}}, {{name: b, certificate: c}}]}}"
    file.touch(0o600)
    file.write_text(text)
    for arguments in (("create", "new", "--model", "*"), ("revoke", "a")):
        run(file, *arguments, status=2)
        assert file.read_text() == text
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "a"), "--model"),
        (("create", "b", "--model", "*"), "found 'b' twice"),
        (("create", "a", "--model", "*", "--burst", "3"), "burst"),
        (("create", "", "--model", "*"), "name"),
        (("revoke", "zoe"), "there are: b"),
    ],
)
def test_what_the_command_refuses(file: Path, arguments: tuple[str, ...], told: str) -> None:
    run(file, "create", "b", "--model", "*")
    before = file.read_text()
    assert told in run(file, *arguments, status=2).stderr
    assert file.read_text() == before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = run(tmp_path / "no" / "keys.yaml", "create", "a", "--model", "*", status=2)
    assert "No such file" in result.stderr


def test_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "real" / "keys.yaml"
    real.parent.mkdir()
    run(real, "create", "a", "--model", "*")
    file.symlink_to(real)
    run(file, "create", "b", "--model", "*")
    assert file.is_symlink()
    assert len(read_keys(real)) == 2


def test_the_documented_commands_work(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(read("docs/security.md"), "sh") if "qinfer keys" in block]
    typed = [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("qinfer keys")]
    assert len(typed) == 4
    for arguments in typed:
        environment = {"QINFER_KEYS_FILE": str(tmp_path / "keys.yaml")}
        result = CliRunner().invoke(app, arguments, env=environment)
        assert result.exit_code == 0, result.output
    assert [entry.name for entry in read_keys(tmp_path / "keys.yaml")] == ["operator"]


def test_the_documented_limits_are_those_of_the_code() -> None:
    table = section(read("docs/security.md"), "Threats")
    limits = ConnectionLimits()
    for option, value in (
        ("--max-connections", f"{limits.connections}"),
        ("--receive-timeout", f"{limits.receive:g} s"),
        ("--idle-timeout", f"{limits.idle:g} s"),
    ):
        assert f"| `{option}` | {value} |" in table
    assert MIN_RATE == 1024  # "a second more for each KiB"
    options = GatewayOptions(nats="")
    told = (options.max_connections, options.receive_timeout, options.idle_timeout)
    assert told == (limits.connections, limits.receive, limits.idle)
