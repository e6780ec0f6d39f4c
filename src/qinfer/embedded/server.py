"""A nats-server of our own: loopback only, JetStream on, supervised."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from qinfer.embedded.backoff import Backoff
from qinfer.embedded.binary import find_binary
from qinfer.embedded.child import Child, ChildExited
from qinfer.embedded.configuration import HOST, MAX_PAYLOAD_LIMIT, USER, Settings, render
from qinfer.embedded.store import Store, look
from qinfer.errors import SetupError
from qinfer.lifecycle import cancelled

logger = logging.getLogger(__name__)

DEFAULT_MAX_PAYLOAD = 8 * 1024 * 1024

_POLL = 0.01
_CONNECT_TIMEOUT = 1.0
_STORE_WATCH = 1.0


class EmbeddedServer:
    """A nats-server that lives as long as this object is started and never longer than this process.

    It listens on the loopback interface and accepts only clients that know a random password, so that other
    users of the host cannot reach it. When it dies it is started again on the same port and store, with
    growing delays; clients reconnect by themselves.

    Start it from the event loop of a thread that lives as long as the process: on Linux the kernel ends the
    server with the thread that started it.

    Args:
        store_dir: where streams, configuration and log are kept; None for a temporary folder that is
            removed at stop.
        port: 0 for any free one.
        max_payload: largest message in bytes, at most 64 MiB.
        max_memory, max_storage: limits in bytes of what streams may take; None for the server's own choice.
        start_timeout, stop_timeout: seconds until a start fails, or a stop becomes a kill.
        on_restart: called when the server is back after a death.
        binary: the nats-server program; None to look for it (`find_binary`).
    """

    def __init__(
        self,
        store_dir: Path | None = None,
        *,
        port: int = 0,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_memory: int | None = None,
        max_storage: int | None = None,
        start_timeout: float = 15.0,
        stop_timeout: float = 10.0,
        on_restart: Callable[[], None] | None = None,
        binary: Path | None = None,
    ) -> None:
        if not 1024 <= max_payload <= MAX_PAYLOAD_LIMIT:
            raise SetupError(f"max_payload {max_payload}: expected 1024 to {MAX_PAYLOAD_LIMIT} bytes")
        self._store_dir = store_dir
        self._port = port
        self._max_payload = max_payload
        self._max_memory = max_memory
        self._max_storage = max_storage
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._on_restart = on_restart
        self._binary = binary
        self._name = f"qinfer-{secrets.token_hex(8)}"
        self._password = secrets.token_urlsafe(24)
        self._store: Store | None = None
        self._child: Child | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where clients connect; holds the password, so it must not be logged or put on a command line."""
        return _url(self._password, self.port)

    @property
    def port(self) -> int:
        """The port it listens on; the same after a restart.

        Raises:
            RuntimeError: it has not been started.
        """
        if not self._port:
            raise RuntimeError("the embedded broker has no port before it is started")
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process id (on other systems than Linux its guard's); None while it is down."""
        return self._child.pid if self._child is not None else None

    @property
    def restarts(self) -> int:
        """How often it has been started again after a death."""
        return self._child.restarts if self._child is not None else 0

    @property
    def directory(self) -> Path | None:
        """The store directory; None while not started."""
        return self._store.directory if self._store is not None else None

    async def start(self) -> None:
        """Start the server and return when it accepts clients.

        Raises:
            SetupError: no nats-server program, the store is in use, the port is taken, or the server was not
                ready within `start_timeout`.
        """
        if self._store is not None:
            raise RuntimeError("the embedded broker is running already")
        binary = self._binary or find_binary()
        store = self._store = Store(self._store_dir)
        try:
            self._child = Child(
                "broker",
                lambda: self._prepare(binary, store),
                environment=_environment(),
                output=store.errors,
                pass_fds=(store.lock_fd,),
                ready=self._wait_ready,
                on_restart=self._on_restart,
                backoff=Backoff(cap=5.0),
            )
            await self._child.start()
        except ChildExited as error:
            complaints = store.complaints()
            await self.stop()
            raise SetupError(f"{error.message}: {complaints or 'it left no error message'}") from None
        except BaseException:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._watch_store(self._child, store), name="watch store")
        logger.info("broker is ready on %s:%d, its files are in %s", HOST, self.port, store.directory)

    async def stop(self) -> None:
        """Stop the server and remove a temporary store. Idempotent; it can be started again."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await cancelled(watch)
        child, self._child = self._child, None
        if child is not None:
            await child.stop(self._stop_timeout)
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def kill(self) -> None:
        """Kill the server at once; `stop` still has to be awaited."""
        if self._child is not None:
            self._child.kill()

    async def __aenter__(self) -> EmbeddedServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def _prepare(self, binary: Path, store: Store) -> list[str]:
        """Write the configuration, which from the second start on names the port, and make the command."""
        store.prepare_start()
        settings = Settings(
            name=self._name,
            password=self._password,
            port=self._port,
            max_payload=self._max_payload,
            max_memory=self._max_memory,
            max_storage=self._max_storage,
        )
        store.write_configuration(render(settings, store))
        return [str(binary), "--config", str(store.configuration)]

    async def _watch_store(self, child: Child, store: Store) -> None:
        """Start the server anew when its folder was removed: it would run on and confirm nothing."""
        while True:
            await asyncio.sleep(_STORE_WATCH)
            if child.pid is not None and not store.intact:
                logger.critical(
                    "store directory %s was removed, and what was queued with it; starting the broker anew",
                    store.directory,
                )
                child.restart()

    async def _wait_ready(self) -> None:
        assert self._store is not None
        try:
            async with asyncio.timeout(self._start_timeout):
                while True:
                    port = _read_ports(self._store.ports)
                    if port is not None and await self._answers(port):
                        self._port = port
                        return
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise SetupError(
                f"broker was not ready within {self._start_timeout:.0f} s: "
                f"{self._store.complaints() or 'it left no error message'}; its log is {self._store.log}"
            ) from None

    async def _answers(self, port: int) -> bool:
        """Whether it is our server, and not somebody else's, that listens on the port."""
        info = await read_info(HOST, port, timeout=_CONNECT_TIMEOUT)
        return info is not None and info.get("server_name") == self._name


