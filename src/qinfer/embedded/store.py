"""The folder an embedded broker keeps its data, configuration and log in."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from qinfer.errors import SetupError

_TEMPORARY = "qinfer-broker-"
_LOCK = "lock"
_CONFIGURATION = "nats.conf"
_PORTS = "ports"
_LOG_TAIL = 16 * 1024


class Store:
    """A locked folder, private to this user.

    Two servers that write to one folder destroy each other's data, so it is locked. The lock is a file
    descriptor that the server process inherits: it is free again only when this process and the server are
    both gone.

    Args:
        directory: the folder, made if need be; None for a temporary one that `close` removes.

    Raises:
        SetupError: the folder cannot be made or written, or another broker uses it.
    """

    def __init__(self, directory: Path | None) -> None:
        self.temporary = directory is None
        if directory is None:
            _remove_abandoned()
            self.directory = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
        else:
            self.directory = directory.resolve()
        self.lock_fd = self._make()

    def _make(self) -> int:
        """Make the folder, if need be, and lock it; returns the lock."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = _lock(self.directory)
            self.ports.mkdir(mode=0o700, exist_ok=True)
        except BlockingIOError:
            raise SetupError(f"store directory {self.directory} is in use by another broker") from None
        except OSError as error:
            raise SetupError(f"store directory {self.directory} cannot be used: {error.strerror}") from None
        return lock_fd

    @property
    def intact(self) -> bool:
        """Whether the folder is still the one that was locked, and not removed or replaced meanwhile."""
        try:
            found = (self.directory / _LOCK).stat()
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self.lock_fd))

    @property
    def configuration(self) -> Path:
        return self.directory / _CONFIGURATION

    @property
    def log(self) -> Path:
        return self.directory / "nats-server.log"

    @property
    def errors(self) -> Path:
        """What the server says before it has a log."""
        return self.directory / "nats-server.err"

    @property
    def ports(self) -> Path:
        """Folder where the server tells its ports."""
        return self.directory / _PORTS

    def write_configuration(self, text: str) -> None:
        """Replace the configuration, readable by this user only: it holds the password."""
        draft = self.configuration.with_suffix(".new")
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        draft.replace(self.configuration)

    def prepare_start(self) -> None:
        """Forget what the previous server process said; make the folder anew if somebody removed it.

        Raises:
            SetupError: the folder cannot be made anew.
        """
        if not self.intact:
            lock_fd = self._make()
            os.dup2(lock_fd, self.lock_fd, inheritable=False)  # children are told the number
            os.close(lock_fd)
        for file in (*self.ports.glob("*.ports"), self.errors):
            file.unlink(missing_ok=True)

    def complaints(self) -> str:
        """The server's last words: errors in its log and on its standard error, at most five lines."""
        lines = _tail(self.errors) + _tail(self.log)
        telling = [line for line in lines if "[FTL]" in line or "[ERR]" in line or "nats-server:" in line]
        return "; ".join(line.split("] ", 2)[-1] for line in telling[-5:])

    def close(self) -> None:
        """Release the folder; a temporary one is removed. Idempotent."""
        if self.lock_fd < 0:
            return
        if self.temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            self.configuration.unlink(missing_ok=True)
        os.close(self.lock_fd)
        self.lock_fd = -1


def look(directory: Path) -> tuple[Path, Path]:
    """Configuration, and folder of ports, of a store that another process has locked."""
    return directory / _CONFIGURATION, directory / _PORTS


def _lock(directory: Path) -> int:
    """Lock the folder; the lock file appears only when it is locked, see `_remove_abandoned`."""
    path = directory / _LOCK
    if not path.exists():
        draft = directory / f"{_LOCK}.{os.getpid()}"
        fd = _locked(draft)
        with suppress(FileExistsError):
            os.link(draft, path)
            draft.unlink()
            return fd
        draft.unlink()
        os.close(fd)
    return _locked(path)


def _locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _remove_abandoned() -> None:
    """Remove temporary folders of this user whose owner was killed: those with a lock nobody holds."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        lock = directory / _LOCK
        try:
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
