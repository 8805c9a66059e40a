"""A full file system and a killed process: nothing half is left, and it is told."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.devcluster.guests.disks.disks import Disks
from app.devcluster.guests.disks.errors import DiskError, NoSpace, QemuImgMissing
from app.devcluster.guests.disks.qemu_img import QemuImg
from tests.support.checkout import ROOT
from tests.support.devcluster_bench import until
from tests.support.disk_images import BLOCK, files, needs_qemu_img, raw_image, read

SIZE = 4 * BLOCK
ENDLESS = """\
#!/bin/sh
case "$1" in
info) echo '{"format": "raw", "virtual-size": 65536}' ;;
convert)
    for target; do :; done
    echo half > "$target"
    printf '    (12.50/100%%)\\r'
    echo $$ > "$0.pid.part"
    mv "$0.pid.part" "$0.pid"
    exec sleep 86400 ;;
esac
"""
"""A qemu-img whose conversions never end; it writes its process id beside itself."""
IMPORTER = """
import asyncio, sys
from pathlib import Path
from app.devcluster.guests.disks.disks import Disks
from app.devcluster.guests.disks.qemu_img import QemuImg

async def main():
    disks = await Disks.open(Path(sys.argv[2]), qemu_img=QemuImg(sys.argv[1]))
    await disks.import_image("a", Path("/dev/null"), 65536, lambda percent: None)

asyncio.run(main())
"""


@pytest.fixture
def endless(tmp_path):
    program = tmp_path / "qemu-img"
    program.write_text(ENDLESS)
    program.chmod(0o755)
    return program


def converting(program):
    """The process id of the conversion that runs, or 0."""
    noted = Path(f"{program}.pid")
    return int(noted.read_text()) if noted.exists() else 0


def is_alive(pid):
    """Whether it runs; one that was killed and that nobody has buried yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_killed_process_takes_its_conversion_along_and_the_next_one_sweeps_up(endless, tmp_path):
    folder = tmp_path / "disks"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", IMPORTER, str(endless), str(folder), cwd=ROOT)
    await until(lambda: converting(endless))
    pid = converting(endless)
    assert is_alive(pid)
    assert len(files(folder)) == 1

    process.send_signal(signal.SIGKILL)
    await process.wait()
    await until(lambda: not is_alive(pid))

    disks = await Disks.open(folder, qemu_img=QemuImg(str(endless)))
    assert files(folder) == set()
    assert disks.names() == frozenset()
    disks.close()


async def test_a_cancelled_import_ends_its_conversion_and_leaves_nothing(endless, tmp_path):
    folder = tmp_path / "disks"
    disks = await Disks.open(folder, qemu_img=QemuImg(str(endless)))
    told = []
    task = asyncio.create_task(disks.import_image("a", Path("/dev/null"), SIZE, told.append))
    await until(lambda: told == [12.5] and converting(endless))

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    await until(lambda: not is_alive(converting(endless)))
    assert files(folder) == set()
    disks.close()


async def test_no_more_conversions_run_at_once_than_there_are_cores(endless, tmp_path):
    disks = await Disks.open(tmp_path / "disks", qemu_img=QemuImg(str(endless), cores=3))
    told = {name: [] for name in "abcd"}
    tasks = [
        asyncio.create_task(disks.import_image(name, Path("/dev/null"), SIZE, percents.append))
        for name, percents in told.items()
    ]
    await until(lambda: sum(map(bool, told.values())) == 2)  # the third slot is for what takes no time

    await disks.remove("nothing")
    await asyncio.wait_for(disks._qemu_img.info(Path("/dev/null")), 60)

    assert sum(map(bool, told.values())) == 2
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    disks.close()


async def test_a_machine_without_qemu_img_is_told_what_to_install(tmp_path):
    with pytest.raises(QemuImgMissing, match="was not found: install qemu-utils"):
        await Disks.open(tmp_path / "disks", qemu_img=QemuImg(str(tmp_path / "nowhere")))


@pytest.fixture
def small(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system: run it as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@needs_qemu_img
async def test_a_full_file_system_is_told_and_leaves_nothing_half(small, tmp_path):
    folder = small / "disks"
    disks = await Disks.open(folder)
    large = raw_image(tmp_path / "large", range(1, 60))
    await disks.import_image("kept", raw_image(tmp_path / "one", [1]), SIZE, print)

    with pytest.raises(NoSpace, match=r"No space left on device .*Free some space there"):
        await disks.import_image("a", large, 60 * BLOCK, print)
    (small / "filler").write_bytes(b"x" * await asyncio.to_thread(room, small))
    with pytest.raises(DiskError):
        await disks.blank("b", SIZE)

    assert disks.names() == {"kept"}
    assert len(files(folder)) == 1
    assert read(disks.path("kept"), tmp_path) == [1, 0, 0, 0]
    await disks.remove("kept")  # where there is no room to write that down either
    assert files(folder) == set()
    disks.close()
    again = await Disks.open(folder)
    assert again.names() == frozenset()
    again.close()


def room(folder):
    told = os.statvfs(folder)
    return told.f_bavail * told.f_frsize
