"""File-system calls that fail, are cut short, or are the last thing that a process does.

Two layers, since the store makes its calls in two places: the functions of `os`, `io` and `fcntl`, replaced in this process
for what lies below one folder; and SQLite's own, which its unix VFS lets a program replace by name.  `fsync` is not among the
names, so that one is met in the methods of the files that the VFS opens.  A process takes its faults with it when it ends,
so they are only for children made for them.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import io
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["KINDS", "Fault", "Faults", "sqlite_calls_can_fail"]

_DEATH = ("death", "death after")
_WRITES = ("ENOSPC", "EIO", "short", "cut", "full", "death", "death in the middle", "death after")
_COMMITS = ("ENOSPC", "EIO", *_DEATH)

KINDS: dict[str, tuple[str, ...]] = {
    "os.open": ("ENOSPC", "EIO", "EMFILE", "full", *_DEATH),
    "os.write": _WRITES,
    "os.pwrite": _WRITES,
    "os.writev": _WRITES,
    "os.pwritev": _WRITES,
    "os.rename": ("ENOSPC", "EIO", *_DEATH),
    "os.replace": ("ENOSPC", "EIO", *_DEATH),
    "os.link": ("ENOSPC", "EIO", *_DEATH),
    "os.fsync": ("ENOSPC", "EIO", *_DEATH),
    "os.fdatasync": ("ENOSPC", "EIO", *_DEATH),
    "os.unlink": ("EIO", "EACCES", *_DEATH),
    "os.remove": ("EIO", "EACCES", *_DEATH),
    "os.rmdir": ("EIO", *_DEATH),
    "os.mkdir": ("ENOSPC", "EIO", *_DEATH),
    "os.chmod": ("EIO", "EPERM", *_DEATH),
    "os.fchmod": ("EIO", "EPERM", *_DEATH),
    "os.truncate": ("EIO", *_DEATH),
    "os.ftruncate": ("EIO", *_DEATH),
    "os.utime": ("EIO", *_DEATH),
    "os.read": ("EIO",),
    "os.readv": ("EIO",),
    "os.pread": ("EIO",),
    "os.listdir": ("EIO",),
    "os.scandir": ("EIO",),
    "fcntl.flock": ("ENOLCK", *_DEATH),
    "sqlite.commit": _COMMITS,
    "sqlite.open": ("ENOSPC", "EIO", "EMFILE", "full", *_DEATH),
    "sqlite.write": _WRITES,
    "sqlite.pwrite": _WRITES,
    "sqlite.pwrite64": _WRITES,
    "sqlite.fsync": ("ENOSPC", "EIO", *_DEATH),
    "sqlite.unlink": ("EIO", *_DEATH),
    "sqlite.ftruncate": ("EIO", *_DEATH),
    "sqlite.fallocate": ("ENOSPC", *_DEATH),
    "sqlite.fchmod": ("EIO", *_DEATH),
    "sqlite.openDirectory": ("EIO", *_DEATH),
    "sqlite.read": ("EIO",),
    "sqlite.pread": ("EIO",),
    "sqlite.pread64": ("EIO",),
}
"""What can happen to which call.  An errno: it fails, once.  "short": half of the bytes are written.  "cut": so, and the next
write finds no space.  "full": no space from here on, for everything that would need some.  "death": SIGKILL."""


class Fault(NamedTuple):
    """What happens at which call of its name, counted from 1 while the faults are armed."""

    call: str
    number: int
    kind: str


class Faults:
    """The calls below `folder`: counted, and one of them made to fail.

    Args:
        folder: calls on other files and descriptors pass untouched.
        fault: what happens; `None` only counts.
    """

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.happened = False
        self._root = os.path.abspath(folder)
        self._fault = fault
        self._armed = False
        self._full = False
        self._no_space_next = False
        self._descriptors: set[int] = set()
        self._keep: list[object] = []  # what C calls back must not be collected

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Count the calls within the block, and let the fault happen there."""
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    @property
    def lasts(self) -> bool:
        """Whether the disk stays full."""
        return self._full

    def install(self) -> None:
        """Replace the calls, for the rest of this process; before SQLite opens anything."""
        self._install_os()
        self._install_open()
        self._install_commit()
        if sqlite_calls_can_fail():
            _SqliteCalls(self).install()

    # -- one call

    def call(
        self,
        name: str,
        whole: Callable[[], Any],
        fail: Callable[[int], Any],
        half: Callable[[], Any] | None = None,
        needs_space: bool = False,
    ) -> Any:
        """`whole()`, or what the fault makes of it."""
        if needs_space and (self._full or (half and self._no_space_next)):
            self._no_space_next = False
            return fail(errno.ENOSPC)
        kind = self._due(name)
        if kind is None:
            return whole()
        if kind.startswith("death"):
            return _die_after({"death": None, "death in the middle": half, "death after": whole}[kind])
        if half and kind in ("short", "cut"):
            self._no_space_next = kind == "cut"
            return half()
        self._full = kind == "full"
        return fail(errno.ENOSPC if kind == "full" else getattr(errno, kind))

    def _due(self, name: str) -> str | None:
        if not self._armed:
            return None
        self.counts[name] += 1
        if self._fault is None or self._fault[:2] != (name, self.counts[name]):
            return None
        self.happened = True
        return self._fault.kind

    # -- the functions of os and fcntl

    def _below(self, target: Any) -> bool:
        if isinstance(target, int):
            return target in self._descriptors
        path = os.path.abspath(os.fsdecode(target))
        return path == self._root or path.startswith(self._root + os.sep)

    def _install_os(self) -> None:
        for name in [name for name in KINDS if name.startswith("os.")]:
            plain = name.removeprefix("os.")
            real = getattr(os, plain)
            if plain == "open":
                os.open = self._opening(real)
            elif plain in ("write", "pwrite", "writev", "pwritev"):
                setattr(os, plain, self._writing(name, real))
            else:
                setattr(os, plain, self._plain(name, real))
        fcntl.flock = self._plain("fcntl.flock", fcntl.flock)
        os.close = self._closing(os.close)

    def _plain(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        needs_space = name in ("os.mkdir", "os.link")

        def wrapped(target: Any = ".", *rest: Any, **options: Any) -> Any:
            known = options.get("dir_fd", options.get("src_dir_fd"))
            if not self._below(target if known is None else known):
                return real(target, *rest, **options)
            return self.call(name, lambda: real(target, *rest, **options), _raise(target), needs_space=needs_space)

        return wrapped

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def wrapped(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if not self._below(path if dir_fd is None else dir_fd):
                return real(path, flags, mode, dir_fd=dir_fd)
            makes = bool(flags & os.O_CREAT) and (dir_fd is not None or not os.path.lexists(path))
            descriptor: int = self.call(
                "os.open", lambda: real(path, flags, mode, dir_fd=dir_fd), _raise(path), needs_space=makes
            )
            self._descriptors.add(descriptor)
            return descriptor

        return wrapped

    def _closing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def wrapped(descriptor: int) -> None:
            self._descriptors.discard(descriptor)
            real(descriptor)

        return wrapped

    def _writing(self, name: str, real: Callable[..., int]) -> Callable[..., int]:
        def wrapped(descriptor: int, data: Any, *rest: Any) -> int:
            if descriptor not in self._descriptors:
                return real(descriptor, data, *rest)
            joined = b"".join(data) if name.endswith("v") else memoryview(data).cast("B")
            part: Any = joined[: len(joined) // 2]
            return self.call(  # type: ignore[no-any-return]
                name,
                lambda: real(descriptor, data, *rest),
                _raise(descriptor),
                lambda: real(descriptor, [part] if name.endswith("v") else part, *rest),
                needs_space=True,
            )

        return wrapped

    # -- files opened by name

    def _install_open(self) -> None:
        """`open` makes its calls in C; for writing below the folder it gets a raw file that makes them through `os`."""
        real = io.open

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                return os.write(self.fileno(), data)

        def wrapped(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+") or not self._below(file):
                return real(file, mode, *arguments, **options)
            raw = Raw(file, mode.replace("b", "").replace("t", ""), opener=os.open)
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

        io.open = builtins.open = wrapped  # type: ignore[assignment]

    # -- commits

    def _install_commit(self) -> None:
        faults, real = self, sqlite3.connect

        class Cursor(sqlite3.Cursor):
            def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
                whole = super().execute
                if not _commits(statement, self.connection):
                    return whole(statement, *parameters)
                return faults.call("sqlite.commit", lambda: whole(statement, *parameters), _refuse)  # type: ignore[no-any-return]

        class Connection(sqlite3.Connection):
            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

            def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
                return self.cursor().execute(statement, *parameters)  # type: ignore[no-any-return]

            def commit(self) -> None:
                faults.call("sqlite.commit", super().commit, _refuse)

        def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            return real(*arguments, **{"factory": Connection, **options})

        sqlite3.connect = connect  # type: ignore[assignment]


def _commits(statement: str, connection: sqlite3.Connection) -> bool:
    """Whether its end is the end of a transaction, be it one of its own."""
    word = statement.split(None, 1)[0].upper()
    return word in ("COMMIT", "END") or (word in ("INSERT", "UPDATE", "DELETE", "REPLACE") and not connection.in_transaction)


def _raise(target: object) -> Callable[[int], Any]:
    def fail(number: int) -> None:
        raise OSError(number, os.strerror(number), None if isinstance(target, int) else os.fspath(target))  # type: ignore[call-overload]

    return fail


_refused: list[sqlite3.Error] = []
"""Kept, as debuggers and error reporters keep what they are shown, and with it every frame that the error came through.
A transaction has to end nevertheless: SQLite closes a connection for good only when its last statement has gone."""


def _refuse(number: int) -> None:
    """As SQLite says it."""
    full = number == errno.ENOSPC
    error = sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR
    error.sqlite_errorname = "SQLITE_FULL" if full else "SQLITE_IOERR"
    _refused.append(error)
    raise error


def _die_after(part: Callable[[], Any] | None) -> None:
    if part is not None:
        part()
    os.kill(os.getpid(), signal.SIGKILL)


# -- SQLite's own calls

_METHODS = [
    "xOpen", "xDelete", "xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose",
    "xRandomness", "xSleep", "xCurrentTime", "xGetLastError", "xCurrentTimeInt64",
    "xSetSystemCall", "xGetSystemCall", "xNextSystemCall",
]  # fmt: skip


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _METHODS),
    ]


class _FileMethods(ctypes.Structure):
    _fields_ = [
        ("iVersion", ctypes.c_int),
        *((f"method{number}", ctypes.c_void_p) for number in range(5)),  # close, read, write, truncate, sync
        *((f"later{number}", ctypes.c_void_p) for number in range(13)),
    ]


_SYNC = "method4"
_IOERR_FSYNC = 10 | (4 << 8)

_OPEN_FILE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)
)
_SYNC_FILE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_SET_CALL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_GET_CALL = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "open": (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "write": (ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t),
    "pwrite": (ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long),
    "pwrite64": (ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64),
    "read": (ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t),
    "pread": (ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long),
    "pread64": (ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64),
    "ftruncate": (ctypes.c_int, ctypes.c_int, ctypes.c_int64),
    "fallocate": (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
    "fchmod": (ctypes.c_int, ctypes.c_int, ctypes.c_uint),
    "unlink": (ctypes.c_int, ctypes.c_char_p),
    "openDirectory": (ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)),
}


