"""Every span and attribute name in one place.

OpenTelemetry's messaging and RPC conventions are still in development, so their names are pinned here and not
taken from a library whose next release may rename them.
"""

from __future__ import annotations

from typing import Final

INSTRUMENTATION_SCOPE: Final = "qinfer"

# https://opentelemetry.io/docs/specs/semconv/resource/#service
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"

# https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGING_CONSUMER_GROUP_NAME: Final = "messaging.consumer.group.name"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_CLIENT_ID: Final = "messaging.client.id"
MESSAGING_BATCH_MESSAGE_COUNT: Final = "messaging.batch.message_count"

MESSAGING_KAFKA_PARTITION: Final = "messaging.destination.partition.id"
MESSAGING_KAFKA_OFFSET: Final = "messaging.kafka.offset"

SYSTEM_NATS: Final = "nats"
SYSTEM_KAFKA: Final = "kafka"
OPERATION_PUBLISH: Final = "publish"
OPERATION_SEND: Final = "send"
OPERATION_PROCESS: Final = "process"

# https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/
ERROR_TYPE: Final = "error.type"

# https://opentelemetry.io/docs/specs/semconv/http/http-spans/, .../rpc/grpc/
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
RPC_RESPONSE_STATUS_CODE: Final = "rpc.response.status_code"

# The attributes Triton's OpenTelemetry mode sets.
TRITON_MODEL_NAME: Final = "triton.model_name"
TRITON_MODEL_VERSION: Final = "triton.model_version"
TRITON_REQUEST_ID: Final = "triton.request_id"

PROTOCOL: Final = "qinfer.protocol"
ROWS: Final = "qinfer.request.rows"
ATTEMPT: Final = "qinfer.request.attempt"
QUEUE_US: Final = "qinfer.request.queue_us"
WORKER: Final = "qinfer.worker"
INSTANCE: Final = "qinfer.instance"
BATCH_ROWS: Final = "qinfer.batch.rows"
BATCH_REQUESTS: Final = "qinfer.batch.requests"
BATCH_CLOSE_REASON: Final = "qinfer.batch.close_reason"
BATCH_COMPUTE_INFER_US: Final = "qinfer.batch.compute_infer_us"

SPAN_QUEUE_WAIT: Final = "queue wait"
SPAN_BATCH_WAIT: Final = "batch wait"
SPAN_REPLY: Final = "reply"
SPAN_COMPUTE_INPUT: Final = "compute input"
SPAN_BACKEND_INFER: Final = "backend infer"
SPAN_COMPUTE_OUTPUT: Final = "compute output"


def publish_span(model: str) -> str:
    """Name of the span of a publication."""
    return f"publish {model}"


def process_span(model: str) -> str:
    """Name of the span of a request in a worker."""
    return f"process {model}"


def batch_span(model: str) -> str:
    """Name of the span of a batch."""
    return f"batch {model}"


def score_span(topic: str) -> str:
    """Name of the span of a record of a stream."""
    return f"score {topic}"
