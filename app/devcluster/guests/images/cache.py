"""Folders of files that took time to make, each shown whole or not at all. Processes that use one cache at once do not disturb each other."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_DAY: Final = 86_400.0
_MAKING: Final = ".making-"
FACTS: Final = "facts.json"


def default_cache() -> Path:
    """The user's cache folder for this program, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "emberpool"


@dataclass(slots=True)
class Making:
    """An entry that is being made: who fills `folder` sets `key` when its content is known to be whole."""

    folder: Path
    key: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Cache:
    """Entries are folders named by their keys; each has its facts in a file beside its content."""

    def __init__(self, folder: Path, *, keep_days: float = 30.0) -> None:
        self._folder = folder
        self._keep_seconds = keep_days * _DAY

    def entry(self, key: str) -> Path | None:
        """The entry, marked as used now."""
        path = self._folder / key
        if not (path / FACTS).is_file():
            return None
        os.utime(path)
        return path

    def entries(self) -> list[Path]:
        """All entries, the one that was used last first."""
        found = [path.parent for path in self._folder.glob(f"*/{FACTS}") if not path.parent.name.startswith(".")]
        return sorted(found, key=_used, reverse=True)

    @contextmanager
    def making(self) -> Iterator[Making]:
        """A folder to fill. It becomes the entry of its `key` at the end; without a key, or after an error, it is removed.

        If another process made the same entry meanwhile, that one stays.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_old()
        making = Making(Path(tempfile.mkdtemp(prefix=_MAKING, dir=self._folder)))
        try:
            yield making
            if making.key:
                (making.folder / FACTS).write_text(json.dumps(making.facts, indent=1))
                making.folder.chmod(0o755)
                _rename_unless_there(making.folder, self._folder / making.key)
        finally:
            shutil.rmtree(making.folder, ignore_errors=True)

    def _remove_old(self) -> None:
        """Entries that nobody used for long, and what killed processes were making."""
        now = time.time()
        for path in self._folder.iterdir():
            limit = _DAY if path.name.startswith(_MAKING) else self._keep_seconds
            if path.is_dir() and now - _used(path) > limit:
                shutil.rmtree(path, ignore_errors=True)


def facts_of(entry: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((entry / FACTS).read_text())
    return facts


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0


def _rename_unless_there(making: Path, entry: Path) -> None:
    try:
        making.rename(entry)
    except OSError:
        if not (entry / FACTS).is_file():
            raise
