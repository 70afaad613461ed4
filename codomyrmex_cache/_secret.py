"""The secret that signs file-based entries: made once, kept out of the cache folder, agreed on by all processes."""

from __future__ import annotations

import os
from pathlib import Path

from xxhash import xxh3_128_hexdigest

from codomyrmex_cache._folders import make_private_folder, state_directory
from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["Secret", "file_secret", "secret_list"]

Secret = bytes | str | list[bytes] | tuple[bytes, ...]
"""One secret, or a list for rotation: the first signs, all verify."""

_SIZE = 32


def secret_list(secret: Secret) -> list[bytes]:
    """The secrets as bytes.

    Raises:
        CacheConfigurationError: empty, shorter than 16 bytes, or of another type.
    """
    parts = list(secret) if isinstance(secret, (list, tuple)) else [secret]
    secrets = [part.encode() if isinstance(part, str) else part for part in parts]
    if not secrets or any(not isinstance(part, bytes) or len(part) < 16 for part in secrets):
        raise CacheConfigurationError("secret: give bytes or text of 16 bytes or more, or a list of such")
    return secrets


def file_secret(root: Path) -> bytes:
    """The secret of the cache folder `root`, made at the first use in this user's state folder with mode 0600.

    Of processes that start at once, one writes it (a hard link to a complete file either exists or not) and all read it.
    """
    folder = state_directory()
    path = folder / f"{xxh3_128_hexdigest(os.fsencode(root.resolve()))}.key"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    make_private_folder(folder)
    draft = folder / f"{path.name}.{os.urandom(8).hex()}"
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(os.urandom(_SIZE))
            file.flush()
            os.fsync(file.fileno())  # cut short by a power failure it would be no secret
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
    return _read(path)


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        secret = file.read(_SIZE + 1)
    if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o077):
        raise CacheConfigurationError(
            f"{path} is another user's or can be read by others, so it is no secret: delete it to have a new one made"
        )
    if len(secret) != _SIZE:
        raise CacheConfigurationError(f"{path} is not a secret of this package: delete it to have a new one made")
    return secret
