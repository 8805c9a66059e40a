"""What a VM writes to its serial console."""

from collections.abc import Iterator
from typing import Final

import httpx

from emberpool.client._answers import describe_failure, read_answer
from emberpool.client._sync.events import Events
from emberpool.client._sync.transport import TIMEOUT_SECONDS
from emberpool.client._where import in_path

_FOLLOWED: Final = httpx.Timeout(TIMEOUT_SECONDS, read=None)
"""A guest may be silent for as long as it likes."""


class Consoles(Events):
    """Adds `read_console` to the operations."""

    def read_console(self, vm_id: str, *, lines: int = 1000, follow: bool = False) -> Iterator[bytes]:
        """The last `lines` of the VM's console log, piece by piece; with `follow` also what comes, until the VM ends.

        It is not opened again where it breaks: what has come would come twice. Raises Unreachable, Refused.
        """
        asked = {"lines": lines, "follow": "true" if follow else "false"}
        path = f"/v1/vms/{in_path(vm_id)}/console"
        try:
            with self.http.stream(
                "GET", path, params=asked, timeout=_FOLLOWED if follow else TIMEOUT_SECONDS
            ) as answer:
                if answer.is_error:
                    answer.read()
                    read_answer(self.url, answer)
                for piece in answer.iter_bytes():
                    yield piece
        except httpx.TransportError as error:
            raise describe_failure(self.url, error) from error
