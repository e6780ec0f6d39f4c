"""One run: the system, its clients, the faults, and what came of it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import msgspec

from loadtest import environment
from loadtest.chaos.asks import Settings
from loadtest.chaos.client import Order
from loadtest.chaos.faults import LAST_BEFORE_END, Planned, Way, Window
from loadtest.chaos.inject import Injector
from loadtest.chaos.judge import Violation
from loadtest.chaos.models import read_journal
from loadtest.chaos.records import IN_ADDITION, Follower, Intent, Outcome, Record
from loadtest.chaos.result import Result, summarise
from loadtest.chaos.system import NAMESPACE, System
from qinfer.embedded.child import describe
from qinfer.embedded.guard import guarded
from qinfer.errors import QInferError, Unavailable

LANES = {Way.HTTP: 16, Way.GRPC: 12, Way.NATS: 12}
"""Requests in flight on each way in, bursts aside."""

THINK = 0.08
"""Mean seconds a lane waits between an answer and its next request."""

_WARM_SECONDS = 30.0
_WARM_ANSWERS = 20
_END_SECONDS = 60.0
_ENDED_SECONDS = 50.0
_POLL = 0.05
_TELL_EVERY = 10.0
_QUIET = 1.0  # seconds between the end of one round of faults and the next, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run to do.

    Attributes:
        seed: of everything that is random.
        seconds: how long the load lasts.
        faults: what is to happen meanwhile.
        lanes: see `LANES`.
        keys: whether some requests have an idempotency key.
    """

    seed: int
    seconds: float
    faults: Sequence[Planned]
    lanes: dict[Way, int]
    keys: bool = True


