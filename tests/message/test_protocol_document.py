"""`docs/protocol.md` says what the code does, and its client works."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from qinfer import control, message, registry
from qinfer.bus import QueueSpec, connect
from qinfer.bus.nats import confirmations
from qinfer.bus.nats.bus import NatsBus
from qinfer.datatypes import DATATYPES
from qinfer.errors import BY_REASON
from qinfer.naming import WORKER_LIFETIME, Names, escape
from qinfer_workers.options import WorkerOptions
from qinfer_workers.worker import Worker
from tests.helpers.waiting import Mailbox

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", DOCUMENT, re.M | re.S)
    assert found, f"no section {title!r}"
    return found[1]


def tables(text: str) -> list[list[str]]:
    """Rows of the tables in a text, without their headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    ruler = next(index for index, row in enumerate(rows) if set("".join(row)) <= {"-"})
    return rows[ruler + 1 :]


def code(cell: str) -> str:
    return cell.strip("`")


def default_of(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return ""
    factory = field.default_factory
    default = field.default if factory is msgspec.NODEFAULT else factory()
    words = {"None": "nil", "True": "true", "False": "false", "": '""'}
    return words.get(str(default), str(default))


@pytest.mark.parametrize(
    ("title", "struct"),
    [
        ("Request frame", message.RequestFrame),
        ("Request", message.Request),
        ("Tensor", message.Tensor),
        ("Response frame", message.ResponseFrame),
        ("Batch info", message.BatchInfo),
        ("Response", message.Response),
        ("Cancel frame", message.CancelFrame),
        ("Error", message.WireError),
        ("Model record", registry.ModelRecord),
        ("Tensor record", registry.TensorRecord),
        ("Worker record", registry.WorkerRecord),
        ("Change question", control.ChangeQuestion),
        ("Change answer", control.ChangeAnswer),
        ("Index answer", control.IndexAnswer),
        ("Model state", control.ModelState),
    ],
)
def test_fields_are_those_of_the_code(title: str, struct: type[msgspec.Struct]) -> None:
    rows = tables(section(title))
    if struct.__struct_config__.array_like:
        assert [int(row.pop(0)) for row in rows] == list(range(len(rows)))
    documented = [(code(row[0]), code(row[2])) for row in rows]
    assert documented == [(field.name, default_of(field)) for field in msgspec.structs.fields(struct)]


def test_errors_are_those_of_the_code() -> None:
    documented = [[code(cell) for cell in row] for row in tables(section("Errors"))]
    assert documented == [
        [reason, str(kind.http_status), kind.grpc_status.name, kind.retry.value, _summary(kind)]
        for reason, kind in BY_REASON.items()
    ]


def _summary(kind: type) -> str:
    assert kind.__doc__
    return kind.__doc__.splitlines()[0]


def test_datatypes_are_those_of_the_code() -> None:
    documented = [(code(row[0]), row[1]) for row in tables(section("Tensors"))]
    assert documented == [(d.name, str(d.itemsize) if d.itemsize else "") for d in DATATYPES.values()]


def test_names_are_those_of_the_code() -> None:
    names = Names("NS")
    documented = [
        set(re.findall(r"`([^`]+)`", row[1])) for row in tables(section("Subjects, streams and consumers"))
    ]
    assert documented == [
        {names.requests("MODEL")},
        {names.requests("MODEL", "42").replace("42", "VERSION")},
        {names.stream("MODEL"), names.stream_subjects("MODEL")},
        {names.consumer(), names.consumer("42").replace("42", "VERSION")},
        {names.control("TOPIC")},
        {names.models_bucket},
        {names.workers_bucket},
        {names.cancellations("MODEL")},
        {names.answers_bucket},
        {names.tensors_bucket},
        {names.suspects_bucket},
        {names.dead_stream, names.dead_letters()},
    ]
    (plain, escaped) = re.findall(r"`([^`]+)` is `([^`]+)`", section("Subjects, streams and consumers"))[0]
    assert escape(plain) == escaped
    assert names.control(registry.STATISTICS) in section("Statistics").replace("\n", " ")
    topics = set(re.findall(r"`(repository-[a-z]+)`", section("Loading and unloading")))
    assert topics == {control.INDEX, control.CHANGE}


def test_numbers_are_those_of_the_code() -> None:
    text = section("Which models there are") + section("Tensor record")
    assert f"renews its record every {registry.HEARTBEAT:.0f} seconds" in text
    assert f"for {WORKER_LIFETIME:.0f} seconds" in text
    spec = QueueSpec()
    assert f"({spec.max_messages} frames and {spec.max_bytes >> 20} MiB by default)" in section("Limits")


def test_refusals_are_those_of_the_bus() -> None:
    rows = [row for row in tables(section("Publishing, and being refused")) if "err_code" in row[0]]
    documented = {int(re.findall(r"err_code` (\d+)", row[0])[0]): code(row[2]) for row in rows}
    assert documented == dict.fromkeys(confirmations._FULL, "queue_full")


def test_links_lead_somewhere() -> None:
    folder = Path(__file__).parents[2] / "docs"
    titles = re.findall(r"^#+ (.*)$", DOCUMENT, re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", DOCUMENT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (folder / target.partition("#")[0]).exists(), target


MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2)]) for x in inputs]
"""

CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""


def client_source() -> str:
    found = re.search(r"<!-- client -->\n```python\n(.*?)```", DOCUMENT, re.S)
    assert found
    return found[1]


async def run_client(tmp_path: Path, *args: str) -> tuple[int | None, str, str]:
    script = tmp_path / "client.py"
    script.write_text(client_source(), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, *args, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def test_the_client_of_the_document_works(nats_url: str, namespace: str, tmp_path: Path) -> None:
    assert client_source().count("\n") < 40
    name = "double.v1 é"
    directory = tmp_path / "models" / name
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").write_text(MODEL)
    (directory / "config.pbtxt").write_text(CONFIG)
    bus = connect(nats_url, namespace=namespace)
    await bus.start()
    worker = Worker(WorkerOptions(nats="", repositories=(tmp_path / "models",), storage="memory"), bus)
    try:
        await worker.start()
        assert not worker.problems
        status, out, err = await run_client(tmp_path, nats_url, namespace, name)
        assert (status, out) == (0, "y FP32 [1, 2] 2.0 4.0\n"), err
        status, _, err = await run_client(tmp_path, nats_url, namespace, "another")
        assert status == 1
        assert err.splitlines()[-1] == "RuntimeError: no such model"
    finally:
        await worker.drain()
        await bus.close()


async def test_what_the_broker_answers_a_publisher(nats_url: str, namespace: str) -> None:
    """The table of refusals, from a real broker."""
    bus = connect(nats_url, namespace=namespace)
    assert isinstance(bus, NatsBus)
    await bus.start()
    try:
        await bus.declare("m", QueueSpec(storage="memory", max_messages=1, max_bytes=1 << 20))
        assert await _confirmations(bus, ["m", "m", "unknown"]) == ["stored", 10077, "503"]
    finally:
        await bus.close()


async def _confirmations(bus: NatsBus, models: Sequence[str]) -> list[object]:
    client = bus._connection.client
    inbox, heard = client.new_inbox(), Mailbox()

    async def receive(message: object) -> None:
        heard(message)

    await client.subscribe(inbox, cb=receive)
    outcomes: list[object] = []
    for model in models:
        await client.publish(bus.names.requests(model), b"frame", reply=inbox)
        (answer,) = await heard.take()
        if answer.headers:
            outcomes.append(answer.headers["Status"])
        else:
            ack = msgspec.json.decode(answer.data)
            outcomes.append(ack["error"]["err_code"] if "error" in ack else "stored")
            assert "error" in ack or {"stream", "seq"} <= set(ack)
    return outcomes
