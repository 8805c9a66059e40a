"""Where a guest's ports answer on this host.

On Linux all of 127.0.0.0/8 is this host: each machine gets an address of its own there, and its ports are the guest's own where an
ordinary user may listen on them. Elsewhere the address is 127.0.0.1, and the ports are free ones.
"""

import ipaddress
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from app.devcluster.guests.qemu.errors import NoRoom
from app.devcluster.guests.qemu.plan import Nic, Port

_PRIVILEGED: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_SHIFTED: Final = {22: 2222}
_SHIFT: Final = 8000
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class Endpoint:
    guest_port: int
    protocol: Literal["tcp", "udp"]
    host: str
    port: int


class Addresses:
    """Gives each machine an address that no other machine and no other program listens on."""

    def __init__(self, *, own: bool = sys.platform == "linux") -> None:
        self._own = own
        # Another dev cluster on this host begins elsewhere: at one of 32,768 networks in 127.128.0.0/9.
        self._numbers = _count_from((127 << 24) + (1 << 23) + (secrets.randbelow(1 << 15) << 8))
        self._first_unprivileged = first_unprivileged_port()

    def take(self, nics: Sequence[Nic]) -> tuple[tuple[Endpoint, ...], ...]:
        """For each NIC the endpoints of its ports. Raises NoRoom."""
        for _ in range(1024):
            host = str(ipaddress.IPv4Address(next(self._numbers))) if self._own else _LOOPBACK
            try:
                return tuple(tuple(self._endpoint(host, port) for port in nic.ports) for nic in nics)
            except OSError:
                if not self._own:
                    break
        raise NoRoom(
            "No address for another guest: on each that was tried another program listens. End the programs that listen on 127.128.0.0/9."
        )

    def _endpoint(self, host: str, port: Port) -> Endpoint:
        wanted = host_port(port.guest, self._first_unprivileged) if self._own else 0
        kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as probe:
            if port.protocol == "tcp":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, wanted))
            return Endpoint(port.guest, port.protocol, host, probe.getsockname()[1])


def host_port(guest_port: int, first_unprivileged: int) -> int:
    """The guest's own port where an ordinary user may listen on it; else 2222 for 22, and 8000 more for the others."""
    return guest_port if guest_port >= first_unprivileged else _SHIFTED.get(guest_port, guest_port + _SHIFT)


def first_unprivileged_port() -> int:
    with suppress(OSError, ValueError):
        return int(_PRIVILEGED.read_text(encoding="utf-8"))
    return 1024


def _count_from(network: int) -> Iterator[int]:
    """Addresses from the first of a network of 256 on, round 127.128.0.0/9, without those that end in 0 or 255."""
    first, size = (127 << 24) + (1 << 23), 1 << 23
    offset = network - first
    while True:
        offset = (offset + 1) % size
        if offset % 256 not in {0, 255}:
            yield first + offset
