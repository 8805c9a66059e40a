"""`python -I supervisor.py FOLDER...`: the process that owns all QEMU processes, and ends them when our process ends.

Its standard input is one end of a socket pair. Our process writes orders to the other end and reads what became of them; both
are lines of JSON. However our process dies, the system closes its end: then all guests are killed, FOLDER... are removed, and this
process ends. If this process itself is killed, Linux kills the guests (PR_SET_PDEATHSIG, which follows the thread that
forked: there is only one here), and elsewhere our process does, which sees its end of the pair close.

An order is {"launch": NAME, ...} with the fields of `Launch` and as many open files as `files` says, or {"kill": NAME}.
The answers are {"launched": NAME, "pid": N}, {"refused": NAME, "reason": TEXT} and {"ended": NAME, "code": N}, N < 0 for a signal.

Run as a file, without the package: it starts within 30 ms, and forks quickly because it is small. So it imports the standard library only.
"""

import ctypes
import json
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypedDict

FILES_AT_ONCE: Final = 64
FILE_MARK: Final = "@file{}@"  # in a command: the number that the open file has in the new process
_PR_SET_PDEATHSIG: Final = 1
_PASSED_ON: Final = ("PATH", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")


class Launch(TypedDict):
    launch: str
    command: list[str]
    files: int
    """How many open files come with the order."""
    folder: str
    """The working directory."""
    errors: str
    """Where standard output and error go."""
    user: int | None
    """The user and group to run as; None: ours."""
    groups: list[int]
    limits: dict[str, int]
    """RLIMIT names and values."""


class Supervisor:
    def __init__(self, channel: socket.socket, folders: Sequence[str]) -> None:
        self._channel = channel
        self._folders = folders
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._unread = b""
        self._files: list[int] = []

    def run(self, wakeup: socket.socket) -> None:
        """Returns when the other end is closed, or on SIGTERM."""
        with selectors.DefaultSelector() as ready:
            ready.register(self._channel, selectors.EVENT_READ, self._read)
            ready.register(wakeup, selectors.EVENT_READ, lambda: _is_none_to_stop(wakeup))
            goes_on = True
            while goes_on:
                goes_on = all(key.data() for key, _ in ready.select())
                self._reap()

    def end(self) -> None:
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.wait()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self) -> bool:
        try:
            data, files, _, _ = socket.recv_fds(self._channel, 65536, FILES_AT_ONCE)
        except OSError:
            return False
        self._files += files
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))
        return bool(data)

    def _obey(self, order: dict[str, Any]) -> None:
        if "kill" in order:
            child = self._children.get(order["kill"])
            if child is not None:
                child.kill()
            return
        files, self._files = self._files[: order["files"]], self._files[order["files"] :]
        name = order["launch"]
        try:
            child = self._children[name] = _launch(order, files)  # type: ignore[arg-type]  # the other side is ours
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            self._tell({"refused": name, "reason": str(error)})
        else:
            self._tell({"launched": name, "pid": child.pid})
        finally:
            for file in files:
                os.close(file)

    def _reap(self) -> None:
        for name, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[name]
                self._tell({"ended": name, "code": child.returncode})

    def _tell(self, answer: dict[str, Any]) -> None:
        with suppress(OSError):  # nobody listens any more: the next read says so
            self._channel.sendall(json.dumps(answer).encode() + b"\n")


def _launch(order: Launch, files: Sequence[int]) -> subprocess.Popen[bytes]:
    command = list(order["command"])
    for place, file in enumerate(files):
        command = [word.replace(FILE_MARK.format(place), str(file)) for word in command]
    as_user: dict[str, Any] = {}
    if order["user"] is not None:
        as_user = {"user": order["user"], "group": order["user"], "extra_groups": order["groups"]}
    with open(order["errors"], "wb") as errors:  # noqa: PTH123 - pathlib would be the largest import here
        return subprocess.Popen(  # noqa: S603 - the command is our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=files,
            cwd=order["folder"],
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            start_new_session=True,
            preexec_fn=_confinement(order["limits"]),  # noqa: PLW1509 - one thread, so no lock can be held over the fork
            **as_user,
        )


def _confinement(limits: dict[str, int]) -> Callable[[], None]:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()

    def confine() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)  # it died before the line above
        for name, value in limits.items():
            number = getattr(resource, name)
            hard = resource.getrlimit(number)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (bound, bound))

    return confine


def _is_none_to_stop(wakeup: socket.socket) -> bool:
    """Takes the numbers of the signals that arrived."""
    return signal.SIGTERM not in wakeup.recv(4096)


def main() -> None:
    channel = socket.socket(fileno=os.dup(0))
    here, there = socket.socketpair()
    there.setblocking(False)
    signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # it only wakes the loop
    supervisor = Supervisor(channel, sys.argv[1:])
    try:
        supervisor.run(here)
    finally:
        supervisor.end()


if __name__ == "__main__":
    main()