def _library() -> Any:
    """The SQLite that the `sqlite3` module is linked with; looking a name up in the module looks in its libraries too."""
    import _sqlite3

    return ctypes.CDLL(getattr(_sqlite3, "__file__", None))


def sqlite_calls_can_fail() -> bool:
    """Whether SQLite's functions can be reached; not where it is linked into the interpreter without their names."""
    try:
        library = _library()
        return bool(library.sqlite3_vfs_find and library.sqlite3_vfs_register)
    except (OSError, AttributeError):
        return False


class _SqliteCalls:
    """The unix VFS with its system calls replaced, and a copy of it as the default one, for `fsync`."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._library = _library()
        self._library.sqlite3_vfs_find.restype = ctypes.c_void_p
        self._library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
        self._library.sqlite3_vfs_register.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self._address = self._library.sqlite3_vfs_find(None)
        self._unix = _Vfs.from_address(self._address)
        self._syncing: dict[int, _FileMethods] = {}
        faults._keep.append(self)

    def install(self) -> None:
        get, put = _GET_CALL(self._unix.xGetSystemCall), _SET_CALL(self._unix.xSetSystemCall)
        for name, signature in _SIGNATURES.items():
            address = get(self._address, name.encode())
            if address:  # else this SQLite was built without it
                replacement = self._replacement(name, ctypes.CFUNCTYPE(*signature, use_errno=True), address)
                put(self._address, name.encode(), ctypes.cast(replacement, ctypes.c_void_p))
        self._install_copy()

    def _replacement(self, name: str, kind: Any, address: int) -> Any:
        real, faults, writes = kind(address), self._faults, "write" in name

        def fail(number: int) -> int:
            if name == "fallocate":  # posix_fallocate answers the number itself
                return number
            ctypes.set_errno(number)
            return -1

        def replacement(*arguments: Any) -> int:
            half = None
            if writes:
                half = lambda: real(*arguments[:2], arguments[2] // 2, *arguments[3:])
            makes = name == "open" and bool(arguments[1] & os.O_CREAT) and not os.path.lexists(arguments[0])
            needs_space = writes or makes or name == "fallocate"
            return faults.call(f"sqlite.{name}", lambda: real(*arguments), fail, half, needs_space)  # type: ignore[no-any-return]

        back = kind(replacement)
        faults._keep.append(back)
        return back

    def _install_copy(self) -> None:
        copy, open_real = _Vfs.from_buffer_copy(self._unix), _OPEN_FILE(self._unix.xOpen)

        def opened(vfs: int, name: int, file: int, flags: int, out: Any) -> int:
            status: int = open_real(vfs, name, file, flags, out)
            methods = ctypes.c_void_p.from_address(file)
            if methods.value:
                methods.value = ctypes.addressof(self._with_sync(methods.value))
            return status

        back = _OPEN_FILE(opened)
        copy.zName, copy.xOpen = b"faults", ctypes.cast(back, ctypes.c_void_p).value
        self._faults._keep += [copy, back]
        self._library.sqlite3_vfs_register(ctypes.addressof(copy), 1)

    def _with_sync(self, address: int) -> _FileMethods:
        if address not in self._syncing:
            original = _FileMethods.from_address(address)
            copy, real = _FileMethods.from_buffer_copy(original), _SYNC_FILE(getattr(original, _SYNC))

            def sync(file: int, flags: int) -> int:
                whole = lambda: real(file, flags)
                return self._faults.call("sqlite.fsync", whole, lambda number: _IOERR_FSYNC)  # type: ignore[no-any-return]

            back = _SYNC_FILE(sync)
            setattr(copy, _SYNC, ctypes.cast(back, ctypes.c_void_p).value)
            self._faults._keep.append(back)
            self._syncing[address] = copy
        return self._syncing[address]
