"""The drain that all processes of one replica share: a small file that each of them maps.

Whoever gets the operator's signal owns the file, and writes there that the drain has begun and with which
timings; an operator's `lbkit drain` writes one byte. Each worker reads it, and writes how many requests it
has in flight. One byte in a mapping costs a tenth of a microsecond to look at, works for workers that were
forked and for those that were spawned, and needs no socket.

The file is its owner's alone (0600, in a folder of 0700), and a link, another user's file or a file of
another version is refused. One that was left behind, its owner being gone, is taken over.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import psutil

from lbkit.drain import DrainTimings
from lbkit.errors import LbkitError

__all__ = ["ENVIRONMENT", "Hook", "Orders", "StateFile", "StateFileError", "folder", "standing"]

ENVIRONMENT = "LBKIT_STATE"
MAGIC = b"lbkit-1\0"
# magic, owner's pid, owner's start (Unix seconds), hook, pre_stop_delay, drain_timeout
HEAD = struct.Struct("<8sIxxxxdBxxxxxxxdd")
OPERATOR = struct.Struct("<Bxxxxxxxd")  # the byte, and since when
SIGNAL = struct.Struct("<BBxxxxxxd")  # begun, handed over, and since when
SLOT = struct.Struct("<II")  # pid, in flight
OPERATOR_AT, SIGNAL_AT, SLOTS_AT, SLOTS = 64, 80, 96, 128
SIZE = SLOTS_AT + SLOTS * SLOT.size
SAME_START = 1.0
"""Seconds: a process that began at another time than the file says is another one with the same number."""


class StateFileError(LbkitError, OSError):
    """A state file cannot be used. The message names it and says why."""


class LeftBehind(StateFileError):
    """The process that owned the file is gone."""


class Hook(IntEnum):
    """Who takes the operator's SIGTERM."""

    NONE = 0
    PROCESS = 1
    GUNICORN = 2
    LAUNCHER = 3


@dataclass(frozen=True, slots=True)
class Orders:
    """What the file says now. Instants are of `time.monotonic`, which all processes of a machine share."""

    operator_at: float | None
    signal_at: float | None
    handed_over: bool


class StateFile:
    """An open mapping. `create` is for the owner, `open` for everybody else."""

    def __init__(self, path: Path, map_: mmap.mmap) -> None:
        self.path = path
        self._map = map_
        self._slot: int | None = None
        self._slot_of: int | None = None

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        hook: Hook,
        timings: DrainTimings,
        owner: int | None = None,
        uid: int | None = None,
    ) -> StateFile:
        """Make a state file for the process `owner`, ourselves by default. Raises StateFileError.

        One that is in use is refused; one that was left behind is replaced, never overwritten: whoever has
        it mapped still may keep it. `uid`: the workers' user, when root starts them as somebody else.
        """
        _make_folder(path.parent, uid)
        _clear(path)
        for other in standing(path.parent):  # those that were killed have left theirs
            other.close()
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with _opened(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            os.ftruncate(fd, SIZE)
            if uid is not None:
                os.fchown(fd, uid, -1)
            created = cls(path, mmap.mmap(fd, SIZE))
        owner = os.getpid() if owner is None else owner
        head = (owner, psutil.Process(owner).create_time(), hook, timings.pre_stop_delay, timings.deadline)
        HEAD.pack_into(created._map, 0, MAGIC, *head)
        try:
            os.link(draft, path)  # as a whole or not at all: another process may look at any moment
        except FileExistsError:
            raise StateFileError(f"{path} was made by another process meanwhile") from None
        finally:
            draft.unlink()
        return created

    @classmethod
    def open(cls, path: Path) -> StateFile:
        """Share a state file. Raises StateFileError for one that is missing, foreign, stale or not ours."""
        with _opened(path, os.O_RDWR) as fd:
            _refuse_foreign(path, fd)
            if os.fstat(fd).st_size != SIZE:
                raise StateFileError(f"{path} is no state file of this version")
            shared = cls(path, mmap.mmap(fd, SIZE))
        if not shared._valid:
            shared.close()
            raise StateFileError(f"{path} is no state file of this version")
        if not shared.owner_alive:
            shared.close()
            raise LeftBehind(f"{path} was left behind: its process is gone")
        return shared

    @property
    def owner(self) -> int:
        return int(HEAD.unpack_from(self._map)[1])

    @property
    def owner_alive(self) -> bool:
        _, pid, began, *_ = HEAD.unpack_from(self._map)
        try:
            return bool(abs(psutil.Process(pid).create_time() - began) < SAME_START)
        except psutil.Error:
            return False

    @property
    def hook(self) -> Hook:
        return Hook(HEAD.unpack_from(self._map)[3])

    @property
    def timings(self) -> DrainTimings:
        *_, delay, deadline = HEAD.unpack_from(self._map)
        return DrainTimings(pre_stop_delay=delay, drain_timeout=deadline)

    @property
    def orders(self) -> Orders:
        operator, operator_at = OPERATOR.unpack_from(self._map, OPERATOR_AT)
        signal, handed_over, signal_at = SIGNAL.unpack_from(self._map, SIGNAL_AT)
        return Orders(operator_at if operator else None, signal_at if signal else None, bool(handed_over))

    def arm(self, hook: Hook) -> None:
        """Note who takes the signal: found out after the file was made."""
        HEAD.pack_into(self._map, 0, *HEAD.unpack_from(self._map)[:3], hook, *HEAD.unpack_from(self._map)[4:])

    def drain(self, now: float) -> None:
        """An operator's order. It does not restart the clock of an earlier one."""
        if self.orders.operator_at is None:
            struct.pack_into("<d", self._map, OPERATOR_AT + 8, now)
            self._map[OPERATOR_AT] = 1  # last: whoever sees the byte finds the instant

    def undrain(self) -> bool:
        """Take an operator's order back. False: a signal came, and there is no way back."""
        if self.orders.signal_at is not None:
            return False
        self._map[OPERATOR_AT] = 0
        return True

    def signalled(self, at: float) -> None:
        """The owner got its signal."""
        if not self._map[SIGNAL_AT]:
            struct.pack_into("<d", self._map, SIGNAL_AT + 8, at)
            self._map[SIGNAL_AT] = 1

    def handed_over(self) -> None:
        self._map[SIGNAL_AT + 1] = 1

    def publish(self, in_flight: int) -> None:
        """Say how many requests this process has in flight; the first call takes a place in the file."""
        if self._slot_of != os.getpid():
            self._slot, self._slot_of = self._take_slot(), os.getpid()
        if self._slot is not None:
            SLOT.pack_into(self._map, self._slot, os.getpid(), in_flight)

    def in_flight(self, *, but: int | None = None) -> int:
        """The sum over all processes that live; `but` leaves one out."""
        return sum(count for pid, count in self._slots() if count and pid != but and psutil.pid_exists(pid))

    @property
    def processes(self) -> list[int]:
        """Those that have taken a place, and live."""
        return [pid for pid, _ in self._slots() if pid and psutil.pid_exists(pid)]

    def close(self) -> None:
        self._map.close()

    def remove(self) -> None:
        """The owner's last deed. Not for a fork of it."""
        if self.owner == os.getpid():
            self.path.unlink(missing_ok=True)
        self.close()

    @property
    def _valid(self) -> bool:
        return bool(HEAD.unpack_from(self._map)[0] == MAGIC)

    def _slots(self) -> list[tuple[int, int]]:
        return list(SLOT.iter_unpack(self._map[SLOTS_AT:SIZE]))

    def _take_slot(self) -> int | None:
        """A free place, or that of a process which is gone. None when there are more workers than places."""
        with _opened(self.path, os.O_RDWR) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)  # two workers start at once; closing the file unlocks it
            for index, (pid, _) in enumerate(self._slots()):
                if not pid or pid == os.getpid() or not psutil.pid_exists(pid):
                    at = SLOTS_AT + index * SLOT.size
                    SLOT.pack_into(self._map, at, os.getpid(), 0)
                    return at
        return None


