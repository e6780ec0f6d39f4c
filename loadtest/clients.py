"""The load generators: `wrk` for JSON over HTTP, `perf_analyzer` for gRPC and binary HTTP.

Both are native programs that report only when they have finished, so that nothing in Python takes part while
a server is measured.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from loadtest import packages
from loadtest.mlp import INPUT_NAME, MODEL_NAME, Floats
from qinfer.errors import InternalError, SetupError

if TYPE_CHECKING:
    from collections.abc import Iterable

Wire: TypeAlias = Literal["http-json", "http-binary", "grpc"]
"""What travels: JSON or binary tensors over HTTP, or protobuf over gRPC."""

_LUA = Path(__file__).with_name("wrk.lua")
_REQUIREMENTS = Path(__file__).with_name("perf-analyzer-requirements.txt")
# perf_analyzer stops when this many windows agree, and a threshold this wide makes the first three agree:
# every run is equally long.
_WINDOWS = 3
_ANY_DEVIATION = 10_000
_GRACE_SECONDS = 60.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a load generator saw.

    Attributes:
        duration_s: length of the measurement in seconds.
        requests: answers received, errors included.
        errors: requests that failed, by kind; kinds that did not happen are left out.
        p50_ms, p90_ms, p99_ms: latency percentiles in milliseconds.
        cpu_us: CPU time the generator itself took, in microseconds.
    """

    duration_s: float
    requests: int
    errors: dict[str, int]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    cpu_us: float


def require_wrk() -> None:
    """Raises SetupError unless `wrk` is installed."""
    if shutil.which("wrk") is None:
        raise SetupError("wrk is not installed (Debian, Ubuntu: apt install wrk; macOS: brew install wrk)")


def run_wrk(url: str, bodies: Path, *, connections: int, duration: float, threads: int = 1) -> Outcome:
    """Post the bodies of a file in turn over kept-alive connections, each waiting for its answer.

    Args:
        url: where to post.
        bodies: JSON request bodies, one a line.
        connections: requests in flight.
        duration: seconds, rounded up to whole ones (wrk knows no fractions).
        threads: threads of the generator.

    Raises:
        InternalError: wrk failed.
    """
    seconds = max(1, -int(-duration // 1))
    command = [
        "wrk",
        f"-t{min(threads, connections)}",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "10s",
    ]
    command += ["--latency", "-s", str(_LUA), url, "--", str(bodies)]
    output, cpu_us = _run(command, seconds)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise InternalError(f"wrk printed no result: {output.strip()}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return Outcome(
        duration_s=result["duration_us"] / 1e6,
        requests=result["requests"],
        errors={kind: count for kind, count in result["errors"].items() if count},
        p50_ms=result["p50_us"] / 1e3,
        p90_ms=result["p90_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        cpu_us=cpu_us,
    )


def prepare_perf_analyzer(cache: Path) -> None:
    """Install `perf_analyzer` below `cache`, unless it is there.

    Raises:
        SetupError: it cannot be installed, or a system library it needs is missing.
    """
    packages.install(_REQUIREMENTS, _perf_folder(cache))
    binary = _perf_binary(cache)
    binary.chmod(0o755)
    hints = {"libb64": "Debian, Ubuntu: apt install libb64-0d"}
    packages.check_libraries(binary, [_cuda_folder(cache)], hints)


def versions(wires: Iterable[Wire]) -> dict[str, str]:
    """The versions of the load generators that these wires are measured with."""
    found = {}
    for wire in wires:
        if wire == "http-json":
            # `wrk -v` prints its version and its usage, and ends with status 1.
            done = subprocess.run(["wrk", "-v"], capture_output=True, text=True, timeout=30, check=False)
            found["wrk"] = (done.stdout + done.stderr).split("[", 1)[0].removeprefix("wrk").strip()
        else:
            found["perf_analyzer"] = packages.pinned(_REQUIREMENTS, "tritonclient")
    return found


def write_perf_input(path: Path, rows: Floats) -> None:
    """Write rows, FP32 [n, 64], in the form `perf_analyzer` reads."""
    data = [{INPUT_NAME: [round(float(value), 4) for value in row]} for row in rows]
    path.write_text(json.dumps({"data": data}))


def run_perf_analyzer(
    cache: Path, url: str, data: Path, *, wire: Wire, connections: int, duration: float
) -> Outcome:
    """Keep `connections` requests of one row each in flight, each waiting for its answer.

    Args:
        cache: where `prepare_perf_analyzer` installed it.
        url: host and port.
        data: input file, see `write_perf_input`.
        wire: "grpc" or "http-binary".
        connections: requests in flight.
        duration: seconds, split into three windows.

    Raises:
        InternalError: perf_analyzer failed.
    """
    table = data.with_suffix(".csv")
    window_ms = max(200, round(duration * 1000 / _WINDOWS))
    command = [
        str(_perf_binary(cache)),
        "-m",
        MODEL_NAME,
        "-u",
        url,
        "-i",
        "grpc" if wire == "grpc" else "http",
    ]
    command += ["--input-data", str(data), "--concurrency-range", str(connections), "-f", str(table)]
    command += ["-p", str(window_ms), "-r", str(_WINDOWS), "-s", str(_ANY_DEVIATION), "--percentile", "99"]
    output, cpu_us = _run(command, duration, {"LD_LIBRARY_PATH": str(_cuda_folder(cache))})
    try:
        with table.open(newline="") as file:
            row = next(csv.DictReader(file))
        rate = float(row["Inferences/Second"])
        p50, p90, p99 = (float(row[f"p{percent} latency"]) / 1e3 for percent in (50, 90, 99))
    except (OSError, StopIteration, KeyError, ValueError) as error:
        raise InternalError(f"perf_analyzer left no result ({error!r}): {output.strip()}") from error
    seconds = window_ms * _WINDOWS / 1e3
    return Outcome(
        duration_s=seconds,
        requests=round(rate * seconds),
        errors={},  # it ends with an error when any request fails
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        cpu_us=cpu_us,
    )


def _run(command: list[str], seconds: float, more: dict[str, str] | None = None) -> tuple[str, float]:
    """Run a generator to its end; its output and the CPU time it took, in microseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(more or {})},
            timeout=seconds * 4 + _GRACE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InternalError(f"{Path(command[0]).name} did not end in time: {' '.join(command)}") from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise InternalError(
            f"{Path(command[0]).name} ended with status {done.returncode}: {done.stdout.strip()}"
        )
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return done.stdout, cpu * 1e6


def _perf_folder(cache: Path) -> Path:
    return cache / "perf_analyzer"


def _perf_binary(cache: Path) -> Path:
    return _perf_folder(cache) / "bin" / "perf_analyzer"


def _cuda_folder(cache: Path) -> Path:
    return _perf_folder(cache) / "nvidia" / "cuda_runtime" / "lib"
