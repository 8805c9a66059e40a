"""What VMs write to their serial consoles."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class ConsoleGateway(Protocol):
    """The cluster collects what a VM writes to its first serial console, from its boot on, for as long as its instance exists."""

    def open(
        self, *, vm: str, instance: str, lines: int, follow: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The last `lines` of the console in pieces as they come; with `follow` also what is written until the guest ends.

        `instance` is the UID of what runs the VM. The pieces are the guest's bytes, and may end anywhere. The cluster is read as
        slowly as the pieces are. Raises NoConsoleLog if there is none (yet, or any more), and while it is read ClusterUnavailable
        where the connection breaks or, without `follow`, is silent.
        """
        ...
