"""A nats-server with a configuration of the test's."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nkeys

from qinfer.embedded.binary import find_binary
from qinfer.embedded.guard import guarded
from tests.helpers.waiting import eventually

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A running server.

    Attributes:
        port: where clients connect.
        log: what it says.
    """

    port: int
    log: Path

    def violations(self) -> list[str]:
        """What users were refused, of whatever they tried."""
        lines = self.log.read_text().splitlines()
        return [line.split(" - ", 2)[-1] for line in lines if "Violation" in line]


@asynccontextmanager
async def broker(folder: Path, configuration: str) -> AsyncIterator[Broker]:
    """Run a server with JetStream on a port of its own.

    Args:
        folder: one of its own, for what it stores.
        configuration: further settings, in NATS's format.
    """
    log, file = folder / "log", folder / "nats.conf"
    settings = [
        f"listen: {HOST}:-1",
        f"ports_file_dir: {json.dumps(str(folder))}",
        f"jetstream: {{ store_dir: {json.dumps(str(folder / 'store'))} }}",
        f"log_file: {json.dumps(str(log))}",
        configuration,
    ]
    _write(file, settings)
    process = await asyncio.create_subprocess_exec(
        *guarded([str(find_binary()), "--config", str(file)]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:

        def ready() -> bool:
            ended = process.returncode is not None
            assert not ended, f"nats-server ended:\n{log.read_text() if log.exists() else file.read_text()}"
            written = any(file.stat().st_size for file in folder.glob("*.ports"))
            return written and log.exists() and "Server is ready" in log.read_text()

        await eventually(ready, "nats-server is ready")
        yield Broker(port=_port(folder), log=log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _write(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines))


def _port(folder: Path) -> int:
    (ports,) = folder.glob("*.ports")
    return int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user known by an nkey.

    Attributes:
        public: the public key, as the server's configuration has it.
        seed: file with the seed.
    """

    public: str
    seed: Path


def make_user(folder: Path, name: str) -> User:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    path = folder / f"{name}.nk"
    path.touch(0o600)
    path.write_bytes(bytes(seed) + b"\n")
    return User(public=nkeys.from_seed(bytearray(seed)).public_key.decode(), seed=path)
