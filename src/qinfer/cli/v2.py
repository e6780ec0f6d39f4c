"""A client for the Open Inference Protocol over HTTP that needs only the standard library.

It asks for tensors in binary form (the protocol's binary tensor data extension) and understands both forms.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from qinfer.datatypes import datatype
from qinfer.errors import (
    BY_REASON,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    QInferError,
    Unavailable,
    from_reason,
)
from qinfer.message import Tensor

KEY_VARIABLE = "QINFER_API_KEY"
"""Environment variable with the key that gateways are shown: a command line is no place for it."""

_HEADER_LENGTH = "Inference-Header-Content-Length"
_REASON = "X-QInfer-Reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A model's answer.

    Attributes:
        model, version: what answered.
        outputs: the output tensors.
        parameters: what the model returned beside them.
        seconds: from sending the request to its answer.
    """

    model: str
    version: str
    outputs: Sequence[Tensor]
    parameters: Mapping[str, Any]
    seconds: float


class V2Client:
    """Talks to one server; every call opens a connection of its own.

    Args:
        url: "http://HOST:PORT", or https: the certificate has to be good by the authorities of the system, or
            of the file that SSL_CERT_FILE names.
        timeout: seconds each call may take at each step on the network.
        key: API key or token; None for the one in the environment (`KEY_VARIABLE`), if there is one.

    Raises:
        InvalidRequest: the URL is none.
    """

    def __init__(self, url: str, *, timeout: float = 30.0, key: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        try:
            self._port = parts.port
        except ValueError:
            self._port = None
            parts = parts._replace(netloc="")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequest(f"URL {url!r}: expected http://HOST:PORT")
        self._url = url
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._prefix = parts.path.rstrip("/")
        self._timeout = timeout
        key = os.environ.get(KEY_VARIABLE, "") if key is None else key
        self._credentials = {"Authorization": f"Bearer {key}"} if key else {}

    def is_ready(self) -> bool:
        """Whether the server says that all its models are ready."""
        return self._call("GET", "/v2/health/ready", check=False)[0] == HTTPStatus.OK

    def models(self) -> list[dict[str, Any]]:
        """The models: name, versions, backend, state, ids of the workers, and reason of each."""
        return list(self._json("GET", "/v2/models").get("models", ()))

    def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """A model's signature."""
        return dict(self._json("GET", _path(model, version)))

    def repository_index(self) -> list[dict[str, Any]]:
        """Models of the workers' repositories: name, version, state and reason of each."""
        return list(self._json("POST", "/v2/repository/index"))

    def load(self, model: str, config: str = "") -> None:
        """Have the workers load a model, with a configuration (JSON) instead of its file if one is given."""
        self._change(model, "load", {"config": config} if config else {})

    def unload(self, model: str) -> None:
        """Have the workers forget a model."""
        self._change(model, "unload", {})

    def _change(self, model: str, action: str, parameters: Mapping[str, Any]) -> None:
        body = json.dumps({"parameters": parameters}).encode()
        self._call("POST", f"/v2/repository/models/{quote(model, safe='')}/{action}", body)

    def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Run a model once.

        Raises:
            QInferError: what the server answered, as the class of its reason where it names one.
        """
        body: dict[str, Any] = {
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(tensor.data)},
                }
                for tensor in inputs
            ],
            "parameters": {**(parameters or {}), "binary_data_output": True},
        }
        if outputs:
            body["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        header = json.dumps(body).encode()
        started = time.perf_counter()
        _, headers, raw = self._call(
            "POST",
            f"{_path(model, version)}/infer",
            header + b"".join(tensor.data for tensor in inputs),
            {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(header))},
        )
        return _read_answer(raw, headers.get(_HEADER_LENGTH), time.perf_counter() - started)

    def _json(self, verb: str, path: str, body: bytes | None = None) -> Any:
        return _parse(self._call(verb, path, body)[2])

    def _call(
        self,
        verb: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        check: bool = True,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        make = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = make(self._host, self._port, timeout=self._timeout)
        try:
            connection.request(verb, self._prefix + path, body, {**self._credentials, **(headers or {})})
            response = connection.getresponse()
            raw = response.read()
        except TimeoutError:
            raise DeadlineExceeded(f"{self._url} did not answer within {self._timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise Unavailable(
                f"the certificate of {self._url} is not trusted: {error.verify_message}; SSL_CERT_FILE can "
                "name the file of an authority of your own"
            ) from None
        except http.client.RemoteDisconnected:
            hint = "" if self._secure else "; does it expect https://?"
            raise Unavailable(
                f"the server at {self._url} closed the connection without an answer{hint}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"no server answers at {self._url}: {error or type(error).__name__}") from None
        finally:
            connection.close()
        if check and response.status >= HTTPStatus.BAD_REQUEST:
            raise _error(response.status, response.headers, raw)
        return response.status, response.headers, raw


def _path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise InternalError(f"the server's answer is not JSON: {error}") from None


def _error(status: int, headers: http.client.HTTPMessage, raw: bytes) -> QInferError:
    """Rebuild an error; from other servers than qinfer only the status tells the class."""
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    fields = body if isinstance(body, dict) else {}
    message = str(
        fields.get("error") or raw.decode(errors="replace").strip()[:500] or f"HTTP status {status}"
    )
    after = headers.get("Retry-After", "")
    retry_after = float(after) if after.isdigit() else None
    reason = headers.get(_REASON, "")
    if reason in BY_REASON:
        return from_reason(reason, message, retry_after)
    kind = next((kind for kind in BY_REASON.values() if kind.http_status == status), InternalError)
    return kind(message, retry_after=retry_after)


def _read_answer(raw: bytes, header_length: str | None, seconds: float) -> Answer:
    end = int(header_length) if header_length is not None and header_length.isdigit() else len(raw)
    body = _parse(raw[:end])
    try:
        outputs = []
        for output in body.get("outputs", ()):
            kind, shape = datatype(output["datatype"]), [int(size) for size in output["shape"]]
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                array = np.empty(shape, dtype=object) if kind.itemsize == 0 else None
                if array is not None:
                    array.reshape(-1)[:] = np.asarray(output["data"], dtype=object).reshape(-1)
                else:
                    array = np.asarray(output["data"], dtype=kind.dtype).reshape(shape)
                outputs.append(Tensor.from_numpy(output["name"], array, kind.name))
            else:
                outputs.append(Tensor(output["name"], kind.name, shape, memoryview(raw)[end : end + size]))
                end += size
        return Answer(
            model=str(body.get("model_name", "")),
            version=str(body.get("model_version", "")),
            outputs=outputs,
            parameters=body.get("parameters", {}),
            seconds=seconds,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InternalError(f"the server's answer is no inference response: {error!r}") from None
