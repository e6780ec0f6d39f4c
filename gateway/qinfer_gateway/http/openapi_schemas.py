"""The bodies of the HTTP API as JSON Schema, for the OpenAPI document.

What has a type in the code is described from that type. The bodies of `infer` are described here once more,
in words for people: the codec reads and writes them in its own way, for speed, and a test holds the two
together.
"""

from __future__ import annotations

from inspect import cleandoc
from typing import Annotated, Any, NotRequired, TypeAlias, TypedDict, get_args

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from msgspec import Meta

from qinfer.control import State
from qinfer.datatypes import DATATYPES
from qinfer.proto import ModelConfig
from qinfer.repository.document import integer_range, type_of
from qinfer.repository.metadata import ModelMetadata
from qinfer.telemetry.statistics import StatisticsReport
from qinfer_gateway.http import openapi_jobs

Schema: TypeAlias = dict[str, Any]

_REF = "#/components/schemas/{name}"
_CONFIG = "ModelConfig"

Datatype: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": [*DATATYPES]})]
Dimension: TypeAlias = Annotated[int, Meta(ge=0)]
Shape: TypeAlias = Annotated[
    list[Dimension], Meta(description="The first dimension is the batch, where the model has one.")
]
Data: TypeAlias = Annotated[
    list[Any],
    Meta(description="The elements, row-major, flat or nested. FP16 and BF16 have no JSON form."),
]


class Error(TypedDict):
    """Any error; the header `x-qinfer-reason` says which."""

    error: Annotated[str, Meta(description="What was wrong, what was expected and where, for people.")]


class Live(TypedDict):
    """Whether the process works at all."""

    live: bool


class Ready(TypedDict):
    """Whether requests for every known model can be answered."""

    ready: bool
    reason: NotRequired[Annotated[str, Meta(description="What is in the way, in words.")]]


class ModelReady(TypedDict):
    """Whether requests for a model can be answered."""

    name: str
    ready: bool
    reason: NotRequired[Annotated[str, Meta(description="What is in the way, in words.")]]


class ServerMetadata(TypedDict):
    """What answers here."""

    name: str
    version: str
    extensions: list[str]


class ModelEntry(TypedDict):
    """A model of the fleet, or one that could not be loaded."""

    name: str
    versions: list[str]
    backend: str
    state: Annotated[str, Meta(extra_json_schema={"enum": ["READY", "UNAVAILABLE"]})]
    workers: Annotated[list[str], Meta(description="Ids of the live workers that serve it.")]
    reason: Annotated[str, Meta(description="Why it is not ready.")]


class ModelList(TypedDict):
    """All models."""

    models: list[ModelEntry]


class InputParameters(TypedDict):
    """Parameters of an input; others are put up with."""

    binary_data_size: NotRequired[
        Annotated[
            int,
            Meta(ge=0, description="The input has no `data`: it is this many of the bytes after the JSON."),
        ]
    ]


class InferInput(TypedDict):
    """An input tensor."""

    name: str
    shape: Shape
    datatype: Datatype
    parameters: NotRequired[InputParameters | None]
    data: NotRequired[Data]


class OutputParameters(TypedDict):
    """Parameters of a requested output; others are put up with."""

    binary_data: NotRequired[
        Annotated[bool, Meta(description="Send it as raw bytes after the JSON, or expressly not.")]
    ]


class InferRequestedOutput(TypedDict):
    """An output that is wanted."""

    name: str
    parameters: NotRequired[OutputParameters | None]


class RequestParameters(TypedDict):
    """What qinfer itself understands; other parameters are scalars for the model."""

    timeout: NotRequired[
        Annotated[int, Meta(ge=0, description="Microseconds the answer may take; 0 for the server's limit.")]
    ]
    priority: NotRequired[
        Annotated[int, Meta(ge=0, description="1 is the highest; 0 for the model's default.")]
    ]
    binary_data_output: NotRequired[
        Annotated[bool, Meta(description="Send all outputs as raw bytes after the JSON.")]
    ]


class InferRequest(TypedDict):
    """A request for inference."""

    id: NotRequired[Annotated[str, Meta(description="Comes back with the answer, in logs and in traces.")]]
    parameters: NotRequired[RequestParameters | None]
    inputs: list[InferInput]
    outputs: NotRequired[
        Annotated[
            list[InferRequestedOutput] | None, Meta(description="The wanted outputs; all when left out.")
        ]
    ]


class AnswerParameters(TypedDict):
    """Parameters of an output."""

    binary_data_size: NotRequired[
        Annotated[int, Meta(ge=0, description="It is this many of the bytes after the JSON.")]
    ]


class InferOutput(TypedDict):
    """An output tensor."""

    name: str
    datatype: Datatype
    shape: Shape
    parameters: NotRequired[AnswerParameters]
    data: NotRequired[
        Annotated[
            list[bool | float | str | None],
            Meta(description="The elements, flat and row-major. NaN and infinities are null."),
        ]
    ]


