"""How many threads an instance may use without taking them from its neighbours."""

from __future__ import annotations

import os
from pathlib import Path

from qinfer.repository import ModelConfig

_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")

SHARED_BY_VARIABLE = "QINFER_CPUS_SHARED_BY"
"""Environment variable in which a supervisor tells a process how many like it share the CPUs."""


def available_cpus(cpu_max: Path = _CGROUP_CPU_MAX) -> int:
    """CPUs this process may use: its affinity mask, cut to the container's CPU quota, and its share of them.

    At least 1.

    Args:
        cpu_max: the cgroup v2 file that holds the quota: microseconds of CPU and of wall time, or "max".
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        if quota != "max":
            cpus = min(cpus, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no cgroup v2: no quota to heed
    return max(1, cpus // _sharing())


def _sharing() -> int:
    given = os.environ.get(SHARED_BY_VARIABLE, "")
    return max(1, int(given)) if given.isdecimal() else 1


def threads_per_instance(config: ModelConfig) -> int:
    """An even share of the CPUs for each of the model's instances that is not on a GPU; at least 1.

    Libraries default to one thread a CPU for every instance, which makes N instances slower than one.
    """
    instances = sum(group.count for group in config.instance_groups if group.kind != "GPU")
    return max(1, available_cpus() // max(1, instances))
