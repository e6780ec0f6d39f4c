"""What processes cost: CPU time, wake-ups and memory of a process tree, read from /proc.

Nothing runs while a load is measured: a snapshot is taken before, one after, and the difference is the cost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from qinfer.errors import SetupError, Unavailable

_PROC = Path("/proc")
_TICK_US = 1_000_000 / os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6

_ROUNDS = 400_000

RoleOf: TypeAlias = Callable[[Sequence[str]], str]
"""The role of a process of a server ("gateway", "worker"...), by its command line."""


class Thread(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of one thread since it started; CPU in microseconds."""

    name: str
    cpu_us: float
    switches: int


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of one process since it started.

    Attributes:
        pid: its process id.
        role: what it is for, see `RoleOf`.
        user_us, system_us: CPU time of all its threads, dead ones included, in microseconds.
        switches: voluntary context switches of its live threads: how often one of them had to wait.
        rss_mb: resident memory, shared pages included, in megabytes.
        threads: its live threads, by thread id.
    """

    pid: int
    role: str
    user_us: float
    system_us: float
    switches: int
    rss_mb: float
    threads: dict[int, Thread]

    @property
    def cpu_us(self) -> float:
        return self.user_us + self.system_us


Snapshot: TypeAlias = dict[int, Process]
"""The processes of a tree, by process id."""


def require() -> None:
    """Raises SetupError where processes cannot be watched."""
    if not (_PROC / "self" / "stat").exists():
        raise SetupError("the load tests need Linux: they read CPU time and memory of processes from /proc")


def snapshot(root: int, role_of: RoleOf) -> Snapshot:
    """Read the tree of processes below and including `root`.

    Raises:
        Unavailable: process `root` is not running.
    """
    found: Snapshot = {}
    for pid in _tree(root):
        try:
            found[pid] = _read(pid, role_of)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
    if root not in found:
        raise Unavailable(f"process {root} is not running any more")
    return found


def difference(before: Snapshot, after: Snapshot) -> list[Process]:
    """What each process of `after` spent since `before`; memory is that of `after`.

    Raises:
        Unavailable: a process of `before` has ended, so that what it spent is unknown.
    """
    gone = [f"{before[pid].role} (pid {pid})" for pid in before.keys() - after.keys()]
    if gone:
        raise Unavailable(f"ended during the measurement: {', '.join(gone)}; see the server's log")
    return [_subtract(process, before.get(pid)) for pid, process in after.items()]


def tree_pids(root: int) -> list[int]:
    """The ids of `root` and its descendants, parents first; empty when it is not running."""
    return list(_tree(root)) if (_PROC / str(root)).exists() else []


def machine_busy_us() -> float:
    """CPU time since this machine started that was not idle, over all cores, in microseconds.

    Time the hypervisor gave to other machines is part of it. Interrupts are left out: the kernel does not
    account them to processes either.
    """
    fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()
    user, nice, system, steal = (int(fields[index]) for index in (1, 2, 3, 8))
    return (user + nice + system + steal) * _TICK_US


def core_speed() -> float:
    """Rounds a second of CPU time in which one core does a fixed computation, which takes some 60 ms.

    Only the ratio of two calls means anything: how much faster the machine was at one time than at another. A
    virtual machine can lose half its speed to its neighbours without a trace in any other figure.
    """
    return max(_rounds_per_second() for _ in range(2))  # the first also wakes the core up


def _rounds_per_second() -> float:
    start = time.process_time()
    value = 1
    for _ in range(_ROUNDS):
        value = value * 48271 % 2147483647
    return _ROUNDS / (time.process_time() - start)


def _subtract(after: Process, before: Process | None) -> Process:
    if before is None:
        return after
    threads = {
        tid: Thread(
            name=thread.name,
            cpu_us=thread.cpu_us - (before.threads[tid].cpu_us if tid in before.threads else 0),
            switches=thread.switches - (before.threads[tid].switches if tid in before.threads else 0),
        )
        for tid, thread in after.threads.items()
    }
    return Process(
        pid=after.pid,
        role=after.role,
        user_us=after.user_us - before.user_us,
        system_us=after.system_us - before.system_us,
        switches=sum(thread.switches for thread in threads.values()),
        rss_mb=after.rss_mb,
        threads=threads,
    )


def _tree(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                parent = int(_stat(folder)[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(folder.name))
    pending = [root]
    while pending:
        pid = pending.pop()
        yield pid
        pending += children.get(pid, [])


def _read(pid: int, role_of: RoleOf) -> Process:
    folder = _PROC / str(pid)
    fields = _stat(folder)
    arguments = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
    threads = dict(_threads(folder))
    return Process(
        pid=pid,
        role=role_of(arguments),
        user_us=int(fields[11]) * _TICK_US,
        system_us=int(fields[12]) * _TICK_US,
        switches=sum(thread.switches for thread in threads.values()),
        rss_mb=int(fields[21]) * _PAGE_MB,
        threads=threads,
    )


def _threads(folder: Path) -> Iterator[tuple[int, Thread]]:
    for task in (folder / "task").iterdir():
        try:
            fields = _stat(task)
            status = (task / "status").read_text()
            name = (task / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        switches = int(status.split("\nvoluntary_ctxt_switches:", 1)[1].split(None, 1)[0])
        cpu_us = (int(fields[11]) + int(fields[12])) * _TICK_US
        yield int(task.name), Thread(name=name, cpu_us=cpu_us, switches=switches)


def _stat(folder: Path) -> list[str]:
    """The fields of a `stat` file after the command name, which may itself hold blanks and brackets.

    Field 3 of proc(5), the state, is item 0.
    """
    return (folder / "stat").read_text().rpartition(") ")[2].split()
