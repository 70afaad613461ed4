"""Everything this package raises on its own account.

One tree: catch `CacheError` and you have caught all of it.  The exceptions of *your* functions
are never wrapped; they pass through untouched.
"""

from __future__ import annotations

from errno import errorcode

__all__ = [
    "CacheBackendError",
    "CacheCodecError",
    "CacheConfigurationError",
    "CacheConnectionError",
    "CacheError",
    "CacheKeyError",
    "CacheMissError",
    "CacheStreamError",
    "CacheTimeoutError",
    "CircuitOpenError",
    "EnvelopeError",
    "UnkeyableError",
    "ValueTooLargeError",
    "cause_of",
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


class CircuitOpenError(CacheConnectionError):
    """The backend has failed several times in a row and is left alone until the next probe."""


class CacheMissError(CacheError):
    """In mode "replay" nothing that may be answered is stored for a call, and its function does not run.

    Args:
        message: for people: what differs from the nearest entry.
        namespace: of the call.
        key: its key text; empty if an argument has no key.
        function: its name in keys; empty for the direct API.
        differing: the parts of the key in which the nearest entry of the function differs.
        nearest: the key text of that, `None` if there is none.
    """

    def __init__(
        self,
        message: str,
        namespace: str = "",
        key: str = "",
        function: str = "",
        differing: tuple[str, ...] = (),
        nearest: str | None = None,
    ) -> None:
        self.namespace, self.key, self.function = namespace, key, function
        self.differing, self.nearest = differing, nearest
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.namespace, self.key, self.function, self.differing, self.nearest)


class CacheTimeoutError(CacheError, TimeoutError):
    """The time to wait for another caller's load, or for a lock, is over."""


class CacheStreamError(CacheError):
    """A stream shared with other callers was broken off, by an interruption or the end of the event loop that ran it."""


class CacheCodecError(CacheError):
    """A value has no encoding under the codec in force, or stored bytes do not decode.

    `kind` is the statistics key under which the latter is counted.
    """

    kind = "undecodable"


class ValueTooLargeError(CacheCodecError):
    """A value has more bytes than `max_value_bytes` allows."""


class EnvelopeError(CacheError):
    """Stored bytes are not a sealed entry of this namespace, key, version and secret.

    `kind` is the statistics key under which it is counted: "truncated", "foreign", "version" (an older format),
    "newer", "tampered" or "misplaced".
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def cause_of(error: BaseException) -> str:
    """The name under which a failure is counted and logged: SQLite's, the operating system's, or its class.

    >>> cause_of(FileNotFoundError(2, "No such file or directory")), cause_of(ValueError())
    ('ENOENT', 'ValueError')
    """
    name = getattr(error, "sqlite_errorname", None) or errorcode.get(getattr(error, "errno", None) or 0)
    return str(name or type(error).__name__)
