"""Disks for tests: what is in them block by block, written and read with QEMU's own tools."""

import shutil
import subprocess

import pytest

BLOCK = 64 * 1024

needs_qemu_img = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-io") is None,
    reason="needs qemu-img and qemu-io: install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora)",
)


def qemu_img(*arguments):
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def write(path, block, value):
    """Fill a block of a qcow2 file with one byte, as a guest would."""
    command = f"write -P {value} {block * BLOCK} {BLOCK}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(path)], check=True, capture_output=True)


def read(path, scratch):
    """What a guest finds in the disk: the byte of each block. Fails where a block has several."""
    flat = scratch / "flat.raw"
    qemu_img("convert", "-U", "-O", "raw", path, flat)
    data = flat.read_bytes()
    flat.unlink()
    blocks = [set(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
    assert all(len(block) == 1 for block in blocks)
    return [block.pop() for block in blocks]


def raw_image(path, values):
    """A raw image that has these bytes, a block each."""
    path.write_bytes(b"".join(bytes([value]) * BLOCK for value in values))
    return path


def files(folder):
    """The disks in the folder, whether they are known or not."""
    return {each.name for each in folder.iterdir()} - {"index.json", "lock"}
