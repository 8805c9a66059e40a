"""The built-in guest: a small Linux that boots in seconds, with an SSH server and QEMU's guest agent.

It is made on the user's machine from packages that the host's own package manager fetches and checks. So nothing of others is in our
repository, and no mirror's address either. What it costs is one download of some 40 MB; after that it comes from the cache.
"""

import asyncio
import hashlib
import platform
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.devcluster.guests.images import initramfs
from app.devcluster.guests.images.apt import Apt, Package
from app.devcluster.guests.images.cache import Cache, default_cache, facts_of
from app.devcluster.guests.images.errors import GuestUnavailable, PackagesUnavailable

APPEND: Final = (
    "console=ttyS0 quiet panic=-1 net.ifnames=0 tsc=reliable no_timer_check mitigations=off cryptomgr.notests random.trust_cpu=on "
    "rcupdate.rcu_expedited=1 i8042.noaux i8042.nokbd 8250.nr_uarts=1 ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off:10.0.2.3"
)
"""The kernel's arguments. The address is the one that QEMU's user network gives its only guest: a boot without DHCP is faster."""

_KERNELS: Final = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64")
_OTHERS: Final = ("busybox-static", "qemu-guest-agent", "openssh-server", "openssh-client", "e2fsprogs")
_FOLLOWED: Final = re.compile(r"lib.*|zlib1g.*|linux-(image|modules)-\d.*")
_OWN: Final = "Or name your own guest with --guest-kernel and --guest-initrd, or simulate: --guests simulated."


@dataclass(frozen=True, slots=True)
class BuiltInGuest:
    """Files to boot, and the kernel's arguments. `versions` maps packages to versions; it is empty for a guest of the user's own."""

    kernel: Path
    initrd: Path
    append: str
    versions: Mapping[str, str]


def own_guest(kernel: Path, initrd: Path, append: str = APPEND) -> BuiltInGuest:
    """The user's own kernel and initramfs. Raises GuestUnavailable if one cannot be read."""
    for option, path in (("--guest-kernel", kernel), ("--guest-initrd", initrd)):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise GuestUnavailable(f"The file of {option} cannot be read: {path}: {error.strerror}.") from error
    return BuiltInGuest(kernel, initrd, append, {})


async def built_in_guest(
    cache: Path | None = None, on_progress: Callable[[str], None] = lambda _: None
) -> BuiltInGuest:
    """The built-in guest of the newest packages that apt knows, from `cache` (a folder; the user's by default) or made now.

    `on_progress` hears what is done, one line at a time, when something takes time. Where none can be made now, one of older packages is used.
    Raises GuestUnavailable, saying what to do, if there is no guest and none can be made.
    """
    folder = cache or default_cache()
    kept = Cache(folder / "guests")
    apt = Apt(folder / "apt")
    reason = _reason_against(apt)
    made = [entry for entry in kept.entries() if facts_of(entry)["recipe"] == _recipe()]
    for entry in made:
        if reason or await _is_current(apt, facts_of(entry)["versions"]):
            return _kept(kept, entry)
    if reason:
        raise GuestUnavailable(f"{reason} {_OWN}")
    try:
        return await _make(kept, apt, on_progress)
    except GuestUnavailable as error:
        if not made:
            raise
        on_progress(f"taking the guest that was made of older packages: {error}")
        return _kept(kept, made[0])


def _reason_against(apt: Apt) -> str:
    machine = platform.machine()
    if machine not in ("x86_64", "amd64"):
        return f"The built-in guest is for x86-64, and this machine is {machine}."
    if not apt.is_here():
        return "The built-in guest is made of packages of Debian or Ubuntu, and this machine has no apt-get, apt-cache and dpkg-deb."
    return ""


async def _is_current(apt: Apt, versions: Mapping[str, str]) -> bool:
    """Packages that apt no longer knows do not count: its lists may have been removed."""
    known = await apt.look_up(versions)
    return all(package.version == versions[name] for name, package in known.items())


async def _make(kept: Cache, apt: Apt, on_progress: Callable[[str], None]) -> BuiltInGuest:
    try:
        try:
            return await _make_of_packages(kept, apt, on_progress)
        except (
            PackagesUnavailable
        ):  # the system's lists are missing, or so old that the mirror no longer has what they name
            on_progress("fetching apt's lists into a folder of our own")
            await apt.refresh()
            return await _make_of_packages(kept, apt, on_progress)
    except PackagesUnavailable as error:
        raise GuestUnavailable(
            f"The built-in guest cannot be made: {error} Does this machine reach its package mirror? {_OWN}"
        ) from error
    except OSError as error:
        raise GuestUnavailable(
            f"The built-in guest cannot be written: {error.strerror}: {error.filename}. {_OWN}"
        ) from error


async def _packages(apt: Apt) -> list[Package]:
    """All packages that the guest is made of. Raises PackagesUnavailable if apt does not know one of them."""
    kernels = await apt.look_up(_KERNELS)
    kernel = next((name for name in _KERNELS if name in kernels), None)
    if kernel is None:
        raise PackagesUnavailable(f"apt knows none of the packages {', '.join(_KERNELS)}.")
    found = await apt.with_dependencies((kernel, *_OTHERS), lambda name: _FOLLOWED.fullmatch(name) is not None)
    if missing := sorted(set(_OTHERS) - found.keys()):
        raise PackagesUnavailable(f"apt knows no package {', '.join(missing)}.")
    return [package for name, package in sorted(found.items()) if name != kernel or _is_image(package)]


def _is_image(package: Package) -> bool:
    """Whether a kernel's package is itself the image, and not a name for the newest one."""
    return not any(name.startswith("linux-image-") for name in package.depends)


async def _make_of_packages(kept: Cache, apt: Apt, on_progress: Callable[[str], None]) -> BuiltInGuest:
    on_progress("looking up the packages of the built-in guest")
    packages = await _packages(apt)
    versions = {package.name: package.version for package in packages}
    recipe = _recipe()
    key = hashlib.sha256(repr((recipe, sorted(versions.items()))).encode()).hexdigest()[:16]
    with kept.making() as making, tempfile.TemporaryDirectory(prefix="parts-", dir=making.folder) as parts:
        on_progress(f"downloading {len(packages)} packages")
        files, root = Path(parts) / "files", Path(parts) / "root"
        files.mkdir()
        root.mkdir()
        await apt.download(packages, files)
        on_progress("making the built-in guest")
        await apt.unpack(files, root)
        made = await asyncio.to_thread(initramfs.assemble, root)
        (making.folder / "vmlinuz").write_bytes(made.kernel)
        (making.folder / "initramfs.cpio").write_bytes(made.initramfs)
        making.key, making.facts = key, {"recipe": recipe, "versions": versions}
    entry = kept.entry(key)
    if entry is None:
        raise GuestUnavailable("Another process removed it from the cache at once.")
    return _guest(entry, versions)


def _kept(kept: Cache, entry: Path) -> BuiltInGuest:
    kept.entry(entry.name)
    return _guest(entry, facts_of(entry)["versions"])


def _guest(entry: Path, versions: Mapping[str, str]) -> BuiltInGuest:
    return BuiltInGuest(entry / "vmlinuz", entry / "initramfs.cpio", APPEND, versions)


def _recipe() -> str:
    """Changes with what we do to the packages, so that a newer program does not use what an older one made."""
    own = sorted((*initramfs.GUEST_FILES.iterdir(), *Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in own)).hexdigest()[:16]
