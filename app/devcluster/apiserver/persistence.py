"""The state of the cluster in a SQLite file: written in small batches after the store, and loaded at the start."""

import sqlite3
from pathlib import Path

import orjson

from app.devcluster.apiserver.objects import Key
from app.devcluster.apiserver.registry import RESOURCES, by_id
from app.devcluster.apiserver.store import Change, Store, Stored
from app.devcluster.clock import Clock

BATCH_SECONDS = 0.05
_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (resource, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_RESTART_GAP = 1000
"""A crash loses the versions after the last batch; none of them may be used again."""


class StateFile:
    """Call `load` before the first write, `attach` to follow the store, `close` at the end. A crash loses one batch at most."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self._dirty: dict[tuple[str, Key], Stored | None] = {}
        self._scheduled = False
        self._unsubscribe = _nothing

    def load(self, store: Store) -> bool:
        """Fill the store. False where the file is empty. Watches from a version before the start get 410."""
        row = self._db.execute("SELECT value FROM counters WHERE name = 'version'").fetchone()
        if row is None:
            return False
        known = {resource.id for resource in RESOURCES}
        for resource_id, body in self._db.execute("SELECT resource, body FROM objects"):
            if resource_id in known:
                store.load(by_id(resource_id), orjson.loads(body))
        store.rv = max(store.rv, int(row[0])) + _RESTART_GAP
        store.forget_history()
        return True

    def attach(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        for resource in RESOURCES:
            for stored in store.each(resource):
                self._dirty[resource.id, stored.key] = stored
        self.flush()
        self._unsubscribe = store.subscribe(self._notice)

    def close(self) -> None:
        self._unsubscribe()
        self.flush()
        self._db.close()

    def flush(self) -> None:
        """Write the changes since the last batch in one transaction."""
        self._scheduled = False
        changed, self._dirty = self._dirty, {}
        kept = [(rid, *key, stored.raw) for (rid, key), stored in changed.items() if stored is not None]
        gone = [(rid, *key) for (rid, key), stored in changed.items() if stored is None]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", kept)
        self._db.executemany("DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?", gone)
        self._db.execute("INSERT OR REPLACE INTO counters VALUES ('version', ?)", (self._store.rv,))
        self._db.execute("COMMIT")

    def _notice(self, change: Change) -> None:
        self._dirty[change.resource.id, change.key] = change.new
        if not self._scheduled:
            self._scheduled = True
            self._clock.call_later(BATCH_SECONDS, self._flush_if_due)

    def _flush_if_due(self) -> None:
        if self._scheduled:
            self.flush()


def _nothing() -> None:
    return
