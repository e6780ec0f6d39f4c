"""Logging: text or JSON lines on stderr, with the process's role and id on every line and no credentials."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, TypeAlias

import msgspec

LogFormat: TypeAlias = Literal["text", "json"]

FIELDS = "fields"
"""Key of `extra` for structured values: `logger.info("loaded", extra={FIELDS: {"model": "mlp"}})`."""

_REDACTED = "***"
_SERVER_LIST = re.compile(r",(?=[A-Za-z][A-Za-z0-9+.-]*://)")
# Up to the last "@": an unescaped "@", "/" or "," belongs to the password, not to the host.
_USER_INFO = re.compile(r"(?<=://)(?:(?!,[A-Za-z][A-Za-z0-9+.-]*://)\S)*@")
_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&;\s]*(?:token|passw|secret|key|auth|sig|jwt|nkey|cred)[^=&;\s]*=)[^&;#\s]+",
    re.IGNORECASE,
)
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85, 0x2028, 0x2029)} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
}
_NEEDS_QUOTES = re.compile(r"[\s\"=\\]|[^\x20-\x7e]|^$")

_encode = msgspec.json.Encoder(enc_hook=str).encode


def hold_back_secrets() -> None:
    """Keep the logger that shows requests to Kafka above DEBUG: in one of them is the password."""
    requests = logging.getLogger("aiokafka.conn")
    requests.setLevel(max(logging.INFO, requests.getEffectiveLevel()))


def redact(url: str) -> str:
    """A URL, or a comma-separated list of them, without user, password, token and secret query parameters.

    It errs on the side of hiding too much; the result is for people, not for connecting.
    """
    return ",".join(_redact_one(server) for server in _SERVER_LIST.split(url))


def _redact_one(url: str) -> str:
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    # NATS takes "user:password@host", without a scheme, too.
    _, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{_REDACTED if at else ''}{at}{_redact_parameters(host)}"


def _redact_parameters(text: str) -> str:
    return _SECRET_PARAMETER.sub(rf"\1{_REDACTED}", text)


def _redact_text(text: str) -> str:
    if "://" not in text:
        return text
    return _redact_parameters(_USER_INFO.sub(f"{_REDACTED}@", text))


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def json_line(fields: Mapping[str, Any]) -> str:
    """One line of JSON; values JSON does not know are written as their text."""
    return _encode(fields).decode()


def text_fields(fields: Mapping[str, Any]) -> str:
    """`key=value` pairs, quoted where needed, so that a value can neither end the line nor fake a field."""
    return " ".join(f"{name}={_text_value(value)}" for name, value in fields.items())


def _text_value(value: Any) -> str:
    text = str(value)
    return _encode(text).decode().translate(_CONTROL) if _NEEDS_QUOTES.search(text) else text


class _Formatter(logging.Formatter):
    """What both formats share: identity, fields and redaction."""

    def __init__(self, identity: Mapping[str, str]) -> None:
        super().__init__()
        self.identity = identity

    def fields(self, record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
        given = getattr(record, FIELDS, None)
        if isinstance(given, Mapping):
            for name, value in given.items():
                yield str(name), _redact_text(value) if isinstance(value, str) else value

    def trouble(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return _redact_text("\n".join(parts))


class JsonFormatter(_Formatter):
    """One JSON object a line: ts, level, logger, role, id, message, then the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        line: dict[str, Any] = {
            "ts": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self.identity,
            "message": _redact_text(record.getMessage()),
        }
        trouble = self.trouble(record)
        if trouble:
            line["exception"] = trouble
        for name, value in self.fields(record):
            line.setdefault(name, value)
        return json_line(line)


class TextFormatter(_Formatter):
    """One line for people: time, level, role/id, logger, message, fields; tracebacks follow on their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        identity = "/".join(self.identity.values())
        message = _redact_text(record.getMessage()).translate(_CONTROL)
        line = f"{timestamp(record.created)} {record.levelname:<7} {identity} {record.name}: {message}"
        fields = text_fields(dict(self.fields(record)))
        trouble = self.trouble(record)
        return line + (f" {fields}" if fields else "") + (f"\n{trouble}" if trouble else "")


class LogHandler(logging.StreamHandler[TextIO]):
    """The root handler of a qinfer process.

    Attributes:
        log_format: what it writes.
        identity: role and id of the process.
    """

    def __init__(self, stream: TextIO, log_format: LogFormat, identity: Mapping[str, str]) -> None:
        super().__init__(stream)
        self.log_format = log_format
        self.identity = identity
        self.setFormatter(JsonFormatter(identity) if log_format == "json" else TextFormatter(identity))

    def write(self, lines: str) -> None:
        """Write finished lines in one piece, never in the middle of a record's."""
        self.acquire()
        try:
            self.stream.write(lines)
            self.flush()
        finally:
            self.release()


def configure_logging(
    *,
    role: str,
    instance: str = "",
    log_format: LogFormat = "text",
    level: str = "info",
    stream: TextIO | None = None,
) -> LogHandler:
    """Send every logger's records to one handler; an earlier call's handler is replaced.

    Args:
        role: "gateway", "worker", ... on every line as `role`.
        instance: id of this process; on every line as `id`.
        log_format: "text" or "json".
        level: lowest level that is logged: "debug", "info", "warning" or "error".
        stream: stderr when None.
    """
    identity = {"role": role, **({"id": instance} if instance else {})}
    handler = LogHandler(stream or sys.stderr, log_format, identity)
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, LogHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # The request log is ours: one line a request, for every protocol, and only where it is asked for.
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    if root.level > logging.DEBUG:  # "Started server process" and the like, once for each server of a role
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return handler


def log_handler() -> LogHandler:
    """The handler of `configure_logging`; one with its defaults where it was not called."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            return handler
    return LogHandler(sys.stderr, "text", {})
