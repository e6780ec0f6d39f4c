"""Example models and a demonstration that runs them: see `examples/README.md`."""
