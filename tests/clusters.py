"""Real Redis Clusters and Sentinel groups on loopback, and a load that watches every answer while they fail over."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any, NamedTuple, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from codomyrmex_cache import CacheManager, cached

T = TypeVar("T")
SLOTS = 16_384
HOST = "127.0.0.1"


def poll(condition: Callable[[], T | None], what: str, seconds: float = 15.0) -> T:
    """The first true answer of `condition`; servers change state on their own clocks, so there is nothing to step."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(redis.RedisError, OSError, LookupError):  # what is asked may not be there yet
            if answer := condition():
                return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {seconds} seconds")
        time.sleep(0.01)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different since all are held until the last is found."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def _dying_with_us() -> list[str]:
    """A prefix that has the kernel kill the server if the tests are themselves killed, where there is one."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


class Node:
    """One server process; its port and folder stay when it is killed and started again."""

    def __init__(self, binary: str, folder: Path, port: int, arguments: Sequence[str]) -> None:
        folder.mkdir()
        self.port = port
        self.client = redis.Redis(HOST, port, socket_timeout=5, retry=Retry(NoBackoff(), 0), decode_responses=True)
        self._command = [*_dying_with_us(), binary, *arguments, "--port", str(port), "--bind", HOST, "--dir", str(folder)]
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def __repr__(self) -> str:
        return f"<Node {self.port}>"

    @property
    def alive(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        """As `kill -9` does it; gone when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.client.close()

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def ask(self, *command: object) -> Any:
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def in_sync(self) -> bool:
        """Whether it is a replica that has all its master had."""
        return self.client.info("replication").get("master_link_status") == "up"


# Loading a copy straight from the socket spares a second at each synchronisation.
_SERVER = (
    "--save", "", "--appendonly", "no", "--repl-ping-replica-period", "1",
    "--repl-diskless-sync-delay", "0", "--repl-diskless-load", "swapdb",
)  # fmt: skip


