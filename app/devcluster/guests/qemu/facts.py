"""What a guest tells about itself through its agent."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.devcluster.guests.qemu.agent import GuestAgent
from app.devcluster.guests.qemu.errors import GuestRefused


@dataclass(frozen=True)
class GuestOs:
    """In the words of os-release; empty where the guest has none."""

    id: str
    name: str
    pretty_name: str
    version: str
    version_id: str
    kernel_release: str
    kernel_version: str
    machine: str


@dataclass(frozen=True)
class Interface:
    name: str
    mac: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    os: GuestOs
    interfaces: tuple[Interface, ...]
    """Without the loopback."""
    hostname: str


async def ask_facts(agent: GuestAgent) -> Facts:
    """Raises AgentSilent. What the guest refuses to tell is empty."""
    return Facts(
        read_os(await _ask(agent, "guest-get-osinfo") or {}),
        read_interfaces(await _ask(agent, "guest-network-get-interfaces") or []),
        str((await _ask(agent, "guest-get-host-name") or {}).get("host-name", "")),
    )


async def _ask(agent: GuestAgent, command: str) -> Any:
    with suppress(GuestRefused):
        return await agent.call(command)
    return None


def read_os(told: Mapping[str, Any]) -> GuestOs:
    keys = ("id", "name", "pretty-name", "version", "version-id", "kernel-release", "kernel-version", "machine")
    return GuestOs(*(str(told.get(key, "")) for key in keys))


def read_interfaces(told: Sequence[Mapping[str, Any]]) -> tuple[Interface, ...]:
    return tuple(_interface(one) for one in told if one.get("name") != "lo")


def _interface(told: Mapping[str, Any]) -> Interface:
    addresses = told.get("ip-addresses", [])
    of_kind = {
        kind: tuple(str(one["ip-address"]) for one in addresses if one.get("ip-address-type") == kind)
        for kind in ("ipv4", "ipv6")
    }
    return Interface(
        str(told.get("name", "")), str(told.get("hardware-address", "")).lower(), of_kind["ipv4"], of_kind["ipv6"]
    )
