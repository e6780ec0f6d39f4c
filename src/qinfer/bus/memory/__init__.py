"""The bus within one process, for tests and single-process use."""

from qinfer.bus.memory.bus import MemoryBus

__all__ = ["MemoryBus"]