class InferAnswer(TypedDict):
    """The answer to a request for inference."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    parameters: NotRequired[dict[str, Any]]
    outputs: list[InferOutput]


class GenerateRequest(TypedDict):
    """Inputs of the model under their names, as single elements or lists; others are parameters."""

    id: NotRequired[Annotated[str, Meta(description="Comes back with the answer, in logs and in traces.")]]
    parameters: NotRequired[RequestParameters]


class GenerateAnswer(TypedDict):
    """A response: outputs under their names, one element as it is, several as a flat list."""

    model_name: str
    model_version: str
    id: NotRequired[str]


class ModelIndex(TypedDict):
    """A model of the repository index."""

    name: str
    version: Annotated[str, Meta(description="Empty where no version is loaded.")]
    state: Annotated[str, Meta(extra_json_schema={"enum": [*get_args(State)]})]
    reason: Annotated[str, Meta(description="Why it is not ready, or what could not be loaded.")]


class IndexRequest(TypedDict):
    """Which models of the repository index are wanted."""

    ready: NotRequired[Annotated[bool, Meta(description="Only those that are ready.")]]


class LoadParameters(TypedDict):
    """Parameters of a load."""

    config: NotRequired[
        Annotated[str, Meta(description="A ModelConfig as JSON, to be used instead of the repository's.")]
    ]


class LoadRequest(TypedDict):
    """A load."""

    parameters: NotRequired[LoadParameters | None]


class UnloadParameters(TypedDict):
    """Parameters of an unload."""

    unload_dependents: NotRequired[Annotated[bool, Meta(description="Without effect: there are none.")]]


class UnloadRequest(TypedDict):
    """An unload."""

    parameters: NotRequired[UnloadParameters | None]


_BODIES: tuple[Any, ...] = (
    *(Error, Live, Ready, ModelReady, ServerMetadata, ModelList),
    *(InferRequest, InferAnswer, GenerateRequest, GenerateAnswer, ModelMetadata, StatisticsReport),
    *(ModelIndex, IndexRequest, LoadRequest, UnloadRequest),
    *openapi_jobs.BODIES,
)


def ref(name: str) -> Schema:
    """A reference to one of `components`."""
    return {"$ref": _REF.format(name=name)}


def components() -> dict[str, Schema]:
    """The schemas of all bodies, by name."""
    _, described = msgspec.json.schema_components(_BODIES, ref_template=_REF)
    schemas: dict[str, Schema] = {name: _tidy(schema) for name, schema in described.items()}
    schemas["RepositoryIndex"] = {"type": "array", "items": ref("ModelIndex")}
    for name in ("LoadParameters", "UnloadParameters"):
        schemas[name]["additionalProperties"] = False
    # Other parameters than these are for the model, and scalars.
    schemas["RequestParameters"]["additionalProperties"] = {"type": ["boolean", "number", "string"]}
    schemas["JobRequest"]["properties"]["request"] = ref("InferRequest")
    _add_message(type_of(ModelConfig), schemas)
    schemas[_CONFIG]["description"] = "A model's configuration, with the defaults of what it does not say."
    return schemas


def _tidy(schema: Schema) -> Schema:
    """Descriptions are docstrings: of those, the first paragraph in one line."""
    description = schema.get("description")
    if description:
        paragraph = cleandoc(description).partition("\n\n")[0]
        schema = {**schema, "description": " ".join(paragraph.split())}
    return schema


# The configuration is a protobuf message; its JSON is that of `qinfer.repository.metadata.config_json`.


def _add_message(message: Descriptor, schemas: dict[str, Schema]) -> Schema:
    name = message.full_name.partition(".")[2]
    if name not in schemas:
        schemas[name] = {}  # messages may hold themselves
        schemas[name] = {
            "title": name,
            "type": "object",
            "properties": {field.name: _field(field, schemas) for field in message.fields},
            "required": [field.name for field in message.fields if not field.has_presence],
        }
    return ref(name)


def _field(field: FieldDescriptor, schemas: dict[str, Schema]) -> Schema:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        values = message.fields_by_name["value"]
        return {"type": "object", "additionalProperties": _value(values, schemas)}
    value = _value(field, schemas)
    return {"type": "array", "items": value} if field.is_repeated else value


def _value(field: FieldDescriptor, schemas: dict[str, Schema]) -> Schema:
    if field.message_type is not None:
        return _add_message(field.message_type, schemas)
    if field.enum_type is not None:
        return {"type": "string", "enum": [*field.enum_type.values_by_name]}
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return {"type": "number"}
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return {"type": "string"}
    numbers = integer_range(field)
    return {"type": "integer", "minimum": numbers[0], "maximum": numbers[-1]}
