"""Files as inputs: by their content, looked at again only when the file may have changed.

The digest of a file is remembered under (path, device, inode, size, mtime_ns, ctime_ns).  A `touch` changes the times, so
the file is read again, and the content is the same.  An edit that keeps the size and puts the old mtime back still changes
ctime.  A file changed within the last two seconds is always read again: another write could fall into the same tick.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from codomyrmex_cache.errors import UnkeyableError

__all__ = ["file_digest", "identity", "is_recent", "tree_digest"]

RECENT_SECONDS = 2.0
_MAX_REMEMBERED = 65_536
_digests: dict[tuple[object, ...], bytes] = {}


def file_digest(path: str | os.PathLike[str]) -> bytes:
    """256 bits of the content; a symbolic link counts by what it leads to.

    Raises:
        UnkeyableError: it is a directory, or cannot be read; the function itself will meet the same file and say why.
    """
    try:
        mode = os.stat(path).st_mode  # before opening: a pipe would wait for its writer
        if S_ISDIR(mode):
            raise UnkeyableError(f"{os.fspath(path)!r} is a directory: mark the parameter with Tree(glob)")
        if not S_ISREG(mode):
            raise UnkeyableError(f"{os.fspath(path)!r} is not a regular file")
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            name = (os.fspath(path), *identity(before))
            if not is_recent(before) and name in _digests:
                return _digests[name]
            digest = blake2b(digest_size=32)
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            unchanged = identity(os.fstat(file.fileno())) == identity(before)
    except (OSError, ValueError, TypeError) as error:
        raise UnkeyableError(f"the file cannot be read ({error})") from error
    if unchanged and not is_recent(before):
        if len(_digests) >= _MAX_REMEMBERED:
            _digests.clear()
        _digests[name] = digest.digest()
    return digest.digest()


def tree_digest(root: str | os.PathLike[str], glob: str) -> list[tuple[str, bytes]]:
    """The relative path and content digest of each file below `root` that the glob selects, sorted.

    Raises:
        UnkeyableError: `root` is not a directory, or a selected file cannot be read.
    """
    folder = Path(root)
    try:
        if not S_ISDIR(folder.stat().st_mode):
            raise UnkeyableError(f"{os.fspath(root)!r} is not a directory: mark the parameter with FileContent")
        files = sorted(path for path in _selected(folder, glob) if path.is_file())
    except (OSError, ValueError, TypeError) as error:
        raise UnkeyableError(f"the directory cannot be read ({error})") from error
    return [(path.relative_to(folder).as_posix(), file_digest(path)) for path in dict.fromkeys(files)]


def _selected(folder: Path, glob: str) -> Iterator[Path]:
    """What the glob selects; a folder that it selects stands for all that is in it."""
    for path in folder.glob(glob):
        yield path
        if path.is_dir():
            for parent, folders, names in os.walk(path, followlinks=False):
                folders.sort()
                yield from (Path(parent, name) for name in names)


def identity(stat: os.stat_result) -> tuple[int, ...]:
    """Another after each change of the file, but for one that follows too soon upon the last; see `is_recent`."""
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def is_recent(stat: os.stat_result) -> bool:
    """Whether the next change may fall into the same tick as the last."""
    return max(stat.st_mtime, stat.st_ctime) > time.time() - RECENT_SECONDS
