"""Decoupled models: one that counts, in every way a model may, and those of Triton's examples."""

from __future__ import annotations

import os
from pathlib import Path

from qinfer_workers.backends.python import triton

assert triton.MODULE  # what the models below import

COUNTS, GENERATES, THREADED, REPEAT, SQUARE, ONE, TEXT = (
    "counts",
    "generates",
    "threaded",
    "repeat_int32",
    "square",
    "one",
    "text",
)

_HEAD = (
    "import json, os, threading, time\nimport numpy as np\nimport triton_python_backend_utils as pb_utils\n"
)

_ROWS = """
def told(request):
    p = json.loads(request.parameters())
    return pb_utils.get_input_tensor_by_name(request, "n").as_numpy().ravel()[0], p

def response(i, size=0):
    tensors = [pb_utils.Tensor("i", np.array([i], np.int32))]
    if size:
        tensors.append(pb_utils.Tensor("blob", np.full(size, i % 256, np.uint8)))
    return pb_utils.InferenceResponse(tensors, parameters={"pid": os.getpid()})

def note(p, text):
    if "journal" in p:
        with open(p["journal"], "a") as journal:
            journal.write(f"{text}\\n")

def gate(p, i):
    # Waits before response `stop_at` until the gate is there.
    while i == p.get("stop_at") and not os.path.exists(p["gate"]):
        time.sleep(0.002)

def crash(p, i):
    if i == p.get("raise_at"):
        raise ValueError(f"at {i}")
    if i == p.get("die_at"):
        os._exit(9)
"""

_COUNTS = """
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

def count(request, sender):
    n, p = told(request)
    try:
        for i in range(n):
            crash(p, i)
            gate(p, i)
            if sender.is_cancelled() and not p.get("deaf"):
                note(p, f"cancelled at {i}")
                break
            if p.get("flag_last") and i == n - 1:
                sender.send(response(i, p.get("size", 0)), FINAL)
                note(p, i)
                return
            sender.send(response(i, p.get("size", 0)))
            note(p, i)
    except pb_utils.TritonModelException as error:
        note(p, f"stopped: {error}")
        raise
    if p.get("error"):
        error = pb_utils.TritonError(p["error"], pb_utils.TritonError.INVALID_ARG)
        sender.send(pb_utils.InferenceResponse(error=error))
    if not p.get("forget"):
        sender.send(flags=FINAL)
    if p.get("again"):
        sender.send(response(n))
"""

_INLINE = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count(request, request.get_response_sender())
"""

_THREADS = """
def quietly(request, sender):
    try:
        count(request, sender)
    except Exception:  # pytest would keep it, and with it the request
        pass

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            arguments = (request, request.get_response_sender())
            threading.Thread(target=quietly, args=arguments, daemon=True).start()
"""

_GENERATES = """
class TritonPythonModel:
    def count(self, request):
        n, p = told(request)
        try:
            for i in range(n):
                crash(p, i)
                gate(p, i)
                note(p, i)
                yield response(i, p.get("size", 0))
            if p.get("error"):
                yield pb_utils.InferenceResponse(error=pb_utils.TritonError(p["error"]))
        finally:
            note(p, "closed")

    def execute(self, requests):
        return [self.count(request) for request in requests]
"""

# As in the examples of Triton's Python backend: a thread for each request, which outlives `execute`.
_REPEAT = """
class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        if not pb_utils.using_decoupled_model_transaction_policy(config):
            raise pb_utils.TritonModelException("expected a decoupled model")
        self.threads = 0
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            delays = pb_utils.get_input_tensor_by_name(request, "DELAY").as_numpy()
            wait = pb_utils.get_input_tensor_by_name(request, "WAIT").as_numpy()
            sender = request.get_response_sender()
            thread = threading.Thread(target=self.repeat, args=(sender, values, delays))
            thread.daemon = True
            with self.lock:
                self.threads += 1
            thread.start()
            time.sleep(wait[0] / 1000)
        return None

    def repeat(self, sender, values, delays):
        for index in range(values.size):
            time.sleep(delays[index] / 1000)
            out = pb_utils.Tensor("OUT", values[index : index + 1])
            idx = pb_utils.Tensor("IDX", np.array([index], np.uint32))
            sender.send(pb_utils.InferenceResponse(output_tensors=[idx, out]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        with self.lock:
            self.threads -= 1

    def finalize(self):
        while self.threads:
            time.sleep(0.01)
"""

# As many responses as the number it is given, each that number.
_SQUARE = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            for _ in range(value[0]):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

_ONE = """
class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", x * 2)]) for x in inputs]
"""

_TEXT = """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
            more = pb_utils.get_input_tensor_by_name(request, "more").as_numpy()
            told = json.dumps(json.loads(request.parameters()), sort_keys=True).encode()
            outputs = [
                pb_utils.Tensor("text", text),
                pb_utils.Tensor("sum", more.sum(axis=1, keepdims=True)),
                pb_utils.Tensor("shapes", np.array([[*text.shape, *more.shape]], np.int64)),
            ]
            responses.append(pb_utils.InferenceResponse(outputs, parameters={"said": told.decode()}))
        return responses
"""

TENSORS = """
input [{ name: "n" data_type: TYPE_INT32 dims: [ 1 ] }]
output [
  { name: "i" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "blob" data_type: TYPE_UINT8 dims: [ -1 ] }
]
"""
_REPEATS = """
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [
  { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }
]
"""
_NUMBER = """
input [{ name: "IN" data_type: TYPE_INT32 dims: [ 1 ] }]
output [{ name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }]
"""


_WORDS = """
max_batch_size: 4
input [
  { name: "text" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "more" data_type: TYPE_INT64 dims: [ -1 ] }
]
output [
  { name: "text" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "sum" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "shapes" data_type: TYPE_INT64 dims: [ 4 ] }
]
"""


def build(root: Path) -> Path:
    """Write all models; returns the repository."""
    write(root, COUNTS, TENSORS, _ROWS + _COUNTS + _INLINE)
    write(root, THREADED, TENSORS, _ROWS + _COUNTS + _THREADS)
    write(root, GENERATES, TENSORS, _ROWS + _GENERATES)
    write(root, REPEAT, _REPEATS, _REPEAT)
    write(root, SQUARE, _NUMBER, _SQUARE)
    write(root, ONE, _NUMBER, _ONE, decoupled=False)
    write(root, TEXT, _WORDS, _TEXT, decoupled=False)
    return root


def write(root: Path, name: str, tensors: str, source: str, *, decoupled: bool = True) -> None:
    """Write a model; what its source imports mostly is there already."""
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(_HEAD + source)
    policy = "model_transaction_policy { decoupled: true }" if decoupled else ""
    (folder.parent / "config.pbtxt").write_text(f'backend: "python"\n{tensors}\n{policy}\n')


def lines(journal: Path) -> list[str]:
    """What a model has written so far."""
    return journal.read_text().split("\n")[:-1] if os.path.exists(journal) else []  # noqa: PTH110