class ClientProcess:
    """A client in a process of its own, with its ledger."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.way = settings.way
        self._settings = settings
        self._log = folder / f"client-{settings.way}.log"
        self._follower = Follower(Path(settings.ledger))
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *guarded([sys.executable, "-m", "loadtest.chaos.client"]),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=environment.ROOT,
                start_new_session=True,
            )
        self._write(msgspec.json.encode(self._settings))

    def tell(self, order: Order) -> None:
        self._write(msgspec.json.encode(order))

    def read(self) -> list[Record]:
        """What ended since the last call."""
        return self._follower.read()

    async def ended(self) -> str:
        """Wait until it has ended; returns what was wrong with that, or ""."""
        assert self._process is not None
        try:
            status = await asyncio.wait_for(self._process.wait(), _END_SECONDS)
        except TimeoutError:
            self.kill()
            return f"client {self.way} did not end:\n{self._tail()}"
        return f"client {self.way} {describe(status)}:\n{self._tail()}" if status else ""

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def _write(self, text: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # it has ended, which `ended` will tell
            self._process.stdin.write(text + b"\n")

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


class Run:
    """Does a plan once.

    Args:
        plan: what to do.
        folder: for everything that is written; it must exist and be empty.
        progress: gets a line now and then, for people.
    """

    def __init__(self, plan: Plan, folder: Path, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._progress = progress
        self._system = System(folder)
        self._folder = folder
        self._clients: dict[Way, ClientProcess] = {}
        self._records: list[Record] = []
        self._counts: Counter[str] = Counter()
        self._ends: Counter[Intent] = Counter()
        self._more = asyncio.Event()
        self._windows: list[Window] = []
        self._troubles: list[Violation] = []
        self._began = 0.0
        self._told = 0.0

    async def run(self) -> Result:
        """Raises Unavailable or SetupError when the system does not even start."""
        started, machine = datetime.now(UTC).isoformat(timespec="seconds"), environment.machine()
        async with self._system:
            self._progress(f"the system runs in {self._folder}")
            try:
                await self._start_clients()
                await self._load()
            finally:
                for client in self._clients.values():
                    client.kill()
            self._troubles += self._deaths()
        return summarise(
            self._records,
            list(read_journal(self._system.journal)),
            self._windows,
            self._troubles,
            end=self._began + self._plan.seconds,
            seed=self._plan.seed,
            seconds=self._plan.seconds,
            started=started,
            commit=environment.commit(),
            machine=machine,
        )

    async def _start_clients(self) -> None:
        for way, lanes in self._plan.lanes.items():
            settings = Settings(
                way=way,
                http_port=self._system.http_port,
                grpc_port=self._system.grpc_port,
                nats=self._system.nats,
                namespace=NAMESPACE,
                seed=self._plan.seed,
                lanes=lanes,
                think=THINK,
                keys=self._plan.keys and way is not Way.NATS,
                ledger=str(self._folder / f"ledger-{way}"),
            )
            client = self._clients[way] = ClientProcess(settings, self._folder)
            await client.start()
        give_up = time.monotonic() + _WARM_SECONDS
        while any(self._right(way) < _WARM_ANSWERS for way in self._clients):
            if time.monotonic() > give_up:
                raise Unavailable(f"no steady answers within {_WARM_SECONDS:.0f} s: {self._status()}")
            await self._follow_for(_POLL)

    async def _load(self) -> None:
        self._began = time.monotonic()
        faults = asyncio.create_task(self._cause_all())
        while time.monotonic() < self._began + self._plan.seconds or not faults.done():
            await self._follow_for(_POLL)
        await faults
        for client in self._clients.values():
            client.tell(Order(do="stop"))
        for wrong in await asyncio.gather(*(client.ended() for client in self._clients.values())):
            if wrong:
                self._trouble(wrong)
        self._follow()
        await self._look_after()

    async def _look_after(self) -> None:
        """What must be left, and what must not, when all requests have ended."""
        for left in await self._system.left_behind():
            self._trouble(f"left behind: {left}")
        poisons = [record for record in self._records if record.intent is Intent.POISON]
        buried, expected = sorted(await self._system.buried()), sorted(str(record.id) for record in poisons)
        if buried != expected:
            self._trouble(f"in the dead letters: requests {buried}; expected {expected}")

    async def _cause_all(self) -> None:
        for _, faults in groupby(self._plan.faults, key=lambda planned: planned.round):
            together = list(faults)
            now = time.monotonic() - self._began
            start = max(together[0].at, now + _QUIET if self._windows else 0.0)
            if start > self._plan.seconds - LAST_BEFORE_END:
                return
            late = start - together[0].at
            async with asyncio.TaskGroup() as group:
                for planned in together:
                    group.create_task(self._cause(planned, self._began + planned.at + late))

    async def _cause(self, planned: Planned, at: float) -> None:
        await asyncio.sleep(at - time.monotonic())
        injector = Injector(self._system, self._tell, self._ended)
        self._tell_progress(f"{planned.fault} {planned.target}, {planned.lasts:.1f} s")
        try:
            self._windows.append(await injector.cause(planned))
        except (QInferError, TimeoutError) as error:
            self._trouble(f"{planned.fault} {planned.target}: {error}")

    def _tell(self, way: Way, order: Order) -> None:
        self._clients[way].tell(order)

    def _ended(self, intent: Intent, count: int) -> Awaitable[None]:
        """Wait until so many more requests of an intent have ended; counted from this call."""
        goal = self._ends[intent] + count

        async def wait() -> None:
            async with asyncio.timeout(_ENDED_SECONDS):
                while self._ends[intent] < goal:
                    self._more.clear()
                    await self._more.wait()

        return wait()

    async def _follow_for(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._follow()
        if time.monotonic() - self._told > _TELL_EVERY and self._began:
            self._tell_progress("")

    def _follow(self) -> None:
        for client in self._clients.values():
            for record in client.read():
                self._records.append(record)
                self._counts[record.outcome] += 1
                self._counts[f"{record.way} {record.outcome}"] += 1
                self._ends[record.intent] += record.outcome not in IN_ADDITION
                self._more.set()

    def _right(self, way: Way) -> int:
        return self._counts[f"{way} {Outcome.RIGHT}"]

    def _status(self) -> str:
        return ", ".join(f"{self._counts[outcome]} {outcome}" for outcome in Outcome if self._counts[outcome])

    def _tell_progress(self, what: str) -> None:
        self._told = time.monotonic()
        self._progress(f"{self._told - self._began:6.1f} s  {what:<32} {self._status()}")

    def _trouble(self, text: str) -> None:
        self._progress(text)
        self._troubles.append(Violation(kind="process", text=text))

    def _deaths(self) -> list[Violation]:
        """Processes that ended without being told to, and without a reason to."""
        poisons = [window for window in self._windows if window.fault == "poison"]
        return [
            Violation(kind="process", text=f"{death.role} {death.how} without being told to")
            for death in self._system.deaths
            if not any(window.touches(death.at, death.at) for window in poisons)
        ]


def new_lanes(scale: float = 1.0) -> dict[Way, int]:
    """`LANES`, times `scale`."""
    return {way: max(1, round(count * scale)) for way, count in LANES.items()}
