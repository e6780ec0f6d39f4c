from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from qinfer.lifecycle import until_stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_sets_the_event_and_the_handler_before_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    async with until_stopped() as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stopped.wait(), 20)
    assert signal.getsignal(number) is before


async def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="inside"):
        async with until_stopped():
            raise ValueError("inside")
    assert signal.getsignal(signal.SIGTERM) is before


PROGRAM = """
import asyncio
from qinfer.lifecycle import until_stopped

async def main():
    async with until_stopped() as stopped:
        print("ready", flush=True)
        await stopped.wait()
        print("draining", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_second_signal_ends_the_process_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "draining\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM
        finally:
            process.kill()
