import pytest

from app.devcluster.guests.qemu.errors import NoRoom
from app.devcluster.guests.qemu.room import Limits, available_memory, open_room

MIB = 2**20


def test_guests_are_taken_until_the_memory_is_promised_and_again_when_some_is_given_back():
    room = open_room(Limits(memory_bytes=500 * MIB))
    room.take("a", 128 * MIB)
    room.take("b", 128 * MIB)
    with pytest.raises(NoRoom, match="it needs 224 MiB, and 2 guests hold 448 MiB of the 500 MiB"):
        room.take("c", 128 * MIB)
    room.give_back("a")
    room.take("c", 128 * MIB)


def test_the_number_of_guests_is_a_bound_of_its_own():
    room = open_room(Limits(memory_bytes=5000 * MIB, guests=1))
    room.take("a", 128 * MIB)
    with pytest.raises(NoRoom, match="1 guest runs, and no more than 1 may"):
        room.check(128 * MIB)


def test_the_memory_that_is_there_is_that_of_the_host_or_of_the_container_if_that_has_less(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert available_memory(tmp_path) == 8000 * 1024
    cgroup = tmp_path / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.current").write_text("1000000\n")
    (cgroup / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 8000 * 1024
    (cgroup / "memory.max").write_text("3000000\n")
    assert available_memory(tmp_path) == 2000000
