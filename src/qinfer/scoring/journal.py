"""What a run has done so far, beside its output: complete parts of it, and a journal that lists them.

    scores.parquet.progress/
        journal.jsonl       what is scored and how, then a line for each part
        part-0-8192         output of rows 0 to 8191
        errors-0-8192       those of them that failed, where they are recorded
        writing, writing.errors, joined, joined.errors

A part is on the disk, under its name, before the journal has its line, and a line that ends in the middle is
none: whenever the process dies, what the journal lists is there, and the rest is done again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from qinfer.errors import InvalidRequest, Unavailable
from qinfer.scoring.formats.base import join_files, sync

SUFFIX = ".progress"
"""Of the folder's name: it is the output's with this behind."""

ERRORS = ".errors.jsonl"
"""Of the file with rows that failed, likewise."""

_JOURNAL = "journal.jsonl"
_VERSION = 1


class Refused(InvalidRequest):
    """What lies where the output is to be does not allow this run."""


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    run: dict[str, Any]


class _Entry(msgspec.Struct, omit_defaults=True):
    """A line: rows `first` to `last` - 1 are done, or all are, or the output is in its place."""

    first: int = 0
    last: int = 0
    end: int = 0
    written: int = 0
    failed: int = 0
    complete: bool = False
    finished: bool = False


_encode = msgspec.json.encode
_head_of = msgspec.json.Decoder(_Head).decode
_entry_of = msgspec.json.Decoder(_Entry).decode


class Journal:
    """The record of one run, which only one process has at a time.

    Attributes:
        rows: rows of the input that are done.
        end: where the next one begins, in the measure of the reader; None at the start.
        written, failed: what became of them.
        complete: whether those are all.
        finished: whether the output is in its place.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._folder = target.with_name(target.name + SUFFIX)
        self._errors = target.with_name(target.name + ERRORS)
        self._file: int | None = None
        self._parts: list[tuple[int, int]] = []
        self.rows = self.written = self.failed = 0
        self.end: int | None = None
        self.complete = self.finished = False

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self._folder / _JOURNAL).exists()

    def open(self, run: Mapping[str, Any], *, restart: bool = False) -> None:
        """Begin, or go on where another process ended.

        Args:
            run: what is scored and how; a run is only gone on with where that is the same.
            restart: forget what was done, and replace an output that is there.

        Raises:
            Refused: the run that was begun is another one, or an output is there already.
            Unavailable: another process is at it.
        """
        # As it is read again, so that a tuple is not another thing than a list.
        told = msgspec.json.decode(_encode(run))
        begun = self.begun
        if not begun:
            with suppress(OSError):
                self._folder.rmdir()  # all that a run leaves that is killed with its very last step to do
        if not begun or restart:
            self._check_target(replace=restart)
        self._make_folder()
        self._lock()
        lines = self._read()
        if restart or not lines:
            self._begin(told)
            return
        head = self._head(lines[0])
        if len(lines) == 1 and head.run != told:  # nothing was done that could be gone on with
            self._check_target(replace=False)
            self._begin(told)
            return
        _check_same(head.run, told, self._folder)
        self._follow(lines[1:])
        self._sweep()
        if not self.complete:
            self._check_target(replace=True)

    def close(self) -> None:
        """Let another process have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def part(self) -> Path:
        """Where the next part is written."""
        return self._folder / "writing"

    @property
    def part_errors(self) -> Path:
        """Where rows of it that fail are written."""
        return self._folder / "writing.errors"

    def commit(self, last: int, end: int, written: int, failed: int) -> None:
        """The part that was written is complete: its rows will not be done again.

        Args:
            last: number of the row behind it.
            end: where that row begins.
            written, failed: what became of the rows.
        """
        name = f"{self.rows}-{last}"
        for source, kind in ((self.part, "part"), (self.part_errors, "errors")):
            if source.exists():
                sync(source)
                target = self._folder / f"{kind}-{name}"
                shutil.rmtree(target, ignore_errors=True)
                source.rename(target)
        self._sync_folder()
        self._add(_Entry(first=self.rows, last=last, end=end, written=written, failed=failed))

    def finish(self, join: Callable[[list[Path], Path], None], *, folder: bool) -> None:
        """Put the output in its place, and forget the run.

        Args:
            join: makes the output, given the parts and where.
            folder: whether it is a folder.

        Raises:
            QInferError: what `join` raises.
        """
        if not self.complete:
            self._add(_Entry(complete=True))
        if not self.finished:
            # Nothing was there before all rows were done: a folder that is there now is the output.
            if not (folder and self._target.exists()):
                self._put(join)
            self._add(_Entry(finished=True))
        self._forget()

    def _put(self, join: Callable[[list[Path], Path], None]) -> None:
        joined, errors = self._folder / "joined", self._folder / "joined.errors"
        join([self._folder / f"part-{first}-{last}" for first, last in self._parts], joined)
        sync(joined)
        failed = [self._folder / f"errors-{first}-{last}" for first, last in self._parts]
        told = [(path, 0) for path in failed if path.exists()]
        if told:
            join_files(told, errors)
            sync(errors)
            errors.replace(self._errors)
        else:
            self._errors.unlink(missing_ok=True)
        joined.replace(self._target)
        sync_parent(self._target)

    # The folder

    def _check_target(self, *, replace: bool) -> None:
        if not self._target.exists():
            if not self._target.parent.is_dir():
                raise Refused(f"{self._target}: there is no folder {self._target.parent}")
            return
        if self._target.is_dir():
            if any(self._target.iterdir()):
                raise Refused(f"{self._target}: there is such a folder with something in it already")
            self._target.rmdir()
        elif not replace:
            raise Refused(f"{self._target}: is there already; --restart replaces it")

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise Refused(f"{self._folder}: cannot be made: {error.strerror}") from None

    def _lock(self) -> None:
        try:
            self._file = os.open(self._folder / _JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise Refused(f"{self._folder}: cannot be written to: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise Unavailable(f"{self._folder}: another process is at it") from None
        if os.fstat(self._file).st_nlink == 0:
            self.close()
            raise Unavailable(f"{self._folder}: another process was at it until now")

    def _read(self) -> list[bytes]:
        """The journal's whole lines; what is behind them is cut off."""
        assert self._file is not None
        data = (self._folder / _JOURNAL).read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
        return data[:whole].splitlines()

    def _head(self, line: bytes) -> _Head:
        try:
            head = _head_of(line)
        except msgspec.DecodeError as error:
            raise Refused(
                f"{self._folder}: is none of ours, or of another version of qinfer ({error}); --restart "
                "begins anew"
            ) from None
        if head.version != _VERSION:
            raise Refused(f"{self._folder}: of version {head.version}; expected {_VERSION}, or --restart")
        return head

    def _begin(self, run: dict[str, Any]) -> None:
        assert self._file is not None
        os.ftruncate(self._file, 0)
        for path in self._folder.iterdir():
            if path.name != _JOURNAL:
                _remove(path)
        self._line(_encode(_Head(version=_VERSION, run=run)))
        self._sync_folder()
        sync_parent(self._folder)

    def _follow(self, lines: list[bytes]) -> None:
        """Take over what the journal says, as far as each part begins where the one before it ended."""
        for line in lines:
            entry = _entry_of(line)
            self.complete |= entry.complete
            self.finished |= entry.finished
            if entry.first == self.rows and entry.last > entry.first:
                self._take(entry)

    def _sweep(self) -> None:
        """Remove what the journal does not know."""
        known = {_JOURNAL} | {f"{kind}-{a}-{b}" for a, b in self._parts for kind in ("part", "errors")}
        for path in self._folder.iterdir():
            if path.name not in known:
                _remove(path)

    def _forget(self) -> None:
        """The journal goes last: as long as it is there, it says that the output is in its place."""
        for path in self._folder.iterdir():
            if path.name != _JOURNAL:
                _remove(path)
        (self._folder / _JOURNAL).unlink()
        with suppress(OSError):
            self._folder.rmdir()
        self.close()

    # The journal

    def _add(self, entry: _Entry) -> None:
        self._line(_encode(entry))
        self.complete |= entry.complete
        self.finished |= entry.finished
        if entry.last > entry.first:
            self._take(entry)

    def _take(self, entry: _Entry) -> None:
        self._parts.append((entry.first, entry.last))
        self.rows, self.end = entry.last, entry.end
        self.written += entry.written
        self.failed += entry.failed

    def _line(self, line: bytes) -> None:
        assert self._file is not None
        os.write(self._file, line + b"\n")
        os.fsync(self._file)

    def _sync_folder(self) -> None:
        sync_parent(self._folder / _JOURNAL)


def sync_parent(path: Path) -> None:
    """Have on the disk that a name is in its folder."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    changed = [
        f"{name}: was {_shown(before.get(name))}, is {_shown(now.get(name))}"
        for name in (*before, *(name for name in now if name not in before))
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise Refused(
            f"{folder} is of a run with other {'; '.join(changed)}. The same command as before goes on with "
            "it; --restart begins anew"
        )


def _shown(value: Any) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else _encode(value).decode()
