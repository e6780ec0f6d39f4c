"""How decoupled models answer: any number of responses to a request, as fast as their receivers take them."""

from qinfer_workers.streams.execution import StreamingExecutor
from qinfer_workers.streams.member import StreamMember, StreamSignature
from qinfer_workers.streams.streams import Streams
from qinfer_workers.streams.thread import StreamingThread

__all__ = ["StreamMember", "StreamSignature", "StreamingExecutor", "StreamingThread", "Streams"]
