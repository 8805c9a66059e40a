"""How the built-in guest is found or refused, with programs of our own in the place of apt."""

import json
import platform

import pytest

from app.devcluster.guests.images import built_in
from app.devcluster.guests.images.built_in import built_in_guest, own_guest
from app.devcluster.guests.images.errors import GuestUnavailable

PACKAGES = (
    "linux-image-cloud-amd64",
    "busybox-static",
    "qemu-guest-agent",
    "openssh-server",
    "openssh-client",
    "e2fsprogs",
)
KNOWN = "\n\n".join(f"Package: {name}\nVersion: 1.0\nDepends: libc6 (>= 2), adduser" for name in PACKAGES)


@pytest.fixture(name="programs", autouse=True)
def _programs(tmp_path, monkeypatch):
    """A folder that is the whole PATH, with sh and cat in it; gives a function that adds a program."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    (folder / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")

    def add(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return add


@pytest.fixture(name="apt")
def _apt(programs, tmp_path):
    """An apt that knows the packages, and whose mirror cannot be reached."""
    (tmp_path / "known").write_text(KNOWN)
    programs("apt-cache", f"cat {tmp_path}/known")
    programs("apt-get", 'echo "E: Could not resolve the mirror" >&2; echo "E: and more" >&2; exit 100')
    programs("dpkg-deb", "exit 0")
    return programs


def keep_a_guest(tmp_path, versions):
    entry = tmp_path / "cache/guests/made-before"
    entry.mkdir(parents=True)
    (entry / "facts.json").write_text(json.dumps({"recipe": built_in._recipe(), "versions": versions}))


async def test_without_apt_it_says_what_to_do(tmp_path):
    with pytest.raises(
        GuestUnavailable, match=r"has no apt-get, apt-cache and dpkg-deb\. Or name your own guest with --guest-kernel"
    ):
        await built_in_guest(tmp_path / "cache")


async def test_on_another_processor_it_says_so(tmp_path, apt, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    with pytest.raises(GuestUnavailable, match="is for x86-64, and this machine is aarch64"):
        await built_in_guest(tmp_path / "cache")


async def test_without_a_network_it_tells_apts_reason_and_leaves_no_half_guest(tmp_path, apt):
    with pytest.raises(
        GuestUnavailable, match=r"`apt-get .*failed: Could not resolve the mirror\. Does this machine reach"
    ):
        await built_in_guest(tmp_path / "cache")

    assert list((tmp_path / "cache/guests").iterdir()) == []


async def test_a_package_that_apt_does_not_know_is_named(tmp_path, apt):
    (tmp_path / "known").write_text(KNOWN.replace("Package: e2fsprogs", "Package: other"))
    apt("apt-get", "exit 0")

    with pytest.raises(GuestUnavailable, match="apt knows no package e2fsprogs"):
        await built_in_guest(tmp_path / "cache")


async def test_packages_without_the_programs_are_told(tmp_path, apt):
    apt("apt-get", "exit 0")

    with pytest.raises(
        GuestUnavailable, match=r"The kernel's packages have no module|The packages of the built-in guest have no"
    ):
        await built_in_guest(tmp_path / "cache")

    assert list((tmp_path / "cache/guests").iterdir()) == []


async def test_a_guest_of_the_same_versions_comes_from_the_cache(tmp_path, apt):
    keep_a_guest(tmp_path, dict.fromkeys(PACKAGES, "1.0"))

    guest = await built_in_guest(tmp_path / "cache")

    assert guest.kernel == tmp_path / "cache/guests/made-before/vmlinuz"


async def test_a_guest_of_older_versions_is_taken_if_none_can_be_made_of_the_newer_ones(tmp_path, apt):
    keep_a_guest(tmp_path, {**dict.fromkeys(PACKAGES, "1.0"), "openssh-server": "0.9"})
    told = []

    guest = await built_in_guest(tmp_path / "cache", told.append)

    assert guest.versions["openssh-server"] == "0.9"
    assert "older packages: The built-in guest cannot be made" in told[-1]
    assert "Could not resolve the mirror" in told[-1]


async def test_a_guest_that_was_made_before_is_used_where_apt_is_no_more(tmp_path):
    keep_a_guest(tmp_path, dict.fromkeys(PACKAGES, "1.0"))

    assert (await built_in_guest(tmp_path / "cache")).versions == dict.fromkeys(PACKAGES, "1.0")


def test_a_guest_of_the_users_own_must_be_readable(tmp_path):
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")

    assert own_guest(kernel, kernel, "quiet").append == "quiet"
    with pytest.raises(GuestUnavailable, match=r"The file of --guest-initrd cannot be read: .*/initrd: No such file"):
        own_guest(kernel, tmp_path / "initrd")
