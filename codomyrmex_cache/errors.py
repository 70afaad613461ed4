"""Everything this package raises on its own account.

One tree: catch `CacheError` and you have caught all of it.  The exceptions of *your* functions
are never wrapped; they pass through untouched.
"""

from __future__ import annotations

__all__ = [
    "CacheBackendError",
    "CacheCodecError",
    "CacheConfigurationError",
    "CacheConnectionError",
    "CacheError",
    "CacheKeyError",
    "CacheStreamError",
    "CacheTimeoutError",
    "EnvelopeError",
    "UnkeyableError",
]


class CacheError(Exception):
    """Base class of every error of this package."""


class CacheConfigurationError(CacheError, ValueError):
    """An option cannot mean anything: bad ttl, unknown backend, empty or contradicting namespace."""


class CacheKeyError(CacheError, TypeError):
    """A key of the direct API is not a `str`."""


class UnkeyableError(CacheKeyError):
    """An argument has no canonical encoding, so the call has no key.

    `parameter` names the argument (`None` while it is not known), `reason` says what was met.
    """

    def __init__(self, reason: str, parameter: str | None = None) -> None:
        self.reason = reason
        self.parameter = parameter
        where = f"parameter {parameter!r}: " if parameter else ""
        super().__init__(f"{where}{reason}")


class CacheBackendError(CacheError):
    """A backend failed and `on_error="raise"` was asked for; the cause is kept in `__cause__`."""


class CacheConnectionError(CacheBackendError):
    """`incr`, `add` or `lock` could not be carried out: unlike a lookup, they have no answer without their backend."""


class CacheTimeoutError(CacheError, TimeoutError):
    """The time to wait for another caller's load, or for a lock, is over."""


class CacheStreamError(CacheError):
    """A stream shared with other callers was broken off, by an interruption or the end of the event loop that ran it."""


class CacheCodecError(CacheError):
    """A value has no encoding under the codec in force, or stored bytes do not decode."""


class EnvelopeError(CacheError):
    """Stored bytes are not a sealed entry of this namespace, key, version and secret.

    `kind` is the statistics key under which it is counted: "truncated", "foreign", "version",
    "tampered" or "misplaced".
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)
