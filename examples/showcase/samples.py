"""Real inputs: files of this repository and this machine, and files made here in well-known formats."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sqlite3
import struct
import sys
import tarfile
import wave
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]

_FROM_REPOSITORY = (
    "README.md", "docs/quickstart.md", "pyproject.toml", "LICENSE", "Makefile", "src/qinfer/errors.py",
    "examples/layouts/silero_vad/config.yaml", "examples/layouts/magika/config.pbtxt",
)  # fmt: skip

SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "Someone is having a meal.",
    "A woman is playing the violin.",
    "Two musicians perform on stage.",
    "The stock market fell sharply today.",
    "Shares lost value on Wall Street.",
    "A cheetah is running behind its prey.",
)
"""Sentences of which some mean nearly the same."""


def sample_files() -> dict[str, bytes]:
    """Contents of files by name."""
    files = {
        name: path.read_bytes()
        for name in _FROM_REPOSITORY
        if (path := ROOT / name).is_file() and path.stat().st_size > 0
    }
    files[f"{Path(sys.executable).name} (this interpreter)"] = Path(sys.executable).resolve().read_bytes()
    return files | _made()


def _made() -> dict[str, bytes]:
    text = "\n".join(SENTENCES).encode() * 8
    table = io.StringIO()
    csv.writer(table).writerows(
        [["time", "celsius", "place"], *([f"{h}:00", 20 + h, "roof"] for h in range(20))]
    )
    return {
        "made.png": _png(48, 48),
        "made.wav": _wav(),
        "made.zip": _zip({"a.txt": text, "b.txt": text[::-1]}),
        "made.tar": _tar({"a.txt": text}),
        "made.gz": gzip.compress(text, mtime=0),
        "made.sqlite": _sqlite(),
        "made.json": json.dumps({"sentences": SENTENCES, "count": len(SENTENCES)}, indent=2).encode(),
        "made.csv": table.getvalue().encode(),
        "made.html": b"<!doctype html><html><head><title>t</title></head><body><p>Hello</p></body></html>",
        "made.sh": b"#!/bin/sh\nset -eu\nfor f in *.txt; do\n  wc -l \"$f\"\ndone\nexit 0\n",
        "made.sql": b"CREATE TABLE t (id INTEGER, name TEXT);\nSELECT name FROM t WHERE id > 3;\n" * 4,
    }  # fmt: skip


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = b"".join(b"\0" + bytes((x * y) % 256 for x in range(width * 3)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def _wav() -> bytes:
    samples = (8000 * np.sin(np.arange(8000) * 0.17)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _sqlite() -> bytes:
    database = sqlite3.connect(":memory:")
    try:
        database.execute("create table sentence (id integer primary key, text text)")
        database.executemany("insert into sentence (text) values (?)", [(text,) for text in SENTENCES])
        database.commit()
        return database.serialize()
    finally:
        database.close()


def speech(path: Path) -> NDArray[np.float32]:
    """Samples of a 16-bit mono WAV file, FP32 [n], -1..1."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return samples.astype(np.float32) / np.float32(32768)
