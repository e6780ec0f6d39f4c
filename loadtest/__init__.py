"""Load tests: the same load on qinfer and on its peers, side by side. Run as `python -m loadtest`."""
