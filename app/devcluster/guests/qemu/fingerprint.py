"""What kept memory is tied to.

QEMU loads the memory of another machine without complaint, and the guest then fails in ways that nobody can explain: another
device, processor or kernel is not noticed. So what made the machine is written beside the memory, and compared before anything starts.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from app.devcluster.guests.qemu.command import device_words, neutral
from app.devcluster.guests.qemu.detect import Found
from app.devcluster.guests.qemu.plan import KernelBoot, MachinePlan

Parts = Mapping[str, str]


def fingerprint_parts(plan: MachinePlan, found: Found) -> dict[str, str]:
    """What is compared, each under the words that a person reads in the refusal. Reads the boot files: call it off the event loop."""
    plain, wiring = neutral(plan)
    boot = plan.boot
    files = (
        {"kernel": boot.kernel, "initramfs": boot.initrd} if isinstance(boot, KernelBoot) else {"firmware": boot.code}
    )
    return {
        "QEMU": found.text,
        "host processor": _host_cpu() if found.acceleration == "kvm" else platform.machine(),
        "machine": "\n".join(_options(device_words(plain, found, wiring))),
        **{name: _digest_of(path) for name, path in files.items() if path is not None},
    }


def fingerprint_text(parts: Parts) -> str:
    """Short, and equal exactly when all parts are."""
    digest = hashlib.sha256("\0".join(f"{name}\0{parts[name]}" for name in sorted(parts)).encode())
    return f"qemu:{digest.hexdigest()[:40]}"


def difference(kept: Parts, here: Parts) -> str:
    """The first part that is not the same, as the end of a sentence; empty: all are."""
    for name in sorted({*kept, *here}):
        then, now = kept.get(name, ""), here.get(name, "")
        if then != now:
            return f"the {name} is another one: {_shown(then, now)} then, {_shown(now, then)} now"
    return ""


def _options(words: Sequence[str]) -> list[str]:
    """Each option with its value."""
    options: list[str] = []
    for word in words:
        if word.startswith("-"):
            options.append(word)
        else:
            options[-1] += f" {word}"
    return options


def _shown(text: str, other: str) -> str:
    """The options of a command line that the other does not have; all of a short text."""
    if "\n" not in text + other:
        return text or "none"
    theirs = other.split("\n")
    return " ".join(option for option in text.split("\n") if option not in theirs) or "nothing in its place"


def _digest_of(path: Path) -> str:
    found = path.stat()
    return _digest(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, *_identity: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]


def _host_cpu() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
        told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        flags = hashlib.sha256(told.get("flags", "").encode()).hexdigest()[:12]
        return f"{told.get('model name', platform.machine())} with the features {flags}"
    return platform.machine()
