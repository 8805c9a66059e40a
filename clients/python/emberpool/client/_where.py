"""Where the service is, and with which token: from arguments, else from the environment."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from emberpool.client.errors import Misconfigured

DEFAULT_URL: Final = "http://127.0.0.1:8080"
_COMMAND_SECONDS: Final = 60.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def find_url(url: str | None) -> str:
    """`url`, else EMBERPOOL_URL or EMBERPOOL_SERVER, else that of a service on this machine. Raises Misconfigured."""
    found = (
        url if url is not None else os.environ.get("EMBERPOOL_URL") or os.environ.get("EMBERPOOL_SERVER") or DEFAULT_URL
    )
    try:
        parts = urlsplit(found)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise Misconfigured(f"{found!r} is not an http or https URL such as {DEFAULT_URL}", argument="url")
    return found.rstrip("/")


def trusts_environment(url: str) -> bool:
    """Whether a proxy of the environment is for this address: not where it is this machine."""
    return urlsplit(url).hostname not in _LOOPBACK


def in_path(name: str) -> str:
    """The name as one part of a path: `?` and the like in it do not end it, which would name something else."""
    return quote(str(name), safe="")


class TokenSource:
    """Where the token is from: one of the arguments, else EMBERPOOL_API_TOKEN; else none is sent.

    A file, and a command that prints the token, are read again after a 401, as such tokens change.
    """

    def __init__(
        self, token: str | None, token_file: str | Path | None, token_command: str | Sequence[str] | None
    ) -> None:
        """A usage error (Misconfigured) if there is more than one."""
        if sum(each is not None for each in (token, token_file, token_command)) > 1:
            raise Misconfigured("give one of token, token_file and token_command")
        fixed = token_file is None and token_command is None
        self._token = (token if token is not None else os.environ.get("EMBERPOOL_API_TOKEN")) if fixed else None
        self._file = Path(token_file) if token_file is not None else None
        self._command = shlex.split(token_command) if isinstance(token_command, str) else token_command
        self.changes = not fixed

    def read(self) -> str | None:
        """The token. Raises Misconfigured."""
        found, whence = self._token, "the token"
        if self._file is not None:
            found, whence = self._from_file(self._file), f"the token in {self._file}"
        elif self._command is not None:
            found, whence = self._from_command(self._command), f"the token that {self._command[0]} printed"
        token = (found or "").strip()  # a file's last line ends with a line break
        if not (token.isascii() and token.isprintable()) or (self.changes and not token):
            raise Misconfigured(f"{whence} is not one line of printable ASCII")
        return token or None

    @staticmethod
    def _from_file(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"the token's file {path} cannot be read: {error}") from error

    @staticmethod
    def _from_command(command: Sequence[str]) -> str:
        try:
            done = subprocess.run(  # noqa: S603 - the caller's own command
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
            raise Misconfigured(f"the command for the token, {command[0]}, failed: {error}") from error
        if done.returncode:
            raise Misconfigured(
                f"the command for the token, {command[0]}, ended with {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout
