"""The core of the Redis backend: round trips, names on the server, and what urls and clients say."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.sentinel import Sentinel

from codomyrmex_cache import Entry, RedisBackend
from codomyrmex_cache.backends._layout import Layout, pattern
from codomyrmex_cache.backends._target import target_of_client, target_of_url
from codomyrmex_cache.backends._wire import Wire
from codomyrmex_cache.backends.base import generation_name, namespace_prefix
from codomyrmex_cache.errors import CacheConfigurationError
from tests.conftest import Server
from tests.proxy import FaultProxy
from tests.redis_world import World, world_on


@pytest.fixture
def world(valkey: Server) -> Iterator[World]:
    with world_on(valkey) as world:
        yield world


# -- round trips


def warmed(world: World) -> World:
    """Connections are there and the server knows the scripts."""
    world.plain(0), world.plain(0), world.tagged(0), world.tagged(0)
    world.cache.delete("k"), world.cache.set("k", 1)
    world.cache.get_or_load("m", lambda: 1)
    return world


def test_round_trips_of_blocking_calls(world: World) -> None:
    warmed(world)
    many = {str(number): number for number in range(100)}
    actions: dict[str, tuple[Callable[[], object], int]] = {
        "hit": (lambda: world.plain(0), 1),
        "tagged hit": (lambda: world.tagged(0), 1),
        "miss and store": (lambda: world.plain(1), 2),
        "tagged miss and store": (lambda: world.tagged(1), 2),
        "get": (lambda: world.cache.get("k"), 1),
        "get of nothing": (lambda: world.cache.get("absent"), 1),
        "get_or_load, miss": (lambda: world.cache.get_or_load("l", lambda: 1), 2),
        "get_or_load, hit": (lambda: world.cache.get_or_load("l", lambda: 1), 1),
        "set": (lambda: world.cache.set("k", 2), 1),
        "has nothing": (lambda: world.cache.has("absent"), 1),
        "delete": (lambda: world.cache.delete("k"), 1),
        "set_many": (lambda: world.cache.set_many(many), 1),
        "get_many": (lambda: world.cache.get_many(many), 1),
        "delete_many": (lambda: world.cache.delete_many(many), 1),
        "invalidate_tags": (lambda: world.cache.invalidate_tags("odd"), 1),
        "invalidate": (lambda: world.plain.invalidate(1), 1),
    }
    assert {name: world.trips(action) for name, (action, _) in actions.items()} == {
        name: expected for name, (_, expected) in actions.items()
    }
    assert world.proxy.connections == 1


def test_round_trips_in_an_event_loop(world: World) -> None:
    async def main() -> dict[str, int]:
        await world.aplain(0)
        cache, many = world.cache, {str(number): number for number in range(100)}
        await cache.aset("k", 1)
        await cache.adelete("absent")
        counts = {
            "hit": await world.atrips(lambda: world.aplain(0)),
            "miss and store": await world.atrips(lambda: world.aplain(1)),
            "aget_or_load, miss": await world.atrips(lambda: cache.aget_or_load("l", lambda: 1)),
            "aget": await world.atrips(lambda: cache.aget("k")),
            "aget of nothing": await world.atrips(lambda: cache.aget("absent")),
            "aset": await world.atrips(lambda: cache.aset("k", 2)),
            "adelete": await world.atrips(lambda: cache.adelete("k")),
            "aset_many": await world.atrips(lambda: cache.aset_many(many)),
            "aget_many": await world.atrips(lambda: cache.aget_many(many)),
            "adelete_many": await world.atrips(lambda: cache.adelete_many(many)),
        }
        await world.manager.aclose()
        return counts

    counts = asyncio.run(main())
    assert counts == {name: 2 if "miss" in name else 1 for name in counts}


def test_forgotten_scripts_cost_one_round_trip_more(world: World) -> None:
    warmed(world)
    before = world.plain(0)
    world.admin.script_flush()
    assert world.trips(lambda: world.plain(0)) == 2
    assert world.trips(lambda: world.plain(0)) == 1
    assert world.plain(0) == before
    world.admin.script_flush()
    assert world.trips(lambda: world.plain(1)) == 4  # the look and the commit
    assert world.runs.count(1) == 1


def test_who_waits_in_this_process_asks_for_less_than_it_would_alone(world: World) -> None:
    warmed(world)
    begun, go = Event(), Event()

    def load() -> int:
        begun.set()
        assert go.wait(10)
        return 7

    with ThreadPoolExecutor(9) as pool:
        leader = pool.submit(world.cache.get_or_load, "w", load)
        assert begun.wait(10)
        world.proxy.trips = 0
        others = [pool.submit(world.cache.get_or_load, "w", load) for _ in range(8)]
        (flight,) = world.cache.space.flights._flights.values()
        while flight._waiting < 9:  # polling; the test's time limit ends it
            time.sleep(0.001)
        go.set()
        assert {each.result(10) for each in (leader, *others)} == {7}
    assert world.proxy.trips == 9  # a look each, and the leader's commit


# -- names


KINDS = (b"e", b"l", b"gk")
names = st.text(st.sampled_from("a:{}19-é"), min_size=1, max_size=5)
keys = st.one_of(st.binary(max_size=20), st.builds(lambda name, rest: namespace_prefix(name) + rest, names, st.binary()))
layouts = st.sampled_from([1, 2, 7, 1024]).map(Layout)


@given(layouts, keys)
@example(Layout(), b"")
@example(Layout(3), b"3:a}e:}e")
@example(Layout(), b"1:}:}e")
@example(Layout(), b"999999999:x")
def test_a_name_leads_back_to_its_key(layout: Layout, key: bytes) -> None:
    assert layout.key_of(layout.entry(key)) == key


@given(layouts, st.lists(keys, unique=True, max_size=6))
def test_no_two_keys_or_kinds_share_a_name(layout: Layout, several: list[bytes]) -> None:
    found = [layout.place(key).name(kind) for key in several for kind in KINDS]
    scopes = {
        layout.generation(generation_name(kind, key), layout.place(key))
        for key in several
        for kind in ("n", "f", "t")  # type: ignore[attr-defined]
    }
    totals = {layout.totals(key)[1] for key in several}
    tokens = {layout.place(key).head + b"t" for key in several}
    assert len(set(found)) == len(found)
    assert not set(found) & (scopes | totals | tokens)
    assert not scopes & (totals | tokens) and not totals & tokens


@given(layouts, st.lists(keys, unique=True, max_size=6))
def test_many_keys_have_the_names_of_each(layout: Layout, several: list[bytes]) -> None:
    expected = {layout.entry(key): key for key in several}
    assert {name: key for named in layout.entries(several).values() for name, key in named.items()} == expected


@given(layouts, names, st.binary(max_size=8))
def test_all_of_a_part_is_in_one_slot(layout: Layout, namespace: str, rest: bytes) -> None:
    wire = Wire(target_of_url("redis+cluster://h"))
    place = layout.place(namespace_prefix(namespace) + rest)
    slots = {key_slot(place.name(kind)) for kind in KINDS} | {key_slot(place.head + b"t")}
    assert slots == {wire.slot(place.tag)}
    assert place.tag in layout.tags(namespace_prefix(namespace))


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_a_beginning_finds_its_own_entries(prefix: bytes, rest: bytes) -> None:
    layout, key = Layout(4), b"1:a:" + prefix + rest
    beginnings = [beginning for _, beginning in layout.beginnings(b"1:a:" + prefix) or ()]
    assert len([beginning for beginning in beginnings if layout.entry(key).startswith(beginning)]) == 1


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=8))
def test_the_servers_patterns_match_bytes_as_they_are(pattern_of: bytes) -> None:
    assume(pattern_of)
    assert pattern(pattern_of).endswith(b"*")
    assert Layout().key_of(b"foreign" + pattern_of) is None


def test_clear_takes_names_with_wildcards_for_what_they_are(valkey: Server) -> None:
    backend = RedisBackend(valkey.url)
    for key in (b"1:*:k", b"1:?:k", b"1:a:k", b"4:[a]*:k", b"1:\\:k"):
        backend.set(key, Entry(b"v", created=0.0))
    assert [backend.clear(prefix) for prefix in (b"1:*:", b"1:?:", b"4:[a]*:", b"1:\\:")] == [1, 1, 1, 1]
    assert backend.has(b"1:a:k")
    backend.close()


def test_threads_in_two_namespaces_never_meet() -> None:
    layout, problems, start = Layout(), [], Barrier(4)

    def work(name: str) -> None:
        key = namespace_prefix(name) + b"k"
        start.wait()
        for _ in range(20_000):
            if layout.entry(key) != b"cmxc:{%b}ek" % namespace_prefix(name):
                problems.append(name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abab"))
    assert problems == []


# -- urls and clients


@pytest.mark.parametrize(
    ("url", "nodes", "options"),
    [
        ("redis://", [("localhost", 6379)], {}),
        ("redis://h", [("h", 6379)], {}),
        ("redis://h:7/3", [("h", 7)], {"db": 3}),
        ("redis://h?db=2", [("h", 6379)], {"db": 2}),
        ("redis://:p%40s%2Fs@h", [("h", 6379)], {"password": "p@s/s"}),
        ("redis://u%3A:p@[::1]:7", [("::1", 7)], {"username": "u:", "password": "p"}),
        ("redis://h?socket_timeout=1.5", [("h", 6379)], {"socket_timeout": 1.5}),
        ("redis://h?max_connections=3&decode_responses=1&protocol=3&health_check_interval=5", [("h", 6379)], {}),
        ("rediss://h?ssl_cert_reqs=none", [("h", 6379)], {"ssl_cert_reqs": "none"}),
        ("unix:///tmp/a.sock?db=1", ["/tmp/a.sock"], {"db": 1}),
        ("unix://u:p@/tmp/a.sock", ["/tmp/a.sock"], {"username": "u", "password": "p"}),
        ("redis+cluster://u:p@a:1,b,[::1]:3", [("a", 1), ("b", 6379), ("::1", 3)], {"username": "u", "password": "p"}),
        ("redis+sentinel://a,b:2/main/4", [("a", 26379), ("b", 2)], {"db": 4}),
        ("rediss+sentinel://:p@a/main?sentinel_password=s", [("a", 26379)], {"password": "p"}),
    ],
)
def test_what_urls_say(url: str, nodes: list[Any], options: dict[str, Any]) -> None:
    target = target_of_url(url)
    assert (list(target.nodes), dict(target.options)) == (nodes, options)
    assert target.tls == url.startswith("rediss")
    assert Wire(target).connection(target.nodes[0]) is not None  # redis-py takes the options
    assert dict(target.sentinel_options) == ({"password": "s"} if "sentinel_password" in url else {})


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hid/den@h:6379/0", "redis://u:hid@den@h/x", "redis://u:12/hidden@h", "redis://:hid?den@h", "redis://:hid#den@h",
        "redis://u:hidden@a,b", "redis://u:hidden@:port", "redis://u:hidden@h?foo=1", "redis://u:hidden@h/base",
        "redis://h?password=hidden&foo=1", "redis+sentinel://h?sentinel_password=hidden", "redis+sentinel://u:hidden@h",
        "redis://u:hidden\u2100@h", "http://u:hidden@h", "redis://u:hidden@h?ssl_cert_reqs=none", "redis://u:hidden@[::1",
    ],
)  # fmt: skip
def test_errors_name_the_url_without_its_password(url: str) -> None:
    with pytest.raises(CacheConfigurationError) as caught:
        RedisBackend(url)
    assert url.partition("://")[0] in str(caught.value)
    assert "hid" not in str(caught.value) and "den" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    ["redis://u:hidden@h", "redis://:hid@den@h", "redis://h?password=hidden", "redis+sentinel://h/s?sentinel_password=hidden"],
)
def test_what_is_shown_has_no_password(url: str) -> None:
    shown = repr(RedisBackend(url))
    assert "***" in shown and "hid" not in shown and "den" not in shown


def test_clients_of_redis_py_say_where_to_connect() -> None:
    secret = {"username": "u", "password": "hidden"}
    tls = {"ssl": True, "ssl_cert_reqs": "none"}
    sentinel = Sentinel([("s", 1)], sentinel_kwargs={"password": "other"}, db=2, **secret)
    asentinel = AsyncSentinel([("s", 1)], sentinel_kwargs={"password": "other"}, db=2, **secret)
    targets = {
        name: target_of_client(client)
        for name, client in {
            "plain": redis.Redis("h", 7, db=3, decode_responses=True, **secret),
            "async": redis.asyncio.Redis(host="h", port=7, db=3, **secret),
            "url": redis.from_url("redis://u:hidden@h:7/3"),
            "async url": redis.asyncio.from_url("redis://u:hidden@h:7/3"),
            "unix": redis.Redis(unix_socket_path="/s", **secret),
            "tls": redis.Redis("h", 7, **secret, **tls),
            "sentinel": sentinel.master_for("main"),
            "async sentinel": asentinel.master_for("main"),
            "async cluster": AsyncRedisCluster(startup_nodes=[], host="h", port=7, **secret),
        }.items()
    }
    assert {name: target.kind for name, target in targets.items() if target.kind != "single"} == {
        "sentinel": "sentinel", "async sentinel": "sentinel", "async cluster": "cluster",
    }  # fmt: skip
    for name, target in targets.items():
        assert {key: target.options[key] for key in secret} == secret
        assert "hidden" not in target.name
        assert target.nodes == (("/s",) if name == "unix" else (("s", 1),) if "sentinel" in name else (("h", 7),))
        assert target.tls == (name == "tls")
        assert Wire(target).connection(target.nodes[0]) is not None
    assert targets["sentinel"].sentinel_options["password"] == "other"
    assert targets["tls"].options["ssl_cert_reqs"] == "none"
    with pytest.raises(CacheConfigurationError, match="no redis-py client"):
        target_of_client(ClusterNode("h", 7))


def round_trip(backend: RedisBackend) -> None:
    """Blocking and in an event loop."""
    backend.set(b"1:x:k", Entry(b"v", created=0.0))

    async def main() -> None:
        assert (await backend.aget(b"1:x:k")) == Entry(b"v")
        await backend.aclose()

    asyncio.run(main())
    assert backend.state == "closed"


def test_a_user_with_a_password(valkey: Server) -> None:
    with valkey.client() as admin:
        admin.acl_setuser("some:one", enabled=True, passwords=["+p@ss/w%rd"], keys=["cmxc:*"], categories=["+@all"])
        try:
            round_trip(RedisBackend(f"redis://some%3Aone:p%40ss%2Fw%25rd@127.0.0.1:{valkey.port}"))
            round_trip(RedisBackend(redis.Redis("127.0.0.1", valkey.port, username="some:one", password="p@ss/w%rd")))
            wrong = RedisBackend(f"redis://some%3Aone:wrong@127.0.0.1:{valkey.port}")
            with pytest.raises(redis.RedisError):
                wrong.get(b"1:x:k")
        finally:
            admin.acl_deluser("some:one")


# -- TLS


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1 that vouches for itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).add_extension(address, critical=False)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    files = folder / "server.key", folder / "server.crt"
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[0].write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    files[1].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return files


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[FaultProxy, Path]]:
    """A proxy before a server that speaks TLS, and the certificate."""
    binary = shutil.which("redis-server")  # the Valkey of the tests is built without TLS
    if binary is None or b"libssl" not in Path(binary).read_bytes():
        pytest.skip("needs a redis-server with TLS")
    key, crt = certificate(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        binary, "--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port), "--tls-cert-file", str(crt),
        "--tls-key-file", str(key), "--tls-ca-cert-file", str(crt), "--tls-auth-clients", "no", "--save", "",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 10
        while True:  # polling until the process listens; nothing is assumed from the time passed
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with FaultProxy(port) as proxy:
            yield proxy, crt
    finally:
        process.kill()
        process.wait()


def test_tls(tls: tuple[FaultProxy, Path]) -> None:
    proxy, crt = tls
    address = f"rediss://127.0.0.1:{proxy.port}/0"
    round_trip(RedisBackend(f"{address}?ssl_ca_certs={crt}"))
    round_trip(RedisBackend(f"{address}?ssl_cert_reqs=none"))
    for module in (redis, redis.asyncio):
        round_trip(RedisBackend(module.Redis(host="127.0.0.1", port=proxy.port, ssl=True, ssl_ca_certs=str(crt))))
    backend = RedisBackend(f"{address}?ssl_ca_certs={crt}")
    proxy.connections = 0
    for _ in range(20):
        assert backend.get(b"1:x:k") == Entry(b"v")
    assert proxy.connections == 1  # what TLS says beside the replies is not taken for a rest of them
    backend.close()
    with pytest.raises(redis.RedisError, match="certificate"):
        RedisBackend(address).get(b"1:x:k")


def test_tls_keeps_time(tls: tuple[FaultProxy, Path]) -> None:
    proxy, crt = tls
    url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={crt}"
    backend = RedisBackend(url)
    backend.has(b"1:x:k")

    async def main() -> float:
        await backend.ahas(b"1:x:k")
        proxy.mode = "blackhole"
        began = time.monotonic()
        await backend.aclose()
        return time.monotonic() - began

    assert asyncio.run(main()) < 5  # saying farewell may take 30 s in asyncio
    began = time.monotonic()
    for each in (backend, RedisBackend(url)):
        with pytest.raises(redis.RedisError):
            each.has(b"1:x:k")
    assert time.monotonic() - began < 5
    backend.close()
