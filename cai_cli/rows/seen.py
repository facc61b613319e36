"""What was seen of rows while they are read, however many they are: their names, a part of which is in memory."""

from __future__ import annotations

import sqlite3
from typing import TypeVar

Value = TypeVar("Value", int, str)
CACHE_KIB = 16 * 1024  # in memory of one table


def scratch_table(definition: str) -> sqlite3.Connection:
    """A database with one table, for as long as it is held. What it has no memory for goes to a temporary file."""
    database = sqlite3.connect("", isolation_level=None)
    database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    database.execute("PRAGMA journal_mode = OFF")
    database.execute(f"CREATE TABLE {definition}")
    database.execute("BEGIN")  # never committed: nothing of it is to outlast a crash
    return database


class Seen:
    """What each name was first noted with."""

    def __init__(self) -> None:
        self._db = scratch_table("seen (name BLOB PRIMARY KEY, value NOT NULL) WITHOUT ROWID")

    def first(self, name: str, value: Value) -> Value:
        """What the name was noted with before; the value itself, which is noted, where it is new."""
        held = bytes_of(value) if isinstance(value, str) else value
        if self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (bytes_of(name), held)).rowcount:
            return value
        found = self._db.execute("SELECT value FROM seen WHERE name = ?", (bytes_of(name),)).fetchone()[0]
        return found.decode("utf-8", "surrogatepass") if isinstance(value, str) else found

    def count(self, name: str) -> int:
        """How often this was asked of the name before."""
        found = self._db.execute("SELECT value FROM seen WHERE name = ?", (bytes_of(name),)).fetchone()
        before: int = found[0] if found else 0
        self._db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", (bytes_of(name), before + 1))
        return before


def bytes_of(name: str) -> bytes:
    """Half of a surrogate pair, which JSON and the names of files may hold, is no text for sqlite."""
    return name.encode("utf-8", "surrogatepass")
