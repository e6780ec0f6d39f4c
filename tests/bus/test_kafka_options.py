"""What the Kafka bus is told, and what it calls things."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import trustme

from qinfer.bus import connect
from qinfer.bus.base import Guarantees
from qinfer.bus.kafka import KafkaBus
from qinfer.bus.kafka.names import KafkaNames
from qinfer.bus.kafka.options import KafkaOptions
from qinfer.bus.kafka.security import VARIABLES, KafkaSecurity
from qinfer.bus.nats import NatsBus
from qinfer.errors import BackendUnavailable, BusUnavailable, InvalidRequest, SetupError
from qinfer.naming import Names
from tests.docs.pages import first_column, read

NAMES = [
    "m",
    "my_model",
    "my-model",
    "my.model",
    "my-5Fmodel",
    "a b",
    "ünïcode",
    "x" * 100,
    "-" * 100,
    "-" * 99 + "x",
    "a/b",
    "a=b",
]


def topics(namespace: str) -> KafkaNames:
    return KafkaNames(Names(namespace), max_payload=1000)


def test_topics_are_what_kafka_takes() -> None:
    names = topics("n" * 40)
    for model in NAMES:
        for version in ("", "9" * 19):
            topic = names.queue(model, version)
            assert re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic), topic
    with pytest.raises(InvalidRequest):
        names.queue("")
    with pytest.raises(InvalidRequest):
        names.queue("m", "latest")


def test_no_two_topics_are_the_same_to_kafka() -> None:
    """It takes '.' and '_' for the same where it names its metrics, and refuses a second topic then."""
    found = [
        topic.replace(".", "_")
        for namespace in ("a", "a_latest", "a-latest", "a_v1")
        for model in (*NAMES, "replies", "latest_m", "v1_m")
        for topic in (topics(namespace).queue(model), topics(namespace).queue(model, "1"))
    ]
    found += [topics(each).replies(1).name.replace(".", "_") for each in ("a", "a_latest")]
    assert len(set(found)) == len(found)


def test_buckets_are_kept_as_long_as_their_entries_live() -> None:
    names, plain = topics("n"), Names("n")
    assert names.bucket(plain.models_bucket).settings["cleanup.policy"] == "compact"
    answers = names.bucket(plain.answers_bucket).settings
    assert answers["cleanup.policy"] == "delete"
    assert int(answers["retention.ms"]) >= 1000 * (plain.lifetime(plain.answers_bucket) or 0)
    letters = names.bucket(names.letters_bucket).settings
    assert letters["cleanup.policy"] == "compact,delete"


def test_a_url_says_where_and_how() -> None:
    servers, options = KafkaOptions.of("kafka://a:9092,b:9093?partitions=32&replicas=3&session_ms=9000")
    assert servers == ["a:9092", "b:9093"]
    assert options == KafkaOptions(partitions=32, replicas=3, session_ms=9000)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("kafka://", "kafka://HOST:PORT"),
        ("kafka://me:secret@a:9092", "QINFER_KAFKA_PASSWORD_FILE"),
        ("kafka://a:9092?partition=3", "'partition' is unknown; expected max_payload, partitions"),
        ("kafka://a:9092?partitions=0", "partitions is '0'; expected 1 to 1024"),
        ("kafka://a:9092?partitions=many", "expected 1 to 1024"),
    ],
)
def test_a_url_that_is_wrong(url: str, complaint: str) -> None:
    with pytest.raises(SetupError, match=re.escape(complaint)) as told:
        connect(url)
    assert "secret" not in str(told.value)


async def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiokafka.admin", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'qinfer\[kafka\]'"):
        await connect("kafka://127.0.0.1:1").start()


def test_nothing_is_wanted_by_default() -> None:
    assert KafkaSecurity.from_environment(environment={}).options() == {}
    assert KafkaSecurity.from_environment(environment={"QINFER_KAFKA_CA": ""}) == KafkaSecurity()


def test_files_make_the_line_secure(tmp_path: Path) -> None:
    authority = trustme.CA()
    identity = authority.issue_cert("client@example.org")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    identity.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    identity.private_key_pem.write_to_path(tmp_path / "key.pem")
    given = {f"QINFER_KAFKA_{name}": str(tmp_path / f"{name.lower()}.pem") for name in ("CA", "CERT", "KEY")}
    assert KafkaSecurity.from_environment(environment=given).options()["security_protocol"] == "SSL"
    assert KafkaSecurity(tls=True).options()["security_protocol"] == "SSL"
    both = {**given, "QINFER_KAFKA_USER": "me", "QINFER_KAFKA_PASSWORD": "secret"}
    options = KafkaSecurity.from_environment(environment=both).options()
    assert (options["security_protocol"], options["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("me", "secret")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"user": "me"}, "QINFER_KAFKA_PASSWORD is missing"),
        ({"mechanism": "PLAIN", "password": "x"}, "QINFER_KAFKA_USER is missing"),
        ({"mechanism": "GSSAPI", "user": "me", "password": "x"}, "expected one of PLAIN, SCRAM"),
        ({"user": "me", "password": "x", "password_file": Path("/p")}, "found both"),
        ({"cert": Path("/c")}, "found only one"),
        ({"ca": Path("/nowhere/ca.pem")}, "QINFER_KAFKA_CA: /nowhere/ca.pem is no file"),
        ({"ca": Path(__file__)}, "expected PEM files"),
    ],
)
def test_what_does_not_belong_together_is_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(SetupError, match=complaint):
        KafkaSecurity(**given).options()  # type: ignore[arg-type]


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(KafkaSecurity(user="me", password="secret"))


def test_a_password_in_plain_text_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    KafkaSecurity(user="me", password="secret", mechanism="PLAIN").options()
    assert "in plain text" in caplog.text
    assert "secret" not in caplog.text


def test_each_topic_has_one_use() -> None:
    names, plain = topics("n"), Names("n")
    kept = (names.queues_bucket, names.blobs_bucket, names.ids_bucket, names.letters_bucket)
    buckets = (plain.models_bucket, plain.workers_bucket, plain.suspects_bucket, plain.answers_bucket)
    tables = (plain.jobs_table, plain.job_data_table)
    found = [names.bucket(each).name for each in (*kept, *buckets, *tables)]
    found += [each.name for each in (names.control(), names.replies(1), names.blobs(1))]
    assert len(set(found)) == len(found)


async def test_requests_which_hold_the_password_are_never_logged(
    namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library, requests = logging.getLogger("aiokafka"), logging.getLogger("aiokafka.conn")
    for name in (library.name, requests.name):  # as somebody has it who looks for a fault
        caplog.set_level(logging.DEBUG, logger=name)
    monkeypatch.setattr("qinfer.bus.kafka.connection.CONNECT_TIMEOUT", 0.05)
    with pytest.raises(BusUnavailable):
        await connect("kafka://127.0.0.1:1", namespace=namespace).start()
    assert library.isEnabledFor(logging.DEBUG)
    assert not requests.isEnabledFor(logging.DEBUG)
    assert requests.isEnabledFor(logging.INFO)


PAGE = read("docs/kafka-bus.md")


def table(name: str) -> list[str]:
    """The first column of a table of the page, without its heading."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", PAGE, re.DOTALL)
    assert found
    return [cell.strip("`") for cell in first_column(found[1])]


def test_the_page_knows_every_option() -> None:
    assert table("options") == [field.name for field in fields(KafkaOptions)]
    for field in fields(KafkaOptions):
        assert f"| `{field.name}` | {field.default} |" in PAGE


def test_the_page_knows_every_variable() -> None:
    assert table("variables") == list(VARIABLES.values())


def test_the_page_knows_every_guarantee() -> None:
    assert table("guarantees") == [field.name for field in fields(Guarantees)]
    assert not any(getattr(KafkaBus.guarantees, field.name) for field in fields(Guarantees))
    assert all(getattr(NatsBus.guarantees, field.name) for field in fields(Guarantees))
