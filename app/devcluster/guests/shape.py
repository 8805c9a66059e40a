"""How large a guest is, and its networks: what a VMI asks for, as far as one machine can give it."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from app.devcluster.apiserver.quantities import Quantity, whole
from app.devcluster.apiserver.status import Json

MIB = 2**20
DEFAULT_MEMORY = 128 * MIB
_LEAST_MEMORY = 32 * MIB
_SSH = 22


@dataclass(frozen=True, slots=True)
class Size:
    """`notes` are sentences about what the guest gets instead of what it was to have."""

    memory: int
    cpus: int
    notes: tuple[str, ...]


def fit_size(spec: Json, most_memory: int, most_cpus: int = 0) -> Size:
    """The size of a guest: what its VMI says, but not more than `most_memory` bytes and `most_cpus` (default: this machine's)."""
    notes: list[str] = []
    asked = whole((spec["domain"].get("memory") or {}).get("guest") or 0) or most_memory
    memory = max(_LEAST_MEMORY, min(asked, most_memory)) // MIB * MIB
    if memory != asked:
        notes.append(f"The guest has {memory // MIB} MiB of memory instead of {_shown(asked)}: see --guest-memory.")
    wanted = count_cpus(spec)
    cpus = min(wanted, most_cpus or os.cpu_count() or 1)
    if cpus != wanted:
        notes.append(f"The guest has {cpus} of the {wanted} CPUs that it asks for: this machine has no more.")
    return Size(memory, cpus, tuple(notes))


def count_cpus(spec: Json) -> int:
    cpu = spec["domain"].get("cpu") or {}
    count = 1
    for name in ("cores", "sockets", "threads"):
        count *= int(cpu.get(name) or 1)
    return count


@dataclass(frozen=True, slots=True)
class Network:
    """One interface of a guest. `ports` (TCP, UDP) are those that answer on the guest's address."""

    name: str
    mac: str
    tcp: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()


def networks_of(vmi: Json) -> list[Network]:
    """The interfaces in the order of the spec. The first one has the SSH port, those the VMI names, and that of its probe."""
    found: list[Network] = []
    for number, item in enumerate(vmi["spec"]["domain"]["devices"].get("interfaces") or ()):
        mac = str(item.get("macAddress") or _random_mac()).lower().replace("-", ":")
        if number:
            found.append(Network(item["name"], mac))
            continue
        ports = list(_ports_of(item))
        tcp = [port for port, protocol in ports if protocol == "TCP"]
        udp = [port for port, protocol in ports if protocol == "UDP"]
        tcp = [_SSH, *tcp, *_probe_ports(vmi["spec"])]
        found.append(Network(item["name"], mac, tuple(dict.fromkeys(tcp)), tuple(dict.fromkeys(udp))))
    return found


def _ports_of(interface: Json) -> Iterator[tuple[int, str]]:
    for item in interface.get("ports") or ():
        yield int(item["port"]), str(item.get("protocol") or "TCP").upper()


def _probe_ports(spec: Json) -> list[int]:
    probe = spec.get("readinessProbe") or {}
    given = (str((probe.get(kind) or {}).get("port") or "") for kind in ("tcpSocket", "httpGet"))
    return [int(port) for port in given if port.isdecimal()]


def _random_mac() -> str:
    raw = uuid.uuid4().bytes
    return f"02:00:00:{raw[0]:02x}:{raw[1]:02x}:{raw[2]:02x}"


def _shown(size: int) -> str:
    return str(Quantity.parse(f"{size // MIB}Mi"))