def folder(uid: int | None = None) -> Path:
    """Where state files are when nobody says otherwise: a folder of the user's own."""
    uid = os.geteuid() if uid is None else uid
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "lbkit"
    if os.access("/run/lbkit", os.W_OK):
        return Path("/run/lbkit") / str(uid)
    return Path(tempfile.gettempdir()) / f"lbkit-{uid}"


def standing(where: Path | None = None) -> list[StateFile]:
    """The state files of the user's that can be used now, each open. Those left behind are taken away."""
    found: list[StateFile] = []
    where = folder() if where is None else where
    for path in sorted(where.iterdir()) if where.is_dir() else []:
        if not path.name.isdigit():  # ours are named after their process; the rest is not ours to open
            continue
        try:
            found.append(StateFile.open(path))
        except LeftBehind:
            path.unlink(missing_ok=True)
        except StateFileError:
            continue
    return found


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateFileError(f"cannot use the state file {path}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _make_folder(path: Path, uid: int | None = None) -> None:
    """A folder of the user's; of `uid`'s, if we are root and make it for them."""
    uid = os.geteuid() if uid is None else uid
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0 and path.lstat().st_uid == 0 != uid:
            os.chown(path, uid, -1, follow_symlinks=False)
        there = path.lstat()
    except OSError as error:
        raise StateFileError(f"cannot use the folder {path} for a state file: {error.strerror}") from error
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != uid or there.st_mode & 0o022:
        raise StateFileError(f"need {path} as a folder that only we can write to")


def _clear(path: Path) -> None:
    """Take what was left behind away. Raises StateFileError for what is in use, or is no state file."""
    if not os.path.lexists(path):
        return
    try:
        there = StateFile.open(path)
    except LeftBehind:
        path.unlink(missing_ok=True)
        return
    owner = there.owner
    there.close()
    raise StateFileError(f"{path} is in use by process {owner}")


def _refuse_foreign(path: Path, fd: int) -> None:
    """Whoever may write to it may drain us, so it must be ours, and nobody else's to write."""
    there = os.fstat(fd)
    mine = os.geteuid() in (0, there.st_uid) or there.st_uid == 0
    if not stat.S_ISREG(there.st_mode) or not mine or there.st_mode & 0o077:
        raise StateFileError(f"need {path} as a file of our own with mode 0600")
