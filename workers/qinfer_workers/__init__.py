"""The worker pools: pull, micro-batch, run, reply."""
