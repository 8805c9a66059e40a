"""Which QEMU there is, and how it runs guests: with KVM where that truly works, else by emulation (TCG)."""

import asyncio
import os
import re
import shutil
import stat
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from app.devcluster.guests.qemu.errors import MachinesUnavailable

Acceleration = Literal["kvm", "tcg"]

OLDEST: Final = (7, 2)
SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_INSTALL: Final = (
    "Debian and Ubuntu: apt-get install qemu-system-x86 qemu-utils; Fedora: dnf install qemu-system-x86-core qemu-img; "
    "macOS: brew install qemu"
)
_PROBE_SECONDS: Final = 60
_KVM: Final = Path("/dev/kvm")

# The whole firmware of the probe guest: at the processor's first instruction, `mov al, 42; out 0xf4, al; hlt`. The device at 0xf4
# (isa-debug-exit) then ends QEMU with 42 * 2 + 1.
_ROM: Final = bytes(65536 - 16) + bytes.fromhex("b02ae6f4f4").ljust(16, b"\0")
_RAN: Final = 85


@dataclass(frozen=True)
class Found:
    """A QEMU that has run a guest."""

    binary: str
    version: tuple[int, ...]
    text: str
    """Its version as it tells it, the distribution's build included."""
    acceleration: Acceleration
    reason: str
    """Why this acceleration, in a sentence."""
    sandbox: bool
    """Whether this QEMU can be confined by seccomp."""


async def probe_machines(binary: str | None = None) -> Found:
    """Boots a guest of five bytes, with KVM where the processor has it. Raises MachinesUnavailable."""
    program = shutil.which(binary or "qemu-system-x86_64")
    if program is None:
        raise MachinesUnavailable(f"There is no {binary or 'qemu-system-x86_64'} here. {_INSTALL}.")
    text = await _version_text(program)
    version = read_version(text)
    if version < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise MachinesUnavailable(
            f"{program} is too old: {text or 'it tells no version'}; {wanted} or newer is needed. {_INSTALL}."
        )
    sandbox = sys.platform == "linux" and not await _probe(program, "tcg", sandbox=True)
    if not sandbox and (failure := await _probe(program, "tcg", sandbox=False)):
        raise MachinesUnavailable(f"{program} ({text}) runs no guest: {failure}. Install it anew. {_INSTALL}.")
    acceleration, reason = await _choose(program, sandbox=sandbox)
    return Found(program, version, text, acceleration, reason, sandbox)


def read_version(text: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version's text; empty if there are none."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def kvm_problem(cpu_flags: Sequence[str]) -> str:
    """Why KVM is not even worth a try, in a sentence; empty: it is."""
    if not {"vmx", "svm"} & set(cpu_flags):
        return "This processor offers no virtualisation (neither vmx nor svm), so guests are emulated (TCG), several times slower than with KVM."
    if not _KVM.exists():
        return "There is no /dev/kvm (modprobe kvm_intel or kvm_amd), so guests are emulated (TCG), several times slower than with KVM."
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened by this user (join the group kvm), so guests are emulated (TCG), several times slower than with KVM."
    return ""


def kvm_groups() -> list[int]:
    """The group that may open /dev/kvm, for guests that run as another user."""
    try:
        found = _KVM.stat()
    except OSError:
        return []
    return [found.st_gid] if found.st_mode & stat.S_IRGRP and found.st_gid else []


async def _choose(program: str, *, sandbox: bool) -> tuple[Acceleration, str]:
    problem = kvm_problem(_cpu_flags())
    if problem:
        return "tcg", problem
    failure = await _probe(program, "kvm", sandbox=sandbox)
    if failure:
        return "tcg", f"/dev/kvm opens, but a guest does not run with it ({failure}), so guests are emulated (TCG)."
    return "kvm", "Guests run with KVM."


async def _version_text(program: str) -> str:
    process = await asyncio.create_subprocess_exec(program, "--version", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    out, _ = await process.communicate()
    return out.decode(errors="replace").partition("\n")[0].removeprefix("QEMU emulator version ").strip()


async def _probe(program: str, acceleration: Acceleration, *, sandbox: bool) -> str:
    """Empty when the guest ran, else what QEMU said."""
    with tempfile.NamedTemporaryFile(prefix="probe-rom-") as rom:
        rom.write(_ROM)
        rom.flush()
        process = await asyncio.create_subprocess_exec(
            *(
                program,
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-m",
                "16M",
                "-bios",
                rom.name,
            ),
            *("-M", "q35", "-accel", acceleration, "-cpu", "host" if acceleration == "kvm" else "qemu64"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
            *(("-sandbox", SANDBOX) if sandbox else ()),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
        )
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                _, said = await process.communicate()
        except TimeoutError:
            return f"the probe guest did not end within {_PROBE_SECONDS} s"
        finally:
            with suppress(ProcessLookupError):
                process.kill()
    if process.returncode == _RAN:
        return ""
    return said.decode(errors="replace").strip().rpartition("\n")[2] or f"it ended with {process.returncode}"


def _cpu_flags() -> list[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return line.partition(":")[2].split()
    return []
