"""What a clone of a machine's memory needs before it may be used: everything that must not be the same in two machines, set in one step.

A clone wakes up as its original: its random numbers, clock, names, keys and hardware address are those of the moment in which the memory
was kept. Random numbers repeat until the kernel's generator is given entropy *and* told to reseed (random(4): RNDADDENTROPY,
RNDRESEEDCRNG); writing to /dev/urandom does neither at once. A new hardware address is announced by the kernel itself (arp_notify), for
otherwise the network sends to the old one for seconds.
"""

import os
import secrets
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from app.devcluster.guests.images import system_calls as calls

HELPER_PATH: Final = "/sbin/become"
"""Where the built-in guest has the program (system_calls.helper()) that runs a list made here."""

ENTROPY_BYTES: Final = 64
RELOAD_SSH: Final = (
    "rm -f $(ls /etc/ssh/ssh_host_*_key* | grep -v ed25519); "
    "systemctl reload ssh 2>/dev/null || systemctl reload sshd 2>/dev/null || kill -HUP $(cat /run/sshd.pid)"
)
"""For `/bin/sh -c` in a clone of another Linux guest, after its identity is set: its SSH server read the old keys long ago. The built-in
guest starts one for each connection and does not need it."""

_HOST_KEY: Final = "/etc/ssh/ssh_host_ed25519_key"
_ADD_ENTROPY: Final = 0x4008_5203
_RESEED: Final = 0x5207
_SET_HARDWARE_ADDRESS: Final = 0x8924
_REALTIME: Final = 0
_INTERNET, _DATAGRAM, _ETHERNET = 2, 2, 1


@dataclass(frozen=True, slots=True)
class HostKey:
    """The key that a guest's SSH server shows: the private file's text, and the public line that `known_hosts` wants."""

    private: str
    public: str


@dataclass(frozen=True, slots=True)
class Identity:
    """`mac` is None where the clone keeps its original's address; `interface` is the guest's name of the card that gets it."""

    hostname: str
    machine_id: str
    host_key: HostKey
    mac: str | None = None
    interface: str = "eth0"


def new_identity(hostname: str, *, mac: str | None = None, interface: str = "eth0") -> Identity:
    """An identity that no other machine has: a machine-id of 32 hexadecimal digits, and a host key, both made at random."""
    return Identity(hostname, secrets.token_hex(16), new_host_key(), mac, interface)


def new_host_key() -> HostKey:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return HostKey(private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())


def calls_to_become(identity: Identity, *, now: float, entropy: bytes | None = None) -> calls.CallList:
    """What `HELPER_PATH` must read to make a guest this machine.

    `now` is the time in seconds since 1970, taken as late as possible. `entropy` is `ENTROPY_BYTES` from the host's generator by default.
    """
    todo = calls.CallList()
    _reseed(todo, entropy or os.urandom(ENTROPY_BYTES))
    _set_clock(todo, now)
    _set_name(todo, identity.hostname)
    todo.step("write its machine-id")
    todo.write_file("/etc/machine-id", f"{identity.machine_id}\n".encode())
    todo.step("write its host key")
    todo.write_file(_HOST_KEY, identity.host_key.private.encode(), mode=0o600)
    todo.write_file(f"{_HOST_KEY}.pub", f"{identity.host_key.public}\n".encode())
    if identity.mac is not None:
        _set_hardware_address(todo, identity.interface, identity.mac)
    return todo


def _reseed(todo: calls.CallList, entropy: bytes) -> None:
    todo.step("renew its random numbers")
    pool_info = struct.pack("<ii", len(entropy) * 8, len(entropy)) + entropy
    todo.try_call(calls.CLOSE, calls.FIRST_FREE)
    todo.call(calls.OPEN, b"/dev/urandom\0", os.O_WRONLY, 0)
    todo.call(calls.IOCTL, calls.FIRST_FREE, _ADD_ENTROPY, pool_info)
    todo.call(calls.IOCTL, calls.FIRST_FREE, _RESEED, 0)
    todo.call(calls.CLOSE, calls.FIRST_FREE)


def _set_clock(todo: calls.CallList, now: float) -> None:
    todo.step("set its clock")
    seconds = int(now)
    nanoseconds = int((now - seconds) * 1_000_000_000)
    todo.call(calls.CLOCK_SETTIME, _REALTIME, struct.pack("<qq", seconds, nanoseconds))


def _set_name(todo: calls.CallList, hostname: str) -> None:
    todo.step("set its name")
    name = hostname.encode()
    todo.call(calls.SETHOSTNAME, name, len(name))
    todo.write_file("/etc/hostname", name + b"\n")
    todo.write_file("/etc/hosts", b"127.0.0.1 localhost\n127.0.1.1 " + name + b"\n")


def _set_hardware_address(todo: calls.CallList, interface: str, mac: str) -> None:
    todo.step("set its hardware address")
    name, announce = interface.encode(), f"/proc/sys/net/ipv4/conf/{interface}/arp_notify"
    todo.write_file(announce, b"1\n", flags=os.O_WRONLY)
    request = (
        name.ljust(16, b"\0") + struct.pack("<H", _ETHERNET) + bytes.fromhex(mac.replace(":", "")).ljust(22, b"\0")
    )
    todo.try_call(calls.CLOSE, calls.FIRST_FREE)
    todo.call(calls.SOCKET, _INTERNET, _DATAGRAM, 0)
    todo.call(calls.IOCTL, calls.FIRST_FREE, _SET_HARDWARE_ADDRESS, request)
    todo.call(calls.CLOSE, calls.FIRST_FREE)
