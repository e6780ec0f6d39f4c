"""Asks a schema registry, and remembers what it said.

Schemas never change under their id, so an answer is kept for good; "no such schema" is kept for a while.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from qinfer.errors import SetupError, Unavailable
from qinfer_workers.kafka import secrets, settings

MAX_ANSWER = 4 * 1024 * 1024
"""Largest answer that is read, in bytes."""

MAX_REFERENCES = 64
"""Most schemas that one is made of."""

UNKNOWN_FOR = 30.0
"""Seconds for which an id stays unknown before the registry is asked again."""

_MAX_KNOWN = 10_000  # ids that are remembered; records may hold any
_AT_ONCE = 8  # requests at a time
_MEDIA = "application/vnd.schemaregistry.v1+json"
_LATER = frozenset((408, 429, 500, 502, 503, 504))


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A schema.

    Attributes:
        id: its id in the registry.
        kind: "AVRO", "PROTOBUF" or "JSON".
        text: what it says.
        references: schemas it is made of, by the names it calls them, the innermost first.
    """

    id: int
    kind: str
    text: str
    references: tuple[tuple[str, str], ...] = ()


class _Refused(Exception):
    """The registry answered with an error that no retry mends."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Registry:
    """A registry.

    Args:
        given: its settings.
        folder: what relative names of files begin at.
    """

    def __init__(self, given: settings.SchemaRegistry, folder: Path) -> None:
        self.url = given.url.rstrip("/")
        self._given = given
        self._folder = folder
        self._session: aiohttp.ClientSession | None = None
        self._known: OrderedDict[int, Schema | float] = OrderedDict()  # a schema, or until when there is none
        self._slots = asyncio.Semaphore(_AT_ONCE)

    @classmethod
    def of(cls, given: settings.SchemaRegistry | None, folder: Path) -> Registry | None:
        """The registry of a pipeline, if it has one."""
        return None if given is None else cls(given, folder)

    async def start(self) -> None:
        """Make ready to ask. Idempotent.

        Raises:
            SetupError: a file cannot be read.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls(), limit=_AT_ONCE),
                timeout=aiohttp.ClientTimeout(total=self._given.timeout),
                headers={"Accept": f"{_MEDIA}, application/json"},
            )

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def known(self, number: int) -> Schema | None:
        """A schema that was fetched before; None where there is none, or it was not asked for."""
        found = self._known.get(number)
        return found if isinstance(found, Schema) else None

    async def fetch(self, numbers: Iterable[int]) -> None:
        """Ask for the schemas of ids that are not known yet.

        Raises:
            Unavailable: the registry does not answer.
        """
        now = time.monotonic()
        wanted = [number for number in set(numbers) if self._asks(number, now)]
        if not wanted:
            return
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._outcome(number)) for number in wanted]
        for task in tasks:
            if (error := task.result()) is not None:
                raise error

    async def register(self, subject: str, kind: str, text: str) -> int:
        """The id of a schema, which becomes the subject's newest version unless it is one already.

        Raises:
            SetupError: the registry refuses it.
            Unavailable: the registry does not answer.
        """
        return await self._submit(f"/subjects/{quote(subject, safe='')}/versions", subject, kind, text)

    async def look_up(self, subject: str, kind: str, text: str) -> int:
        """The id of a schema that the subject has.

        Raises:
            SetupError: it has not.
            Unavailable: the registry does not answer.
        """
        return await self._submit(f"/subjects/{quote(subject, safe='')}", subject, kind, text)

    async def latest(self, subject: str) -> Schema:
        """The newest schema of a subject.

        Raises:
            SetupError: there is none.
            Unavailable: the registry does not answer.
        """
        try:
            answer = await self._ask("GET", f"/subjects/{quote(subject, safe='')}/versions/latest")
            return await self._schema(_integer(answer, "id"), answer)
        except _Refused as error:
            raise SetupError(
                f"{self.url}: subject {subject!r}: {error}; expected it to have a schema"
            ) from None

    async def _submit(self, path: str, subject: str, kind: str, text: str) -> int:
        body = {"schema": text} if kind == "AVRO" else {"schema": text, "schemaType": kind}
        try:
            return _integer(await self._ask("POST", path, body), "id")
        except _Refused as error:
            raise SetupError(f"{self.url}: the schema for subject {subject!r}: {error}") from None

    def _asks(self, number: int, now: float) -> bool:
        found = self._known.get(number, 0.0)
        return not isinstance(found, Schema) and found <= now

    async def _outcome(self, number: int) -> Unavailable | None:
        """Ask for a schema; what went wrong is returned, so that one failure does not cancel the others."""
        try:
            answer = await self._ask("GET", f"/schemas/ids/{number}")
            found: Schema | float = await self._schema(number, answer)
        except Unavailable as error:
            return error
        except _Refused as error:
            if error.status in (401, 403):  # that is not the record's fault
                return Unavailable(f"{self.url}: schema {number}: {error}")
            found = time.monotonic() + UNKNOWN_FOR
        self._known[number] = found
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return None

    async def _schema(self, number: int, answer: Mapping[str, Any]) -> Schema:
        references: dict[str, str] = {}
        await self._resolve(answer, references)
        text = answer.get("schema")
        if not isinstance(text, str):
            raise _Refused(200, "an answer without schema; expected one")
        return Schema(
            id=number,
            kind=str(answer.get("schemaType") or "AVRO").upper(),
            text=text,
            references=tuple(references.items()),
        )

    async def _resolve(self, answer: Mapping[str, Any], found: dict[str, str]) -> None:
        """Fetch what a schema refers to, and what that refers to, each before whoever refers to it."""
        for reference in answer.get("references") or ():
            name = str(reference.get("name"))
            if name in found:
                continue
            if len(found) >= MAX_REFERENCES:
                raise _Refused(200, f"a schema made of more than {MAX_REFERENCES}; expected fewer")
            found[name] = ""  # one that refers to itself ends here
            subject, version = quote(str(reference.get("subject")), safe=""), reference.get("version")
            inner = await self._ask("GET", f"/subjects/{subject}/versions/{int(version)}")
            await self._resolve(inner, found)
            del found[name]
            found[name] = str(inner.get("schema"))

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        assert self._session is not None
        headers = self._credentials()
        data = None
        if body is not None:
            data = msgspec.json.encode(body)
            headers["Content-Type"] = _MEDIA
        try:
            async with (
                self._slots,
                self._session.request(
                    method, self.url + path, data=data, headers=headers, allow_redirects=False
                ) as answer,
            ):
                return _answer(answer.status, await _body(answer), self.url + path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            text = str(error) or type(error).__name__
            raise Unavailable(f"schema registry {self.url}: {text}") from None

    def _credentials(self) -> dict[str, str]:
        """The header that proves who asks; files are read again each time."""
        given = self._given
        if given.username:
            password = self._secret(given.password, given.password_file)
            pair = base64.b64encode(f"{given.username}:{password}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        token = self._secret(given.token, given.token_file)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _secret(self, given: str, name: str) -> str:
        return secrets.read(self._folder / name) if name else given

    def _tls(self) -> ssl.SSLContext | bool:
        if not self.url.startswith("https:"):
            return True
        tls = self._given.tls
        name = tls.ca_file
        try:
            context = ssl.create_default_context(cafile=str(self._folder / name) if name else None)
            if tls.cert_file:
                name = tls.cert_file
                password = self._secret(tls.key_password, tls.key_password_file)
                key = self._folder / tls.key_file if tls.key_file else None
                context.load_cert_chain(self._folder / name, key, password)
        except (OSError, ssl.SSLError) as error:
            raise SetupError(f"schema_registry.tls: {name}: {error}; expected a file in PEM") from None
        return context


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    data = await answer.content.read(MAX_ANSWER + 1)
    while len(data) <= MAX_ANSWER and (more := await answer.content.read(MAX_ANSWER + 1 - len(data))):
        data += more
    return data


def _answer(status: int, data: bytes, url: str) -> dict[str, Any]:
    if status in _LATER:
        raise Unavailable(f"{url}: status {status}; expected the registry to answer")
    if len(data) > MAX_ANSWER:
        raise _Refused(status, f"more than {MAX_ANSWER} bytes; expected a schema")
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = None
    if status == 200 and isinstance(decoded, dict):
        return decoded
    message = decoded.get("message") if isinstance(decoded, dict) else None
    raise _Refused(status, str(message or "no answer of a schema registry"))


def _integer(answer: Mapping[str, Any], name: str) -> int:
    found = answer.get(name)
    if not isinstance(found, int) or not 0 <= found < 2**32:
        raise _Refused(200, f"found {name} {found!r}; expected a number")
    return found
