"""The RPCs about the server and its models."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from google.protobuf import json_format

from qinfer.errors import ModelNotFound, Unsupported
from qinfer.proto import (
    ModelConfig,
    ModelConfigRequest,
    ModelConfigResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ModelRepositoryParameter,
    ModelStatisticsRequest,
    ModelStatisticsResponse,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from qinfer_gateway import repository
from qinfer_gateway.front import EXTENSIONS, SERVER_NAME, SERVER_VERSION, Front


class Questions:
    """Answers from a `Front`, as messages. Methods are named after their RPC and raise `QInferError`."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def server_live(self, _: ServerLiveRequest) -> ServerLiveResponse:
        return ServerLiveResponse(live=self._front.live)

    async def server_ready(self, _: ServerReadyRequest) -> ServerReadyResponse:
        return ServerReadyResponse(ready=self._front.ready)

    async def model_ready(self, request: ModelReadyRequest) -> ModelReadyResponse:
        try:
            ready = self._front.model_ready(request.name, request.version)
        except ModelNotFound:
            # Triton's clients ask this of models that may not be there, and want a plain answer.
            ready = False
        return ModelReadyResponse(ready=ready)

    async def server_metadata(self, _: ServerMetadataRequest) -> ServerMetadataResponse:
        return ServerMetadataResponse(name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS)

    async def model_metadata(self, request: ModelMetadataRequest) -> ModelMetadataResponse:
        return ModelMetadataResponse(**self._front.metadata(request.name, request.version))

    async def model_config(self, request: ModelConfigRequest) -> ModelConfigResponse:
        record = self._front.record(request.name, request.version)
        return ModelConfigResponse(config=ModelConfig.FromString(record.config))

    async def repository_index(self, request: RepositoryIndexRequest) -> RepositoryIndexResponse:
        _only_repository(request.repository_name)
        states = await repository.index(self._front.repository, ready=request.ready)
        answer = RepositoryIndexResponse()
        for one in states:
            answer.models.add(name=one.name, version=one.version, state=one.state, reason=one.reason)
        return answer

    async def repository_model_load(self, request: RepositoryModelLoadRequest) -> RepositoryModelLoadResponse:
        _only_repository(request.repository_name)
        config = repository.override_of(_values(request.parameters))
        await self._front.repository.load(request.model_name, config=config)
        return RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: RepositoryModelUnloadRequest
    ) -> RepositoryModelUnloadResponse:
        _only_repository(request.repository_name)
        repository.check_unload(_values(request.parameters))
        await self._front.repository.unload(request.model_name)
        return RepositoryModelUnloadResponse()

    async def model_statistics(self, request: ModelStatisticsRequest) -> ModelStatisticsResponse:
        report = await self._front.statistics(request.name, request.version)
        return json_format.ParseDict(msgspec.to_builtins(report), ModelStatisticsResponse())


def _values(parameters: Mapping[str, ModelRepositoryParameter]) -> dict[str, object]:
    """The value of each parameter, whichever of its fields it is in."""
    values = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, field) if field else None
    return values


def _only_repository(name: str) -> None:
    if name:
        raise Unsupported(f"repository {name[:80]!r}: repositories have no names here; expected none")
