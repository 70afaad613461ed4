"""Which server, or servers: urls and ready-made clients taken apart, and who of several servers has a key.

Nothing here talks to a server; `_wire` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["Address", "Target", "Topology", "check_url", "target_of_client", "target_of_url", "without_password"]

Address = tuple[str, int] | str
"""Host and port, or the path of a unix socket."""

_SCHEMES = (
    "redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://",
)  # fmt: skip
_PORTS = {"single": 6379, "cluster": 6379, "sentinel": 26379}

Kind = Literal["single", "sentinel", "cluster"]


class Target(NamedTuple):
    """What is to be connected to.

    Args:
        kind: one server, one that sentinels know, or a cluster.
        nodes: the server; the sentinels; some nodes of the cluster.
        options: of each connection to a server, as redis-py calls them.
        sentinel_options: of each connection to a sentinel.
        service: as the sentinels call it.
        tls: whether connections are encrypted.
        name: for messages, without a password.
    """

    kind: Kind
    nodes: tuple[Address, ...]
    options: Mapping[str, Any]
    sentinel_options: Mapping[str, Any]
    service: str
    tls: bool
    name: str


def without_password(url: str) -> str:
    """The url as it may be shown.

    >>> without_password("redis://user:hidden@host/0")
    'redis://user:***@host/0'
    """
    # up to the last @, so that of a password with an unquoted @ or / nothing is shown either
    return re.sub(r"(://[^:]*:).*@", r"\1***@", re.sub(r"([?&][^=&]*password=)[^&]*", r"\1***", url), flags=re.DOTALL)


def check_url(url: object) -> str:
    """The url if it means something.

    Raises:
        CacheConfigurationError: it does not.
    """
    if not isinstance(url, str) or not url.startswith(_SCHEMES):
        raise CacheConfigurationError(f"url={without_password(str(url))!r}: give one of {', '.join(_SCHEMES)}")
    if url.startswith("unix://"):
        return url
    kind, _ = _kind_of(url)
    try:
        nodes = _nodes(_split(url).netloc.rpartition("@")[2], _PORTS[kind])
        database = _path(url)[1] if kind == "sentinel" else _split(url).path
        int(unquote(database).strip("/") or 0)
    except ValueError:  # what it says may quote a piece of the password
        raise CacheConfigurationError(
            f"url={without_password(url)!r}: give host:port and a number as the database, "
            "and percent-encode what is special in a password (@ as %40, / as %2F)"
        ) from None
    if kind == "single" and len(nodes) > 1:
        raise CacheConfigurationError(
            f"url={without_password(url)!r} names several servers: say redis+cluster:// or redis+sentinel://"
        )
    if kind == "sentinel" and not _path(url)[0]:
        raise CacheConfigurationError(f"url={without_password(url)!r}: the service is missing, as in .../mymaster")
    return url


def target_of_url(url: str) -> Target:
    """What the url says."""
    kind, tls = _kind_of(check_url(url))
    if url.startswith("unix://"):
        options = _options(url, url)
        return Target("single", (options.pop("path"),), options, {}, "", False, without_password(url))
    parts = _split(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, database = _path(url) if kind == "sentinel" else ("", parts.path)
    scheme = "rediss" if tls else "redis"
    plain = f"{scheme}://{credentials}{'@' if credentials else ''}host{database}{'?' + parts.query if parts.query else ''}"
    options = _options(plain, url)
    options.pop("host", None)
    sentinel_options = {
        name[len("sentinel_") :]: options.pop(name) for name in ("sentinel_username", "sentinel_password") if name in options
    }
    return Target(kind, _nodes(hosts, _PORTS[kind]), options, sentinel_options, service, tls, without_password(url))


def _options(plain: str, url: str) -> dict[str, Any]:
    """What redis-py reads in the url, tried on a connection that is never made."""
    import redis.connection

    try:
        options: dict[str, Any] = redis.connection.parse_url(plain)  # type: ignore[no-untyped-call]
        kind = options.pop("connection_class", redis.connection.Connection)
        options = {name: value for name, value in options.items() if name not in _OF_POOLS}
        kind(**{name: value for name, value in options.items() if not name.startswith("sentinel_")})
    except (ValueError, TypeError, redis.RedisError) as error:
        problem = str(error).partition("__init__() ")
        raise CacheConfigurationError(f"url={without_password(url)!r}: {problem[2] or problem[0]}") from None
    return options


_OF_POOLS = frozenset({
    "max_connections", "timeout", "decode_responses", "encoding", "encoding_errors", "protocol", "retry_on_timeout",
    "retry_on_error", "health_check_interval", "lib_name", "lib_version", "driver_info",
})  # fmt: skip
"""What redis-py takes in urls for pools and replies of its own, which are none of ours."""


def target_of_client(client: Any) -> Target:
    """Where a redis-py client, blocking or asyncio, leads: its servers, credentials and TLS.

    Raises:
        CacheConfigurationError: not such a client.
    """
    manager = getattr(client, "nodes_manager", None)
    if manager is not None:  # a RedisCluster of either kind
        nodes = tuple((str(node.host), int(node.port)) for node in manager.startup_nodes.values())
        return _target(client, "cluster", nodes, manager.connection_kwargs, {}, "")
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        raise CacheConfigurationError(f"{client!r} is no redis-py client")
    options = pool.connection_kwargs
    sentinels = getattr(pool, "sentinel_manager", None)
    if sentinels is not None:
        known = [sentinel.connection_pool.connection_kwargs for sentinel in sentinels.sentinels]
        nodes = tuple((str(each["host"]), int(each["port"])) for each in known)
        return _target(client, "sentinel", nodes, options, known[0], str(pool.service_name))
    if "path" in options:
        return _target(client, "single", (str(options["path"]),), options, {}, "")
    address = (str(options.get("host", "localhost")), int(options.get("port", 6379)))
    return _target(client, "single", (address,), options, {}, "")


_TAKEN = ("username", "password", "credential_provider", "db", "client_name", "socket_keepalive", "socket_keepalive_options")


def _target(
    client: Any, kind: Kind, nodes: tuple[Address, ...], options: Mapping[str, Any], sentinel: Mapping[str, Any], service: str
) -> Target:
    connection_class = getattr(getattr(client, "connection_pool", None), "connection_class", None)
    tls = "SSL" in getattr(connection_class, "__name__", "") or options.get("ssl", False) is True
    first = nodes[0] if isinstance(nodes[0], str) else f"{nodes[0][0]}:{nodes[0][1]}"
    name = f"{'rediss' if tls else 'redis'}{'' if kind == 'single' else '+' + kind}://{first}"
    return Target(kind, nodes, _taken(options), _taken(sentinel), service, tls, name)


def _taken(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in options.items()
        if value is not None and (name in _TAKEN or (name.startswith("ssl_") and not (name in _OCSP and value is False)))
    }  # fmt: skip


_OCSP = ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled")
"""Of blocking clients alone, which always say them."""


def _kind_of(url: str) -> tuple[Kind, bool]:
    scheme = url.partition("://")[0]
    base, _, kind = scheme.partition("+")
    found: Kind = "cluster" if kind == "cluster" else "sentinel" if kind == "sentinel" else "single"
    return found, base == "rediss"


def _split(url: str) -> SplitResult:
    """The parts of a url that may name several hosts; `urlsplit` of some Pythons takes brackets at the first host only."""
    rest = url.partition("://")[2]
    hosts = re.split(r"[/?#]", rest, maxsplit=1)[0]
    credentials, at, _ = hosts.rpartition("@")
    return urlsplit(f"redis://{credentials}{at}host{rest[len(hosts) :]}")._replace(netloc=hosts)


def _path(url: str) -> tuple[str, str]:
    """Of a sentinel url: the service, and the database as a path."""
    service, _, database = _split(url).path.lstrip("/").partition("/")
    return unquote(service), f"/{database}" if database else ""


def _nodes(hosts: str, port: int) -> tuple[Address, ...]:
    return tuple(_node(host, port) for host in hosts.split(",")) if hosts else (("localhost", port),)


def _node(text: str, port: int) -> Address:
    found = urlsplit(f"//{text}")  # knows IPv6 in brackets, and refuses a port that is none
    if not found.hostname:
        raise ValueError("a host is missing")
    return unquote(found.hostname), found.port or port


class Topology:
    """Which server has which slot, as far as it is known.

    Args:
        target: what is to be connected to.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._known: list[Address] = list(target.nodes)
        self._slots: dict[int, Address] = {}
        self._master: Address | None = target.nodes[0] if target.kind == "single" else None
        self.doubted = target.kind != "single"

    def where(self, slot: int) -> Address | None:
        """The server of the slot; `None` if it has to be asked for."""
        if self.target.kind != "cluster":
            return self._master
        return self._slots.get(slot)

    def doubt(self) -> None:
        """A server did not answer, or is not what it was: ask before the next operation."""
        self.doubted = self.target.kind != "single"

    def moved(self, slot: int, address: Address) -> None:
        """A node has said that another one has the slot; others may have moved as well."""
        self._slots[slot] = address
        if address not in self._known:
            self._known = [*self._known, address]

    @property
    def question(self) -> tuple[bytes, ...]:
        """What tells more: to be sent to one of `advisers`."""
        if self.target.kind == "cluster":
            return (b"CLUSTER", b"SLOTS")
        return (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self.target.service.encode())

    def advisers(self) -> Sequence[Address]:
        """Who can be asked, the most promising first."""
        return tuple(self._known)

    def learn(self, adviser: Address, reply: Any) -> bool:
        """Take in what an adviser has answered; whether it was of use."""
        if self.target.kind == "sentinel":
            if not isinstance(reply, list) or len(reply) != 2:
                return False
            self._master = reply[0].decode(), int(reply[1])
        else:
            if not isinstance(reply, list) or not reply:
                return False
            self._learn_slots(adviser, reply)
        self._known = [adviser, *(other for other in self._known if other != adviser)]  # other threads use the old list
        self.doubted = False
        return True

    def _learn_slots(self, adviser: Address, ranges: list[Any]) -> None:
        slots: dict[int, Address] = {}
        known: list[Address] = [adviser]
        for first, last, *nodes in ranges:
            addresses: list[Address] = [(_host(node[0], adviser), int(node[1])) for node in nodes]
            slots.update(dict.fromkeys(range(first, last + 1), addresses[0]))
            known.extend(address for address in addresses if address not in known)
        self._slots = slots
        known.extend(node for node in self.target.nodes if node not in known)
        self._known = known

    def failed(self, adviser: Address) -> None:
        """It did not answer: ask it last."""
        if adviser in self._known:
            self._known = [*(other for other in self._known if other != adviser), adviser]

    def masters(self) -> list[Address]:
        """All servers that have slots."""
        if self.target.kind != "cluster":
            return [] if self._master is None else [self._master]
        return list(dict.fromkeys(self._slots.copy().values()))


def _host(told: bytes | None, adviser: Address) -> str:
    """A node that does not know its own address leaves it empty: it is the one that was asked."""
    return told.decode() if told else str(adviser[0])
