"""What a server is asked about its models, and told to do with them, over HTTP.

A connection for each question, by the standard library: the supervisor of `qinfer serve` needs no more.
Models themselves are asked by `qinfer.client`.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

from qinfer.client.factory import KEY_VARIABLE
from qinfer.client.http.wire import model_path, read_error, read_json
from qinfer.errors import DeadlineExceeded, InvalidRequest, Unavailable


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

    def metadata(self, model: str) -> dict[str, Any]:
        """A model's signature."""
        return dict(self._json("GET", model_path(model)))

    def repository_index(self) -> list[dict[str, Any]]:
        """Models of the workers' repositories: name, version, state and reason of each."""
        return list(self._json("POST", "/v2/repository/index"))

    def load(self, model: str, config: str = "") -> None:
        """Have the workers load a model, with a configuration (JSON) instead of its file if one is given."""
        self._change(model, "load", {"config": config} if config else {})

    def unload(self, model: str) -> None:
        """Have the workers forget a model."""
        self._change(model, "unload", {})

    def submit(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Have a job accepted; returns it."""
        return dict(self._json("POST", "/v2/jobs", json.dumps(job).encode()))

    def _change(self, model: str, action: str, parameters: Mapping[str, Any]) -> None:
        body = json.dumps({"parameters": parameters}).encode()
        self._call("POST", f"/v2/repository/models/{quote(model, safe='')}/{action}", body)

    def _json(self, verb: str, path: str, body: bytes | None = None) -> Any:
        return read_json(self._call(verb, path, body)[2])

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
            told = {name.lower(): value for name, value in response.headers.items()}
            raise read_error(response.status, told, raw)
        return response.status, response.headers, raw
