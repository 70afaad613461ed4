"""Where files go, and with which rights."""

from __future__ import annotations

import re
from pathlib import Path

from xxhash import xxh3_64_hexdigest

__all__ = ["default_directory", "make_private_folder", "namespace_directory", "state_directory", "tag_as_cache"]

_NAME = "codomyrmex_cache"
_CACHEDIR_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This directory holds cached results of codomyrmex_cache; it can be deleted at any time.
"""


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
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)


def tag_as_cache(folder: Path) -> None:
    """Tell backup programs to leave the folder out (the Cache Directory Tagging Specification)."""
    tag = folder / "CACHEDIR.TAG"
    if not tag.exists():
        tag.write_text(_CACHEDIR_TAG)
        tag.chmod(0o600)
