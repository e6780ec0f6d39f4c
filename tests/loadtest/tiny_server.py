"""The smallest real server a load test can run against: Open Inference Protocol over HTTP, no batching.

Usage: tiny_server.py PORT MODEL [--fault wrong|refuse|exit]
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime

_INFER = "/v2/models/mlp/infer"


class Handler(BaseHTTPRequestHandler):
    """Answers inference, readiness and statistics for the model "mlp"."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    session: onnxruntime.InferenceSession
    fault = ""
    count = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        count = Handler.count
        stats = {"name": "mlp", "version": "1", "inference_count": count, "execution_count": count}
        self._answer(200, {"model_stats": [stats]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.fault == "refuse":
            self._answer(429, {"error": "full"})
            return
        rows = np.asarray(body["inputs"][0]["data"], dtype=np.float32).reshape(1, -1)
        result = self.session.run(None, {"x": rows})[0]
        if self.fault == "wrong":
            result = result + 1
        with self.lock:
            Handler.count += 1
        data = {"name": "y", "datatype": "FP32", "shape": list(result.shape), "data": result.ravel().tolist()}
        self._answer(200, {"model_name": "mlp", "outputs": [data]})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Takes more connections at once than the standard library's five."""

    request_queue_size = 128


def main(port: str, model: str, fault: str = "") -> None:
    if fault == "exit":
        sys.exit("no such device")
    Handler.fault = fault
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    Handler.session = onnxruntime.InferenceSession(model, options)
    Server(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
