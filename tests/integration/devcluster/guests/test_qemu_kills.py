"""What is left when the process that owns the guests is killed in the middle of something: nothing."""

import asyncio
import os
import signal
import sys

import pytest

from app.devcluster.guests.qemu.errors import MemoryBroken
from app.devcluster.guests.qemu.memory_image import MemoryImage
from tests.support.machines import BOOT_SECONDS, find_guest, find_qemu, open_rig, reopen_rig, shell
from tests.support.processes import is_alive, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
    pytest.mark.timeout(4 * BOOT_SECONDS),
]


@pytest.fixture(scope="module")
def found():
    return find_qemu()


@pytest.fixture(scope="module")
def guest(found):
    return find_guest()


@pytest.fixture(scope="module")
def folder(found, guest, tmp_path_factory):
    """The folder of machines that have ended, with the memory of one that has booted."""

    async def boot(folder):
        async with open_rig(folder, found, guest):
            pass

    folder = tmp_path_factory.mktemp("machines")
    asyncio.run(boot(folder))
    return folder


@pytest.mark.parametrize(
    ("moment", "victim"),
    [("booting", "owner"), ("restoring", "owner"), ("saving", "owner"), ("saving", "supervisor and owner")],
)
async def test_no_guest_outlives_its_owner_and_no_half_memory_is_taken_for_a_whole_one(
    folder, found, guest, moment, victim
):
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.machine_owner", str(folder), moment),
        *(str(guest.kernel), str(guest.initrd), guest.append),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(BOOT_SECONDS):
        supervisor, *guests = map(int, (await owner.stdout.readline()).split())
    assert guests
    assert all(map(is_alive, (supervisor, *guests)))
    if victim == "supervisor and owner":
        os.kill(supervisor, signal.SIGKILL)
    owner.kill()
    await owner.wait()

    async def gone():
        return not any(map(is_alive, (supervisor, *guests)))

    await until(gone, "the supervisor and all guests have ended")
    with pytest.raises(MemoryBroken):
        MemoryImage.open(folder / "half")
    async with reopen_rig(folder, found, guest) as rig:
        machine, _, identity = await rig.clone()
        assert await shell(machine, "cat /etc/hostname") == identity.hostname
    assert not (folder / "run").exists()
