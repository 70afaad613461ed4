"""What a few lines can do without a package: the primitives that files are compared with."""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Callable


class PlainFiles:
    """A file for each key, replaced as a whole."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def get(self, key: str) -> object:
        with open(f"{self._folder}/{key}", "rb") as file:
            return pickle.loads(file.read())

    def set(self, key: str, value: object) -> None:
        draft = f"{self._folder}/{os.getpid()}.draft"
        with open(draft, "wb") as file:
            pickle.dump(value, file, 5)
        os.replace(draft, f"{self._folder}/{key}")


class Table:
    """A table of key and value."""

    def __init__(self, folder: str) -> None:
        self._connection = sqlite3.connect(f"{folder}/plain.sqlite3", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    def get(self, key: str) -> object:
        return pickle.loads(self._connection.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()[0])

    def set(self, key: str, value: object) -> None:
        upsert = "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        self._connection.execute(upsert, (key, pickle.dumps(value, 5)))


def plain_files(function: Callable[[int], object], folder: str) -> Callable[[int], object]:
    """A function that keeps its results in files, and nothing more."""
    files = PlainFiles(folder)

    def call(number: int) -> object:
        try:
            return files.get(f"{number}")
        except FileNotFoundError:
            value = function(number)
            files.set(f"{number}", value)
            return value

    return call
