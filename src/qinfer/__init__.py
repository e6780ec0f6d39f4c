"""qinfer: model serving whose scheduler queue is a real message broker.

This package is what every role and every client shares. The front end is `qinfer_gateway`, the pools
are `qinfer_workers`; both import this package and never each other.
"""

__version__ = "0.1.0"
