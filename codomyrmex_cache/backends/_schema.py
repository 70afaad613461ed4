"""The tables of a file-based namespace, and the statements over them.

An entry's row holds its sealed bytes, or, if they are many, their head and the number of the file with all of them.  Whatever
ceases to name a file puts its number into `garbage` in the same transaction, to be unlinked afterwards.  `seq` grows with each
new entry, so it is the order in which eviction looks at entries; those in `visited` it gives another turn.

What decides about loads is checked when it is written, so that nothing of another type is kept of a damaged database.

The triggers do what belongs to every write of a value, so that a plain write is one statement: it drops the generation of its
key.  `visited` is a table of its own because marking rows where they are would rewrite a page for each.

`regime` is one row, see `_mirror`.  A quick write is one statement that fails by its NOT NULL if the regime is not the one that
its process believes in; asking for that in a WHERE costs three times as much.
"""

__all__ = [
    "CLEAR", "COUNT", "CREATE", "DROP", "ENDED", "FAILED", "GET", "LEASE", "PUT", "QUICK_GET", "QUICK_GET_NOTING", "QUICK_PUT",
    "REGIME", "RENEW", "SCAN", "SETTLE", "SET_REGIME", "TRIM", "UNSETTLE", "VERSION",
]  # fmt: skip

VERSION = 3
"""Stored in the database's header and again in its first row of `meta`, so that a flipped bit does not pass for an upgrade."""

CREATE = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID

INSERT INTO meta VALUES ('schema', {VERSION}), ('large', 0), ('counted', 0), ('counted up to', 0)

CREATE TABLE entries (seq INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE,
    expires_at REAL, file INTEGER, size INTEGER, value BLOB NOT NULL)

CREATE INDEX expiring ON entries (expires_at) WHERE expires_at IS NOT NULL

CREATE INDEX files ON entries (file) WHERE file IS NOT NULL

CREATE TABLE garbage (file INTEGER PRIMARY KEY)

CREATE TABLE visited (seq INTEGER PRIMARY KEY)

CREATE TABLE generations (name BLOB PRIMARY KEY, value BLOB NOT NULL, used REAL NOT NULL,
    CHECK (typeof(value) = 'blob' AND typeof(used) = 'real')) WITHOUT ROWID

CREATE TABLE leases (key BLOB PRIMARY KEY,
    token INTEGER NOT NULL, since REAL NOT NULL, until REAL NOT NULL, failed INTEGER NOT NULL,
    generations BLOB NOT NULL) WITHOUT ROWID

CREATE TABLE tokens (id INTEGER PRIMARY KEY, last INTEGER NOT NULL,
    CHECK (typeof(last) = 'integer' AND last BETWEEN 0 AND 1 << 61))

CREATE TABLE regime (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, alone INTEGER NOT NULL, mirror INTEGER NOT NULL,
    settled INTEGER NOT NULL, CHECK (typeof(number) = 'integer' AND number BETWEEN 1 AND 1 << 62
    AND alone IN (0, 1) AND typeof(mirror) = 'integer' AND settled IN (0, 1)))

INSERT INTO regime VALUES (1, (random() & ((1 << 62) - 1)) | 1, 0, 0, 1)

CREATE TRIGGER fence_new AFTER INSERT ON entries
    BEGIN DELETE FROM generations WHERE name = CAST('k' || NEW.key AS BLOB); END

CREATE TRIGGER fence_old AFTER UPDATE OF value ON entries
    BEGIN DELETE FROM generations WHERE name = CAST('k' || NEW.key AS BLOB); END

CREATE TRIGGER file_new AFTER INSERT ON entries WHEN NEW.file IS NOT NULL
    BEGIN UPDATE meta SET value = value + NEW.size WHERE name = 'large'; END

CREATE TRIGGER file_next AFTER UPDATE OF value ON entries WHEN NEW.file IS NOT NULL
    BEGIN UPDATE meta SET value = value + NEW.size WHERE name = 'large'; END

CREATE TRIGGER file_old AFTER UPDATE OF value ON entries WHEN OLD.file IS NOT NULL
    BEGIN INSERT OR IGNORE INTO garbage VALUES (OLD.file);
    UPDATE meta SET value = value - OLD.size WHERE name = 'large'; END

CREATE TRIGGER file_gone AFTER DELETE ON entries WHEN OLD.file IS NOT NULL
    BEGIN INSERT OR IGNORE INTO garbage VALUES (OLD.file);
    UPDATE meta SET value = value - OLD.size WHERE name = 'large'; END

PRAGMA user_version = {VERSION}
""".strip().split("\n\n")  # noqa: S608  of a number

GET = "SELECT value, file, seq, expires_at FROM entries WHERE key = ?"
QUICK_GET = "SELECT value FROM entries WHERE key = ?"
QUICK_GET_NOTING = "SELECT value, seq FROM entries WHERE key = ?"
PUT = (
    "INSERT INTO entries (key, expires_at, file, size, value) VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
    "SET expires_at = excluded.expires_at, file = excluded.file, size = excluded.size, value = excluded.value"
)
QUICK_PUT = PUT.replace(
    "?, ?, ?, ?, ?", "?1, ?2, NULL, NULL, CASE (SELECT number FROM regime WHERE id = 1) WHEN ?4 THEN ?3 END"
)
"""`INSERT OR REPLACE` would give the row another place and cost four times as much."""

REGIME = "SELECT number, alone, mirror, settled FROM regime WHERE id = 1"
SET_REGIME = "UPDATE regime SET number = ?, alone = ?, mirror = ?, settled = ? WHERE id = 1"
SETTLE = "UPDATE regime SET settled = 1 WHERE id = 1"
UNSETTLE = "UPDATE regime SET settled = 0 WHERE id = 1"

SCAN = "SELECT key, expires_at FROM entries WHERE key >= ? AND key < ?"
CLEAR = "DELETE FROM entries WHERE key >= ? AND key < ?"
COUNT = "SELECT COUNT(*) FROM entries WHERE key >= ? AND key < ?"

LEASE = "SELECT token, since, until, failed, generations FROM leases WHERE key = ?"
DROP = "DELETE FROM generations WHERE name = ?"
ENDED = "DELETE FROM leases WHERE key = ? AND token = ?"
FAILED = "UPDATE leases SET failed = token, token = 0 WHERE key = ? AND token = ?"
RENEW = "UPDATE leases SET since = ?, until = ? WHERE key = ? AND token = ?"
TRIM = "DELETE FROM generations WHERE name IN (SELECT name FROM generations ORDER BY used DESC LIMIT -1 OFFSET ?)"
