"""What a process offers, as tools of the broker are told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCounters:
    """What a service has done since it began.

    Attributes:
        requests: answered, with outputs or with an error.
        errors: those answered with an error.
        last_error: reason of the latest of them; empty for none.
        processing_ns: nanoseconds from publication to answer, summed over all requests.
        data: what else there is to know, as JSON has it.
    """

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_ns: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One thing that this process offers.

    Attributes:
        name: letters, digits, '_' and '-'; the same in all processes that offer the same.
        id: of this one, a subject token; unique in the fleet.
        version: a semantic version.
        description: for people.
        subject: where its requests are published. Nobody subscribes to it for the service's sake.
        queue: what processes that offer the same share.
        metadata: what programs want to know.
        started: since when it is offered, in UTC.
        counters: asked whenever somebody wants to know.
    """

    name: str
    id: str
    version: str
    description: str
    subject: str
    queue: str
    metadata: Mapping[str, str]
    started: datetime
    counters: Callable[[], ServiceCounters]
