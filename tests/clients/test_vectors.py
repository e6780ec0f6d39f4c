"""Each client reads and writes every vector of the protocol."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import msgpack

from tests.clients.built import Built
from tests.vectors import generate
from tests.vectors.test_vectors import NAMES, load

FIELDS = {"error": 2, "outputs": 3, "parameters": 4, "flags": 5, "claim": 7, "index": 10}
"""Of a response: what clients read of it, and its place in the array."""


def _read(value: Any) -> Any:
    """What a driver prints, with bytes and large integers."""

    def hook(told: dict[str, Any]) -> Any:
        if set(told) == {"$hex"}:
            return bytes.fromhex(told["$hex"])
        return int(told["$int"]) if set(told) == {"$int"} else told

    return json.loads(value, object_hook=hook)


def test_vectors(built: Built) -> None:
    command = [*built.driver, "vectors", str(generate.DIRECTORY)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    told = {each["name"]: each for each in map(_read, done.stdout.splitlines())}
    assert sorted(told) == NAMES
    for name in NAMES:
        data, meaning = load(name)
        _check_bytes(told[name], data, meaning)
        if meaning["kind"] == "response":
            _check_responses(told[name], meaning)


def _check_bytes(told: dict[str, Any], data: bytes, meaning: dict[str, Any]) -> None:
    if "wire" not in meaning:
        assert told["unreadable"], meaning
        return
    assert "unreadable" not in told, told
    assert told["wire"] == meaning["wire"]
    assert msgpack.unpackb(told["encoded"]) == meaning["wire"]  # maps have no order
    assert len(told["encoded"]) == len(data), meaning


def _check_responses(told: dict[str, Any], meaning: dict[str, Any]) -> None:
    frame = meaning.get("decoded", meaning.get("wire"))
    wrong = meaning.get("error") or (frame[5] and frame[5][0])
    if wrong:
        assert told["error"] == wrong
        return
    expected = [{name: response[place] for name, place in FIELDS.items()} for response in frame[4]]
    for response in told["responses"]:
        if response["error"] is not None:
            response["error"] = (response["error"] + [None])[:3]
    assert told["responses"] == expected
