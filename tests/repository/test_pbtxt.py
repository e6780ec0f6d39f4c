from __future__ import annotations

import re

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from qinfer.errors import ConfigError
from qinfer.proto import ModelConfig
from qinfer.repository import pbtxt
from qinfer.repository.document import Position


def error(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        pbtxt.read(text, "FILE")
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('nam: "x"', "1:1: nam: no such field in ModelConfig; expected name (or another of 25)"),
        ("name: 3", "1:7: name: found 3; expected a string in quotes"),
        ('name: "a"\n\n name: "b"', "3:8: name: given twice; expected once"),
        ('name: "abc\n', '1:7: name: found "abc; expected a closing quote on the same line'),
        ('name "x"', '1:6: name: found "x"; expected ":"'),
        ('input: "a"', '1:8: input[0]: found "a"; expected "{"'),
        ('input { name: "a" } }', "1:21: found }; expected the name of a field"),
        ("max_batch_size: 1.5", "1:17: max_batch_size: found 1.5; expected an integer from -2147483648"),
        ("input [ {}, { dims: [ 1, a ] } ]", "1:26: input[1].dims[1]: found a; expected an integer from -92"),
        (
            "input {\n dims: 1 dims: [ 2, 3 ]\n dims: [ 4, a ]\n}",
            "3:13: input[0].dims[4]: found a; expected an integer",
        ),
        (
            "input { data_type: TYPE_FP31 }",
            "1:20: input[0].data_type: TYPE_FP31 is no value of DataType; expected TYPE_FP32",
        ),
        (
            "instance_group [ { kind: CPU } ]",
            "1:26: instance_group[0].kind: CPU is no value of Kind; expected KIND_CPU (or another of 4)",
        ),
        (
            "dynamic_batching {}\nsequence_batching {}",
            "2:1: sequence_batching: given beside dynamic_batching; expected one of the two",
        ),
        (
            "dynamic_batching { max_queue_delay_microseconds: -1 }",
            "dynamic_batching.max_queue_delay_microseconds: found -1; expected an integer from 0 to 1844",
        ),
        ("model_transaction_policy { decoupled: 2 }", 'decoupled: found 2; expected "true" or "false"'),
        ('parameters { key: "a" value: 3 }', '1:30: parameters[0].value: found 3; expected "{"'),
        (
            'output { name: "x" # }\n label_file: "a" }',
            "2:2: output[0].label_file: no such field in ModelOutput",
        ),
        ('input { name: "a" ', 'input[0].name: the text ends within a message; expected "}"'),
        ("[a.b]: 1", "expected the name of a field"),
        ('name: "\\377"', "name: couldn't parse string: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_errors_say_where_what_and_what_was_expected(text: str, expected: str) -> None:
    message = error(text)
    assert re.match(r"FILE: \d+:\d+: ", message)
    assert expected in message
    assert "\n" not in message


def test_positions() -> None:
    document = pbtxt.read(
        '# a comment: { "\nmax_batch_size: 4\ninput [\n  { name: "a", dims: [ 1, 2 ] },\n'
        '  < name: \'b\' reshape { shape: [ ] } >\n]\nparameters { key: "k" value { string_value: "v" } }',
        "FILE",
    )
    assert document.positions["max_batch_size"] == Position(2, 1)
    assert document.positions["input"] == Position(3, 1)
    assert document.positions["input[0]"] == Position(4, 3)
    assert document.positions["input[0].dims"] == Position(4, 16)
    assert document.positions["input[0].dims[1]"] == Position(4, 27)
    assert document.positions["input[1].name"] == Position(5, 5)
    assert document.positions["input[1].reshape.shape"] == Position(5, 25)
    assert document.positions["parameters[0].value.string_value"] == Position(7, 31)
    assert document.message.input[1].reshape.shape == []


@given(st.text(alphabet="abdeimnpstu_[]{}<>:,;#'\"\\\n 01-.", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_in_one_way(text: str) -> None:
    try:
        document = pbtxt.read(text, "FILE")
    except ConfigError as refusal:
        message = refusal.message
        assert message.startswith("FILE: ")
    else:
        assert document.message == text_format.Parse(text, ModelConfig())


PIECES = st.sampled_from(
    [
        'name: "m"\n',
        "input {",
        "input [ {",
        "} ]",
        "}",
        "dims: [ 1, -1 ] ",
        "dims: 3\n",
        "data_type: TYPE_FP32 ",
        "dynamic_batching { preferred_batch_size: 4 }",
        "reshape { shape: [] }",
        "version_policy: { latest < num_versions: 1 > } ",
        'parameters { key: "a" value: { string_value: "b" } }',
        ", ",
        "# comment {\n",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_every_field_of_a_right_text_has_a_place(text: str) -> None:
    try:
        document = pbtxt.read(text, "FILE")
    except ConfigError as error:
        lines = text.split("\n")
        _, line, column, *_ = error.message.split(":")
        assert 1 <= int(line) <= len(lines)
        assert 1 <= int(column) <= len(lines[int(line) - 1]) + 1
    else:
        for field, _ in document.message.ListFields():
            place = document.positions[field.name]
            assert text.split("\n")[place.line - 1][place.column - 1 :].startswith(field.name)
        assert {f"input[{i}]" for i in range(len(document.message.input))} <= document.positions.keys()
