"""From a model's configuration to PyTorch's settings, under Triton's names."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

from qinfer.repository import ModelConfig
from qinfer_workers.backends.parameters import boolean, integer
from qinfer_workers.backends.threads import threads_per_instance

logger = logging.getLogger(__name__)

_process = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the model's parameters ask of PyTorch.

    Attributes:
        inference_mode: run under `torch.inference_mode`, else under `torch.no_grad`.
        optimized_execution: let TorchScript specialise and fuse what it runs.
        intra_op_threads: threads within one operator, for this instance's thread.
        inter_op_threads: threads across operators, for the process; 0 for PyTorch's own default.
        clean_cache: give unused GPU memory back after every batch.
    """

    inference_mode: bool
    optimized_execution: bool
    intra_op_threads: int
    inter_op_threads: int
    clean_cache: bool

    @classmethod
    def of(cls, config: ModelConfig) -> Options:
        """Read the parameters.

        Raises:
            ConfigError: a parameter has a wrong value.
        """
        return cls(
            inference_mode=boolean(config, "INFERENCE_MODE", default=True),
            optimized_execution=not boolean(config, "DISABLE_OPTIMIZED_EXECUTION", default=False),
            intra_op_threads=integer(
                config, "INTRA_OP_THREAD_COUNT", threads_per_instance(config), minimum=1
            ),
            inter_op_threads=integer(config, "INTER_OP_THREAD_COUNT", 0),
            clean_cache=boolean(config, "ENABLE_CACHE_CLEANING", default=False),
        )


_SWITCHES = {
    "ENABLE_JIT_EXECUTOR": "_jit_set_profiling_executor",
    "ENABLE_JIT_PROFILING": "_jit_set_profiling_mode",
    "ENABLE_TENSOR_FUSER": "_jit_set_texpr_fuser_enabled",
}
"""Parameters that set a switch of the TorchScript runtime for the whole process."""


def apply_process_settings(torch: Any, options: Options, config: ModelConfig) -> None:
    """Apply what PyTorch keeps per thread or per process; called from the instance's own thread.

    PyTorch takes the number of inter-op threads once in a process; later models that ask for another
    number are told so in the log and run with the first.
    """
    torch.set_num_threads(options.intra_op_threads)
    with _process:
        wanted = options.inter_op_threads
        if wanted and wanted != torch.get_num_interop_threads():
            try:
                torch.set_num_interop_threads(wanted)
            except RuntimeError:
                logger.warning(
                    "%s: parameters.INTER_OP_THREAD_COUNT: found %d, but this process already runs with %d;"
                    " PyTorch takes this number only once",
                    config.name,
                    wanted,
                    torch.get_num_interop_threads(),
                )
        for key, setter in _SWITCHES.items():
            if key in config.parameters:
                getattr(torch._C, setter)(boolean(config, key, default=True))  # noqa: SLF001  no public name
