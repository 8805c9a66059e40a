"""One file over HTTP: streamed to disk, bounded, and gone on with where it broke off if the server allows that."""

import asyncio
import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import httpx

from app.devcluster.guests.images.errors import FetchFailed

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there, and how many there will be; None if the server does not tell."""

_CHUNK: Final = 1024 * 1024
_TRIES: Final = 10
_TIMEOUT: Final = httpx.Timeout(60.0)
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one image. `pause_seconds` is the wait before the second try; each later one waits that much longer."""

    bytes: int = 64 * 1024**3
    pause_seconds: float = 0.5


class NotModified(Exception):
    """The server has what the caller has."""


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server says of a file's version; empty where it says nothing."""

    etag: str = ""
    last_modified: str = ""

    @classmethod
    def of(cls, response: httpx.Response) -> "Validators":
        return cls(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))

    @property
    def strong(self) -> str:
        """What may stand in If-Range (RFC 9110, 13.1.5): a weak ETag may not."""
        return self.last_modified if self.etag.startswith("W/") else self.etag or self.last_modified

    def conditions(self) -> dict[str, str]:
        """Headers that ask for the file only if it is another version."""
        pairs = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in pairs.items() if value}


def http_client() -> httpx.AsyncClient:
    """A client that follows redirects and takes files as they are: a server's own compression would hide where to go on."""
    return httpx.AsyncClient(follow_redirects=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"})


class Download:
    """One file on its way to `target`. `source` names the kind of source in errors: http or registry."""

    def __init__(
        self, client: httpx.AsyncClient, url: str, target: Path, *, limits: Limits, source: str = "http"
    ) -> None:
        self._client = client
        self._url = url
        self._target = target
        self._limits = limits
        self._source = source
        self._done = 0
        self.validators = Validators()

    async def run(
        self, on_progress: Progress, *, headers: Mapping[str, str] | None = None, unless: Validators | None = None
    ) -> None:
        """Fetch it whole. Raises FetchFailed, or NotModified if the server still has the version `unless`."""
        first = {**(headers or {}), **(unless.conditions() if unless else {})}
        with self._target.open("wb") as file:
            for attempt in range(1, _TRIES + 1):
                try:
                    return await self._attempt(file, first if attempt == 1 else dict(headers or {}), on_progress)
                except (httpx.TransportError, httpx.TooManyRedirects) as error:
                    if attempt == _TRIES or not self.validators.strong:
                        raise self._broken(error) from error
                except OSError as error:
                    raise _not_written(error) from error
                await asyncio.sleep(self._limits.pause_seconds * attempt)
        raise AssertionError  # the last try returns or raises

    async def _attempt(self, file: BinaryIO, headers: dict[str, str], on_progress: Progress) -> None:
        if self._done:
            headers |= {"Range": f"bytes={self._done}-", "If-Range": self.validators.strong}
        async with self._client.stream("GET", self._url, headers=headers) as response:
            self._begin(file, response)
            total = self._total(response)
            on_progress(self._done, total)
            async for chunk in response.aiter_raw(_CHUNK):
                self._done += len(chunk)
                self._check_size(self._done)
                await asyncio.to_thread(file.write, chunk)
                on_progress(self._done, total)
            await asyncio.to_thread(file.flush)

    def _begin(self, file: BinaryIO, response: httpx.Response) -> None:
        """Set where the answer's bytes belong. Raises FetchFailed if it is no answer with a file."""
        status = response.status_code
        if status == httpx.codes.NOT_MODIFIED:
            raise NotModified
        if status == httpx.codes.PARTIAL_CONTENT and self._done and _range_start(response) == self._done:
            return
        if status != httpx.codes.OK:
            raise FetchFailed(
                f"Unable to connect to {self._source} data source: expected status code 200, got {status}. "
                f"Status: {status} {response.reason_phrase}. URL: {response.url}"
            )
        _check_content_type(response)
        self.validators = Validators.of(response)
        self._done = 0
        file.seek(0)
        file.truncate()

    def _total(self, response: httpx.Response) -> int | None:
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal():
            return None
        self._check_size(self._done + int(length))
        return self._done + int(length)

    def _check_size(self, size: int) -> None:
        if size > self._limits.bytes:
            raise FetchFailed(
                f"{self._url} is larger than the {self._limits.bytes} bytes that an image may have here.", no_space=True
            )

    def _broken(self, error: Exception) -> FetchFailed:
        reason = str(error) or type(error).__name__
        if not self._done:
            return FetchFailed(
                f"Unable to connect to {self._source} data source: HTTP request errored: {reason}. URL: {self._url}"
            )
        return FetchFailed(
            f"Unable to transfer source data to target file: the connection to {self._url} broke after {self._done} bytes: {reason}."
        )


def _range_start(response: httpx.Response) -> int | None:
    match = _RANGE.match(response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _check_content_type(response: httpx.Response) -> None:
    """A page instead of an image is what a login or an error with status 200 gives; CDI warns of it and imports the page."""
    kind = response.headers.get("Content-Type", "")
    if kind.startswith(("text/html", "application/xhtml")):
        raise FetchFailed(
            f"Unexpected content type '{kind}'. Content might not be a KubeVirt image. "
            f"URL: {response.url}{' (after a redirect)' if response.history else ''}"
        )


def _not_written(error: OSError) -> FetchFailed:
    reason = "no space left on device" if error.errno in _FULL else error.strerror
    return FetchFailed(f"Unable to transfer source data to target file: {reason}.", no_space=error.errno in _FULL)
