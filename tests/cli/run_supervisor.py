"""Runs a supervisor over fake roles in a process of its own: `run_supervisor.py OPTIONS_JSON`."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from qinfer.cli.serve.options import ServeOptions
from qinfer.cli.serve.supervisor import Addresses, Supervisor
from qinfer.errors import QInferError
from qinfer.telemetry.logs import configure_logging

FAKE_ROLE = (sys.executable, str(Path(__file__).with_name("fake_role.py")))


def announce(addresses: Addresses) -> None:
    print(json.dumps(asdict(addresses)), flush=True)


async def main() -> None:
    given = json.loads(sys.argv[1])
    stop_grace = given.pop("stop_grace", 30.0)
    options = ServeOptions(repositories=(Path("models"),), **given)
    supervisor = Supervisor(options, ["mlp"], announce=announce, program=FAKE_ROLE, stop_grace=stop_grace)
    try:
        finished = await supervisor.run()
    except QInferError as error:
        sys.exit(f"{type(error).__name__}: {error.message}")
    sys.exit(0 if finished else 130)


configure_logging(role="supervisor")
asyncio.run(main())
