"""The machine: GPUs, ports, file descriptors, clock."""

from __future__ import annotations

import ctypes
import errno
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from qinfer.cli.doctor.findings import Finding, Status
from qinfer.cli.serve.options import ServeOptions
from qinfer.cli.serve.ports import LOOPBACK

_WANTED_FILES = 4096
_TIME_ERROR = 5
_TIMEX_BYTES = 256  # more than struct timex has on any platform


def check() -> Iterator[Finding]:
    """GPUs, ports, file descriptors, clock."""
    yield _gpus()
    yield _ports()
    yield _files()
    yield _clock()


def gpu_names() -> list[str]:
    """The NVIDIA GPUs the driver shows; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 (the driver's own tool)
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _gpus() -> Finding:
    names = gpu_names()
    if not names:
        return Finding(check="GPU", status=Status.INFO, detail="none seen; models run on the CPU")
    return Finding(check="GPU", status=Status.OK, detail="; ".join(names))


def _ports() -> Finding:
    wanted = default_ports()
    taken = [str(port) for port in wanted if not _is_free(port)]
    if taken:
        return Finding(
            check="ports",
            status=Status.WARN,
            detail=f"in use on {LOOPBACK}: {', '.join(taken)}",
            advice="stop what listens there, or choose others (--http-port, --grpc-port, --metrics-port)",
        )
    return Finding(check="ports", status=Status.OK, detail=f"{', '.join(map(str, wanted))} are free")


def default_ports() -> list[int]:
    """The ports `qinfer serve` takes when it is told none."""
    defaults = ServeOptions(repositories=())
    return [defaults.http_port, defaults.grpc_port, defaults.metrics_port]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{_limit(soft)} (hard limit {_limit(hard)})"
    if soft != resource.RLIM_INFINITY and soft < _WANTED_FILES:
        return Finding(
            check="open files",
            status=Status.WARN,
            detail=f"{detail}: every connection takes one",
            advice=f"ulimit -n {_WANTED_FILES} before starting",
        )
    return Finding(check="open files", status=Status.OK, detail=detail)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _clock() -> Finding:
    """Deadlines are moments that every host reads on its own clock."""
    now = datetime.now(UTC)
    detail = now.isoformat(timespec="seconds")
    synchronised = _is_synchronised()
    if synchronised is None:
        return Finding(
            check="clock", status=Status.INFO, detail=f"{detail}; cannot tell if it is synchronised"
        )
    if not synchronised:
        return Finding(
            check="clock",
            status=Status.WARN,
            detail=f"{detail}, not synchronised: between hosts whose clocks differ, deadlines shift",
            advice="run an NTP client such as chrony, unless everything runs on this host",
        )
    return Finding(check="clock", status=Status.OK, detail=f"{detail}, synchronised")


def _is_synchronised() -> bool | None:
    """What the kernel knows of it; None when it does not tell."""
    if sys.platform != "linux":
        return None
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # all zero: change nothing, only read
    state = ctypes.CDLL(None).adjtimex(timex)
    return None if state < 0 else state != _TIME_ERROR
