"""The data folder of `emberpool up`: its place, its content, and its lock, which one process at a time holds.

<folder>/lock        locked while a process uses the folder; contains that process's id
<folder>/postgres/   the database
<folder>/handover-key  the key that encrypts what claims hand over, readable for its owner alone
<folder>/cluster/    the dev cluster's objects, and the kubeconfig that reaches it
<folder>/guests/     the disks and logs of real guests, if the dev cluster runs some
"""

import base64
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from app.config import KEY_BYTES
from app.errors import EmberpoolError


class EmbeddedError(EmberpoolError):
    """An embedded part cannot run. The message is for the person at the terminal."""

    code = "embedded-failed"
    title = "An embedded part cannot run"


class FolderInUse(EmbeddedError):
    code = "folder-in-use"
    title = "Another process uses the data folder"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder that this process has locked. Only `lock_folder` creates one, so that having it means holding the lock."""

    path: Path

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def cluster(self) -> Path:
        return self.path / "cluster"

    @property
    def guests(self) -> Path:
        return self.path / "guests"

    def handover_key(self) -> SecretStr:
        """The key that encrypts what claims hand over, made at the first start and kept with the data."""
        path = self.path / "handover-key"
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as made:
                made.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode())
        return SecretStr(path.read_text(encoding="ascii"))


@contextmanager
def lock_folder(path: Path) -> Iterator[DataFolder]:
    """Creates the folder if it is missing, and locks it until the block ends or this process dies.

    Raises FolderInUse if another process has locked it, and EmbeddedError if it cannot be created.
    """
    path = path.expanduser().resolve()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (path / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise EmbeddedError(
            f"The data folder {path} cannot be created: {error.strerror}. Choose another one with --data-dir."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise FolderInUse(
                f"The data folder {path} is in use by process {holder}. Stop that process, or choose another folder with --data-dir."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield DataFolder(path)


def kubeconfig_in(path: Path) -> Path:
    """The kubeconfig of the dev cluster of a data folder, whoever has locked it."""
    return path / "cluster" / "kubeconfig"


def read_tail(log: Path) -> str:
    """The last ten lines of a log; empty if there is none."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]) if log.exists() else ""


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_DATA_HOME/emberpool` (`~/.local/share/emberpool`), and for root `/var/lib/emberpool`.

    Postgres refuses to run as root. For root it runs as a separate system user, which must be able to enter every folder above
    its data. Every user can already enter `/var/lib`; root's home would have to be opened.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/emberpool")
    home = environment.get("XDG_DATA_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "share") / "emberpool"
