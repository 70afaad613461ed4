"""Work that needs a process of its own: `python -m benchmarks.children WORK PACKAGE ...`, and what starts it.

Nothing is imported at the top that a cache might need too, since what is measured may be the import.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import count

from benchmarks import functions
from benchmarks.peers import by_name

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.children", *map(str, arguments)]


def environment() -> dict[str, str]:
    """So that a child finds this package."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])}


class ChildError(Exception):
    """With what it said last."""


def last_words(errors: str, otherwise: str) -> str:
    """The message at the end of a traceback, without the name of a plain AssertionError or RuntimeError."""
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith(" ")]
    return (lines[-1] if lines else otherwise).removeprefix("AssertionError: ").removeprefix("RuntimeError: ")


def run(*arguments: object, seconds: float) -> list[str]:
    """What a child prints, or an error if that takes longer."""
    import subprocess

    with subprocess.Popen(
        command(*arguments), env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            out, errors = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            raise TimeoutError(f"not done after {seconds:.0f} s") from None
    if child.returncode:
        raise ChildError(last_words(errors, f"exit code {child.returncode}"))
    return out.split()


def run_together(several: list[tuple[object, ...]], seconds: float) -> None:
    """Children that begin their work at the same moment: each says that it is ready, and waits for a line."""
    import subprocess
    import tempfile
    from threading import Event, Timer

    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True, "bufsize": 1}
        children = [subprocess.Popen(command(*each), env=environment(), **pipes) for each in several]  # type: ignore[call-overload]
        late = Event()
        alarm = Timer(seconds, lambda: (late.set(), [child.kill() for child in children]))
        alarm.start()
        try:
            are_ready = {child.stdout.readline().strip() for child in children} == {"ready"}
            for child in children if are_ready else ():
                child.stdin.write("go\n")
            for child in children:
                child.communicate()
            if late.is_set():
                raise TimeoutError(f"not done after {seconds:.0f} s")
            if any(child.returncode for child in children):
                errors.seek(0)
                raise ChildError(last_words(errors.read(), "a process failed"))
        finally:
            alarm.cancel()
            for child in children:
                child.kill()
                child.communicate()


def when_told() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def bytes_of(package: str, entries: str) -> None:
    """Growth of resident memory for each entry."""
    import gc

    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    function, number = by_name(package).memory(functions.one, int(entries)), int(entries)
    function(-1)
    before = resident()
    for _ in range(2):
        for key in range(number - 1):
            assert function(key) == key
    print((resident() - before) / number)
    assert functions.executions["one"] <= number * 1.02, "evicted although there is room"
    sys.stdout.flush()
    os._exit(0)  # without taking all of it down again


async def value_of(result: object) -> object:
    """What a call gave, awaited if it must be."""
    return await result if hasattr(result, "__await__") else result  # type: ignore[misc]


def in_loop(coroutine: object) -> object:
    import asyncio

    return asyncio.run(coroutine)  # type: ignore[arg-type]


def on_files(package: str, folder: str):
    """A decorated function; cashews decorates coroutine functions only."""
    if package == "plain file":
        from benchmarks.plain import plain_files

        return plain_files(functions.hundred, folder)
    return by_name(package).files(functions.task_hundred if package == "cashews" else functions.hundred, folder)


def warm(package: str, folder: str, entries: str = "2") -> None:
    """Store so many entries."""
    function = on_files(package, folder)

    async def work() -> None:
        for number in range(int(entries)):
            assert await value_of(function(number)) == f"{number:0100d}", "a wrong answer"

    in_loop(work())


def first(package: str, folder: str) -> None:
    """The first hit of a process: the parent measures all of it.  "nothing" is what the child itself costs."""
    if package == "nothing":
        return
    result = on_files(package, folder)(1)
    assert (in_loop(value_of(result)) if hasattr(result, "__await__") else result) == f"{1:0100d}", "a wrong answer"
    assert not functions.executions, "no hit"


def share(package: str, folder: str, seconds: str, turn: str, processes: str) -> None:
    """Forks, each with 90 % reads of entries that all have and 10 % of new ones, all of which are then asked for again.

    Each prints operations per second, and how many of its new entries were lost.
    """
    import multiprocessing
    import random
    from importlib import import_module

    if package != "plain file":
        import_module(by_name(package).module)  # once, but used by the forks only
    context, number, limit = multiprocessing.get_context("fork"), int(processes), float(seconds)
    barrier, results = context.Barrier(number), context.SimpleQueue()

    async def work(first_new: int) -> None:
        function, new, done = on_files(package, folder), count(first_new), 0

        async def ask(number: int) -> None:
            assert await value_of(function(number)) == f"{number:0100d}", "a wrong answer"

        await ask(0)
        barrier.wait(30)
        began = time.perf_counter()
        while (taken := time.perf_counter() - began) < limit:
            await ask(random.randrange(1_000) if done % 10 else next(new))
            done += 1
        barrier.wait(30)
        ran = sum(functions.executions.values())
        for number in range(first_new, next(new)):
            await ask(number)
        results.put((done / taken, sum(functions.executions.values()) - ran))

    def worker(which: int) -> None:
        in_loop(work(10**9 * (int(turn) * 100 + which)))

    workers = [context.Process(target=worker, args=(which,)) for which in range(number)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert not any(each.exitcode for each in workers), "a process failed"
    for _ in workers:
        print(*results.get())


def stampede(package: str, protected: str, where: str, kind: str, callers: str) -> None:
    """So many callers of one function at the same moment: threads or tasks of this process, or this process as one of several.

    The parent counts the marks that the executions leave.
    """
    import asyncio
    from threading import Barrier, Thread

    decorate, number = getattr(by_name(package), protected), int(callers)
    is_task = kind == "tasks" or package in ("cashews", "aiocache")
    function = decorate(functions.task_slow if is_task else functions.slow, *([] if where == "-" else [where]))
    answers: list[object] = []

    def call(barrier: Barrier) -> None:
        barrier.wait()
        answers.append(function(1))

    async def gather() -> None:
        answers.extend(await asyncio.gather(*(value_of(function(1)) for _ in range(number))))

    when_told()
    if is_task:
        in_loop(gather())
    else:
        barrier = Barrier(number)
        threads = [Thread(target=call, args=(barrier,)) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [1] * number, "a wrong answer"


if __name__ == "__main__":
    works = {"bytes": bytes_of, "warm": warm, "first": first, "share": share, "stampede": stampede}
    works[sys.argv[1]](*sys.argv[2:])