class _Group:
    """Processes that are stopped together."""

    nodes: list[Node]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process of ours."""
        for node in self.nodes:
            node.kill()

    def kill(self, node: Node) -> None:
        """End the node's process as `kill -9` does."""
        node.kill()

    def alive(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    def _or_stop(self, begin: Callable[[], None]) -> None:
        try:
            begin()
        except BaseException:
            self.stop()
            raise


class Cluster(_Group):
    """Three masters with a third of the slots each and a replica each.

    Args:
        binary: of the server.
        folder: an existing one of its own.
        timeout: milliseconds of silence after which a node is taken for dead; raise it where nothing is killed, so that a
            busy machine does not look like a dead node.
    """

    def __init__(self, binary: str, folder: Path, timeout: int = 500) -> None:
        ports = free_ports(12)
        self.nodes = []
        self._or_stop(lambda: self._begin(binary, folder, ports, timeout))

    def _begin(self, binary: str, folder: Path, ports: Sequence[int], timeout: int) -> None:
        for number, (port, bus) in enumerate(zip(ports[:6], ports[6:], strict=True)):
            arguments = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", str(timeout)]
            # 0: a replica may always stand for election, however long it has not heard of its master.
            arguments += ["--cluster-replica-validity-factor", "0", *_SERVER]
            self.nodes.append(Node(binary, folder / str(number), port, arguments))
        for node in self.nodes:
            poll(node.client.ping, f"answer of {node}")
        self._join(ports[6])

    def _join(self, first_bus: int) -> None:
        names = [node.ask("CLUSTER MYID") for node in self.nodes]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number:
                node.ask("CLUSTER MEET", HOST, self.nodes[0].port, first_bus)
        bounds = [SLOTS * number // 3 for number in range(4)]
        for number, node in enumerate(self.nodes[:3]):
            node.ask("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        poll(lambda: all(len(_table(node)) == len(self.nodes) for node in self.nodes), "acquaintance of all with all")
        for node, name in zip(self.nodes[3:], names[:3], strict=True):
            node.ask("CLUSTER REPLICATE", name)
        poll(self.settled, "settled cluster")

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes[:3])

    def settled(self) -> bool:
        """Whether all living nodes know of three masters that have all slots, and the living replicas are in sync."""
        alive = self.alive()
        ports = {node.port for node in alive}
        for node in alive:
            state, table = node.ask("CLUSTER INFO"), _table(node)
            masters = [row for row in table if row.slots and row.port in ports]
            if state["cluster_state"] != "ok" or len(masters) != 3:
                return False
            if len([row for row in table if row.port in ports]) != len(alive):
                return False
        replicas = {row.port for row in _table(alive[0]) if not row.slots}
        return all(node.in_sync() for node in alive if node.port in replicas)

    def masters(self) -> list[Node]:
        """The living nodes that have slots, as a living node sees it."""
        alive = self.alive()
        ports = {row.port for row in _table(alive[0]) if row.slots}
        return [node for node in alive if node.port in ports]

    def master_of(self, key: bytes) -> Node:
        """The owner of the key's slot."""
        return self.owner(key_slot(key))

    def owner(self, slot: int) -> Node:
        """The node that has the slot, as a living node sees it; it may be dead."""
        for row in _table(self.alive()[0]):
            if any(low <= slot <= high for low, high in row.slots):
                return next(node for node in self.nodes if node.port == row.port)
        raise LookupError(f"slot {slot} has no owner")

    def move(self, slot: int, target: Node, halfway: Callable[[], object]) -> None:
        """Have another master take over a slot as redis-cli does it; `halfway` runs when half of its keys have moved."""
        source = self.owner(slot)
        names = [node.ask("CLUSTER MYID") for node in (source, target)]
        target.ask("CLUSTER SETSLOT", slot, "IMPORTING", names[0])
        source.ask("CLUSTER SETSLOT", slot, "MIGRATING", names[1])
        with redis.Redis(HOST, source.port) as client:
            total: Any = client.execute_command("CLUSTER COUNTKEYSINSLOT", slot)
            self._migrate(client, slot, target, total // 2)
            halfway()
            while self._migrate(client, slot, target, 20):
                pass
        for node in (target, source, *self.masters()):  # the new owner first, so that the slot is never without one
            node.ask("CLUSTER SETSLOT", slot, "NODE", names[1])

    @staticmethod
    def _migrate(client: redis.Redis, slot: int, target: Node, count: int) -> int:
        keys: Any = client.execute_command("CLUSTER GETKEYSINSLOT", slot, count)  # type: ignore[no-untyped-call]
        if keys:
            client.execute_command("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)  # type: ignore[no-untyped-call]
        return len(keys)

    def all_keys(self) -> list[bytes]:
        """All keys of all masters."""
        found: list[bytes] = []
        for node in self.masters():
            with redis.Redis(HOST, node.port) as client:
                found += client.scan_iter(count=1000)
        return found

    def slots(self) -> set[int]:
        """The slots that have keys, as a server counts them."""
        return {self.nodes[0].ask("CLUSTER KEYSLOT", key) for key in self.all_keys()}

    def flush(self) -> None:
        """Remove every key."""
        for node in self.masters():
            node.client.flushall()


class _Row(NamedTuple):
    """What one node says of a node."""

    port: int
    slots: list[tuple[int, int]]


def _table(node: Node) -> list[_Row]:
    rows = []
    for address, fields in node.ask("CLUSTER NODES").items():
        if not {"handshake", "noaddr"} & set(fields["flags"].split(",")):
            slots = [(int(slot[0]), int(slot[-1])) for slot in fields["slots"]]
            rows.append(_Row(int(address.rsplit(":", 1)[1].split("@")[0]), slots))
    return rows


class SentinelGroup(_Group):
    """A master called `mymaster`, two replicas of it, and three sentinels of which two must agree.

    The arguments are those of `Cluster`; see `supports` for the binary.
    """

    def __init__(self, binary: str, folder: Path) -> None:
        self.nodes = []
        self._or_stop(lambda: self._begin(binary, folder))

    @property
    def servers(self) -> list[Node]:
        return self.nodes[:3]

    @property
    def sentinels(self) -> list[Node]:
        return self.nodes[3:]

    def _begin(self, binary: str, folder: Path) -> None:
        ports = free_ports(6)
        for number, port in enumerate(ports[:3]):
            following = ["--replicaof", f"{HOST} {ports[0]}"] if number else []
            self.nodes.append(Node(binary, folder / f"server{number}", port, [*_SERVER, *following]))
        for replica in self.servers[1:]:
            poll(replica.in_sync, "replica in sync")
        for number, port in enumerate(ports[3:]):
            self.nodes.append(_sentinel(binary, folder / f"sentinel{number}", port, ports[0]))
        for sentinel in self.sentinels:
            poll(sentinel.client.ping, "sentinel")
            sentinel.ask("SENTINEL DEBUG", *_PERIODS)
        poll(self.settled, "settled sentinels")

    @staticmethod
    def supports(binary: str, folder: Path) -> bool:
        """Whether this server can run as a sentinel."""
        sentinel = _sentinel(binary, folder / "probe", *free_ports(2))
        try:
            poll(sentinel.client.ping, "sentinel", seconds=2)
            return bool(sentinel.ask("ROLE")[0] == "sentinel")
        except AssertionError:
            return False
        finally:
            sentinel.kill()

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'{HOST}:{node.port}' for node in self.sentinels)}/mymaster"

    def master(self) -> Node:
        """The server that the living sentinels agree on; it may be dead."""
        ports = [sentinel.ask("SENTINEL GET-MASTER-ADDR-BY-NAME", "mymaster")[1] for sentinel in self._watching()]
        agreed = [server for server in self.servers if {server.port} == set(map(int, ports))]
        if not agreed:
            raise LookupError("the sentinels disagree")
        return agreed[0]

    def settled(self) -> bool:
        """Whether all living sentinels know each other and the replicas, and the living replicas are in sync."""
        for sentinel in self._watching():
            known = sentinel.ask("SENTINEL MASTER", "mymaster")
            if (known["num-slaves"], known["num-other-sentinels"]) != (2, 2) or known["is_sdown"]:
                return False
        master = self.master()
        return all(server.in_sync() for server in self.servers if server.alive and server is not master)

    def _watching(self) -> Iterable[Node]:
        return (sentinel for sentinel in self.sentinels if sentinel.alive)


_PERIODS = ("publish-period", 100, "info-period", 500, "ask-period", 100, "ping-period", 300)
"""Milliseconds; by default a sentinel introduces itself every two seconds and asks for replicas every ten.  It connects again
once a ping period, which has to be below down-after; and promotes no replica that it has not heard of for five of them."""


def _sentinel(binary: str, folder: Path, port: int, master: int) -> Node:
    configuration = folder.with_suffix(".conf")  # a sentinel writes what it learns into it
    configuration.write_text(
        f"sentinel monitor mymaster {HOST} {master} 2\n"
        "sentinel down-after-milliseconds mymaster 500\n"
        "sentinel failover-timeout mymaster 2000\n"
    )
    return Node(binary, folder, port, [str(configuration), "--sentinel"])


def answer_of(namespace: str, number: int) -> list[object]:
    """What the functions under load answer, so that every answer can be checked."""
    return [namespace, number, f"{namespace}:{number}" * 10]


class Load:
    """Decorated calls without a pause of note, from threads or from the tasks of one event loop, while the block runs.

    Args:
        manager: of the namespaces.
        namespaces: a function is decorated for each; arguments are drawn from a few, so most calls could be hits.
        workers: "threads" (4) or "tasks" (50).
    """

    def __init__(self, manager: CacheManager, namespaces: Sequence[str], workers: str) -> None:
        self.exceptions: list[BaseException] = []
        self.wrong: list[object] = []
        self.durations: list[float] = []
        self.manager, self._namespaces = manager, namespaces
        self._stop = Event()
        if workers == "threads":
            functions = {name: _plain(name, manager) for name in namespaces}
            self._threads = [Thread(target=self._work, args=(functions, Random(number))) for number in range(4)]
        else:
            self._threads = [Thread(target=lambda: asyncio.run(self._gather()))]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self.manager.close()

    @property
    def longest(self) -> float:
        """Seconds of the longest call."""
        return max(self.durations)

    def hit_again(self, namespaces: Sequence[str], seconds: float = 8.0) -> None:
        """Returns when a call has been answered from the store in each of these namespaces, from now on."""
        before = {name: self.manager.stats(name).hits for name in namespaces}
        poll(
            lambda: all(self.manager.stats(name).hits > hits for name, hits in before.items()),
            f"hits in {namespaces}",
            seconds,
        )

    def _work(self, functions: dict[str, Any], random: Random) -> None:
        while not self._stop.wait(0.001):  # leaves a core to the servers
            name, number = random.choice(self._namespaces), random.randrange(20)
            began = time.perf_counter()
            try:
                self._check(name, number, functions[name](number))
                self.durations.append(time.perf_counter() - began)
                if random.random() < 0.02:
                    functions[name].invalidate(number)
            except BaseException as error:
                self.exceptions.append(error)

    async def _gather(self) -> None:
        functions = {name: _coroutine(name, self.manager) for name in self._namespaces}
        await asyncio.gather(*(self._awork(functions, Random(number)) for number in range(50)))
        await self.manager.aclose()

    async def _awork(self, functions: dict[str, Any], random: Random) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(0.02)  # fifty of them, some two thousand calls a second at most
            name, number = random.choice(self._namespaces), random.randrange(20)
            began = time.perf_counter()
            try:
                self._check(name, number, await functions[name](number))
                self.durations.append(time.perf_counter() - began)
                if random.random() < 0.02:
                    await functions[name].ainvalidate(number)
            except BaseException as error:
                self.exceptions.append(error)

    def _check(self, name: str, number: int, answer: object) -> None:
        if answer != answer_of(name, number):
            self.wrong.append((name, number, answer))


def _plain(namespace: str, manager: CacheManager) -> Any:
    @cached(namespace, ttl="1h", backend="redis", manager=manager)
    def answer(number: int) -> list[object]:
        return answer_of(namespace, number)

    return answer


def _coroutine(namespace: str, manager: CacheManager) -> Any:
    @cached(namespace, ttl="1h", backend="redis", manager=manager)
    async def answer(number: int) -> list[object]:
        return answer_of(namespace, number)

    return answer