def _environment() -> dict[str, str]:
    """The server's environment: settings of its Go runtime, unless the operator has set them.

    The embedded broker shares its host with gateways and workers. With a thread a CPU its goroutines are
    handed from thread to thread for every message; a quarter of the CPUs cost 30 % less CPU time a request,
    and collecting garbage less often another 10 % (docs/decisions/0002).
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"GOMAXPROCS": str(max(1, cpus // 4)), "GOGC": "400", **os.environ}


async def read_info(host: str, port: int, *, timeout: float) -> dict[str, Any] | None:
    """What a NATS server says of itself to whoever connects; None when nothing like it answers in time."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):
        return None
    verb, _, body = line.partition(b" ")
    if verb.upper() != b"INFO":
        return None
    try:
        info = json.loads(body)
    except ValueError:
        return None
    return info if isinstance(info, dict) else None


def running_url(directory: Path) -> str:
    """Where clients connect to the embedded broker of another process of this user.

    Like `EmbeddedServer.url` it holds the password.

    Args:
        directory: the broker's folder.

    Raises:
        SetupError: no broker runs with that folder, or this user may not read it.
    """
    configuration, ports = look(directory)
    try:
        password = str(json.loads(configuration.read_bytes())["authorization"]["password"])
    except FileNotFoundError:
        port = None
    except OSError as error:
        raise SetupError(f"store directory {directory} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError):
        raise SetupError(f"{configuration}: expected what an embedded broker wrote there") from None
    else:
        port = _read_ports(ports)
    if port is None:
        raise SetupError(
            f"no broker runs in store directory {directory}; expected the folder of a running `qinfer "
            "serve`, which its log names"
        )
    return _url(password, port)


def _url(password: str, port: int) -> str:
    return f"nats://{USER}:{password}@{HOST}:{port}"


def _read_ports(directory: Path) -> int | None:
    """The client port from the file the server writes, None until it is there and complete."""
    for file in directory.glob("*.ports"):
        with suppress(OSError, ValueError, LookupError, TypeError):
            url: str = json.loads(file.read_bytes())["nats"][0]
            return int(url.rpartition(":")[2])
    return None
