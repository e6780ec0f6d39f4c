"""The servers that are compared, one module each."""

from __future__ import annotations

from loadtest.peers.base import Peer
from loadtest.peers.qinfer import Baseline, QInfer
from loadtest.peers.triton import Triton

PEERS: dict[str, Peer] = {peer.name: peer for peer in (QInfer(), Triton())}
"""All peers by name, in the order they are measured and reported; ratios are against the first."""

__all__ = ["PEERS", "Baseline", "Peer", "QInfer", "Triton"]
