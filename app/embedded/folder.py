"""The data folder of `emberpool up`: where it is, what is in it, and that one process at a time has it.

<folder>/lock        held while a process uses the folder; its text is that process's id
<folder>/postgres/   the database
<folder>/cluster/    the dev cluster's objects, and the kubeconfig that reaches it
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.errors import EmberpoolError


class EmbeddedError(EmberpoolError):
    """A part of the embedded default cannot run; the sentence is for the person at the terminal."""

    code = "embedded-failed"
    title = "The embedded default cannot run"


class FolderInUse(EmbeddedError):
    code = "folder-in-use"
    title = "Another process has the data folder"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder that this process holds. Made by `hold_folder` alone, so that having one means having the lock."""

    path: Path

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def cluster(self) -> Path:
        return self.path / "cluster"


@contextmanager
def hold_folder(path: Path) -> Iterator[DataFolder]:
    """Make the folder where it is missing, and hold it until the block ends or this process dies, however it dies.

    Raises FolderInUse while another process holds it, and EmbeddedError where it cannot be made.
    """
    path = path.expanduser().resolve()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (path / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise EmbeddedError(
            f"The data folder {path} cannot be made: {error.strerror}. Give another one with --data-dir."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise FolderInUse(
                f"The data folder {path} is in use by process {holder}. Stop that one, or give another folder with --data-dir."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield DataFolder(path)


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_DATA_HOME/emberpool` (`~/.local/share/emberpool`), and for root `/var/lib/emberpool`.

    Postgres refuses to run as root, so there it runs as a system user of its own, which must be able to enter every
    folder above its data. Under `/var/lib` everyone can already; root's home would have to be opened.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/emberpool")
    home = environment.get("XDG_DATA_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "share") / "emberpool"
