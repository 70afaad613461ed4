"""Where files go, and with which rights."""

from __future__ import annotations

import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from codomyrmex_cache.errors import CacheConfigurationError

__all__ = [
    "check_private", "default_directory", "is_on_network", "lock_file", "make_private_folder", "namespace_directory",
    "state_directory", "sync_folder", "tag_as_cache",
]  # fmt: skip

_NAME = "codomyrmex_cache"
_CACHEDIR_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This directory holds cached results of codomyrmex_cache; it can be deleted at any time.
"""

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|glusterfs|lustre|gpfs|beegfs|ocfs2|gfs2|virtiofs|fuse\.(?!fuse-overlayfs).*"
)
"""File systems that several hosts may write, or that keep locks and mappings in ways of their own."""

_MOUNTS = Path("/proc/self/mountinfo")
_LOCK_PAUSE = 0.005


def default_directory() -> Path:
    """The platform's folder for this user's caches."""
    from platformdirs import user_cache_path

    return user_cache_path(_NAME, appauthor=False)


def state_directory() -> Path:
    """The platform's folder for this user's application state, where secrets are kept."""
    from platformdirs import user_state_path

    return user_state_path(_NAME, appauthor=False)


def namespace_directory(root: Path, namespace: str) -> Path:
    """The namespace's own folder: a readable part and a hash, whatever characters the name has."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", namespace)[:40].strip(".")
    return root / f"{readable}-{xxh3_64_hexdigest(namespace.encode('utf-8', 'surrogatepass'))}"


def make_private_folder(folder: Path) -> None:
    """Make the folder and its missing parents with mode 0700 whatever the umask; existing ones stay as they are."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)


def check_private(folder: Path) -> None:
    """See that nobody else could have put this folder here or can change what is in it.

    Raises:
        CacheConfigurationError: it is a link or no folder, it is another user's, or others may write to it.
    """
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder"
        raise CacheConfigurationError(f"{folder} is {what}: remove it, or choose another directory=")
    if hasattr(os, "geteuid"):  # not on Windows, where these bits mean nothing
        if found.st_uid != os.geteuid():
            raise CacheConfigurationError(
                f"{folder} belongs to user {found.st_uid}, this is user {os.geteuid()}: choose a directory= of your own"
            )
        if found.st_mode & 0o022:
            raise CacheConfigurationError(
                f"{folder} can be written by others (mode {stat.S_IMODE(found.st_mode):o}): remove it, or chmod 700"
            )


def is_on_network(folder: Path) -> bool:
    """Whether the folder is on a file system of the network, where processes of several hosts cannot share memory.

    As far as Linux's table of mounts tells; elsewhere the answer is no.
    """
    try:
        table = _MOUNTS.read_text(errors="surrogateescape")
    except OSError:
        return False
    mounts = [(before, after.split()[0]) for before, _, after in (line.partition(" - ") for line in table.splitlines())]
    if not any(_NETWORK.fullmatch(kind) for _, kind in mounts):  # most hosts: a fifth of the time of looking each one up
        return False
    path, best, found = os.path.realpath(folder), "", ""
    for before, kind in mounts:
        point = before.split()[4]
        if "\\" in point:
            point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), point)
        if len(point) >= len(best) and (path + "/").startswith(point.rstrip("/") + "/"):  # a later mount covers an earlier one
            best, found = point, kind
    return _NETWORK.fullmatch(found) is not None


def lock_file(descriptor: int, *, wait: bool, seconds: float | None = None) -> bool:
    """Take the lock on an open file or folder, which ends with the descriptor or the process; whether it was got.

    Where there are no such locks (Windows) nobody has it and everybody gets it.
    """
    try:
        import fcntl
    except ImportError:
        return True
    if wait and seconds is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    deadline = time.monotonic() + (seconds or 0.0)
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOCK_PAUSE)


def sync_folder(folder: Path) -> None:
    """Have the names in the folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tag_as_cache(folder: Path) -> None:
    """Tell backup programs to leave the folder out (the Cache Directory Tagging Specification)."""
    tag = folder / "CACHEDIR.TAG"
    if not tag.exists():
        tag.write_text(_CACHEDIR_TAG)
        tag.chmod(0o600)
