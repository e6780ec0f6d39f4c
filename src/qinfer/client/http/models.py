"""Which models there are, as a gateway tells."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from http import HTTPStatus
from time import monotonic
from typing import Any

from qinfer.client.base import ModelInfo
from qinfer.client.http.session import Session
from qinfer.client.http.wire import model_path, read_error, read_json
from qinfer.errors import InternalError
from qinfer.lifecycle import cancelled
from qinfer.registry import TensorRecord
from qinfer.signature import Signature

_FRESH_SECONDS = 60.0  # a signature is asked for again after that time, or when a request does not fit it
_MOST = 1024  # signatures that are remembered


class Target:
    """What is known of a model.

    Attributes:
        info: its signature.
        signature: checks requests for it; None where the server does not tell enough.
        until: when it is to be asked for again, of `time.monotonic`.
    """

    __slots__ = ("info", "signature", "until")

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.until = monotonic() + _FRESH_SECONDS
        self.signature = (
            None if info.max_batch_size is None else Signature(info.inputs, info.outputs, info.max_batch_size)
        )

    def same(self, other: Target) -> bool:
        """Whether both have the same signature."""
        one, two = self.info, other.info
        return (one.inputs, one.outputs, one.max_batch_size) == (two.inputs, two.outputs, two.max_batch_size)


class Models:
    """Asks a gateway for its models, and remembers their signatures.

    Args:
        session: a started session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[tuple[str, str], Target] = {}
        self._asked: dict[tuple[str, str], asyncio.Task[Target]] = {}

    async def find(self, model: str, version: str, deadline: float) -> Target:
        """What is known of a model; not asked for each time.

        Raises:
            ModelNotFound: no such model or version.
            QInferError: why it is not known.
        """
        key = (model, version)
        known = self._known.get(key)
        if known is not None and known.until > monotonic():
            return known
        task = self._asked.get(key)
        if task is None:  # many who ask at once ask once
            task = self._asked[key] = asyncio.create_task(self._find(model, version, deadline))
            task.add_done_callback(lambda done: self._found(key, done))
        return await asyncio.shield(task)

    def forget(self, model: str, version: str) -> None:
        """Ask for a model's signature again when it is needed next."""
        self._known.pop((model, version), None)

    async def info(self, model: str, version: str, deadline: float) -> ModelInfo:
        """A model as it is now.

        Raises:
            ModelNotFound: no such model or version.
        """
        path = model_path(model, version)
        async with asyncio.TaskGroup() as group:
            metadata = group.create_task(self._session.call("GET", path, deadline=deadline, check=False))
            config = group.create_task(
                self._session.call("GET", f"{path}/config", deadline=deadline, check=False)
            )
            ready = group.create_task(
                self._session.call("GET", f"{path}/ready", deadline=deadline, check=False)
            )
        told = metadata.result()
        if told.status != HTTPStatus.OK:
            raise read_error(told.status, told.headers, told.raw)
        options = config.result()
        known = read_json(options.raw) if options.status == HTTPStatus.OK else None
        return _read(read_json(told.raw), known, ready=ready.result().status == HTTPStatus.OK)

    async def all(self, deadline: float) -> list[ModelInfo]:
        """All known models that this client may ask.

        Raises:
            QInferError: the server does not tell.
        """
        rows = read_json((await self._session.call("GET", "/v2/models", deadline=deadline)).raw)
        names = [str(row["name"]) for row in rows.get("models", ()) if row.get("versions")]
        return [await self.info(name, "", deadline) for name in names]

    async def close(self) -> None:
        """Ask no more. Idempotent."""
        await cancelled(*self._asked.values())

    async def _find(self, model: str, version: str, deadline: float) -> Target:
        return Target(await self.info(model, version, deadline))

    def _found(self, key: tuple[str, str], task: asyncio.Task[Target]) -> None:
        self._asked.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = task.result()


def _read(metadata: Mapping[str, Any], config: Mapping[str, Any] | None, *, ready: bool) -> ModelInfo:
    try:
        batch = None if config is None else int(config.get("max_batch_size", 0))
        optional = {
            str(spec["name"]) for spec in (config or {}).get("input", ()) if spec.get("optional", False)
        }
        return ModelInfo(
            name=str(metadata["name"]),
            versions=tuple(str(version) for version in metadata.get("versions") or ()),
            platform=str(metadata.get("platform", "")),
            ready=ready,
            inputs=tuple(_tensor(spec, batch, optional) for spec in metadata.get("inputs", ())),
            outputs=tuple(_tensor(spec, batch, frozenset()) for spec in metadata.get("outputs", ())),
            max_batch_size=batch,
            decoupled=bool((config or {}).get("model_transaction_policy", {}).get("decoupled", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InternalError(f"the server's answer is no model metadata: {error!r}") from None


def _tensor(spec: Mapping[str, Any], batch: int | None, optional: Set[str]) -> TensorRecord:
    dims = tuple(int(dim) for dim in spec["shape"])
    name = str(spec["name"])
    return TensorRecord(name, str(spec["datatype"]), dims[1:] if batch else dims, name in optional)
