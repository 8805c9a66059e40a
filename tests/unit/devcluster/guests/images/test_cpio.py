"""Archives in the kernel's initramfs format, read back by a reader of its own."""

import stat

import pytest

from app.devcluster.guests.images.cpio import CpioArchive


def read(archive: bytes):
    """Each entry as (name, mode, data, (major, minor))."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        at = (start + size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert at == len(archive)
            return
        yield name, mode, archive[start : start + size], (numbers[9], numbers[10])


def test_what_was_added_is_read_back_with_its_mode():
    archive = CpioArchive()
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.link("bin", "usr/bin")
    archive.character_device("dev/console", 5, 1)

    assert list(read(archive.finished())) == [
        ("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n", (0, 0)),
        ("bin", stat.S_IFLNK | 0o777, b"usr/bin", (0, 0)),
        ("dev", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
    ]


def test_missing_folders_are_added_once_before_what_is_in_them():
    archive = CpioArchive()
    archive.file("etc/ssh/one", b"1")
    archive.file("etc/ssh/two", b"2")
    archive.folder("etc/ssh", 0o700)

    assert [name for name, *_ in read(archive.finished())] == ["etc", "etc/ssh", "etc/ssh/one", "etc/ssh/two"]


@pytest.mark.parametrize("name", ["", "/etc/passwd"])
def test_a_name_that_is_not_inside_of_the_archive_is_refused(name):
    with pytest.raises(ValueError, match="not a name inside"):
        CpioArchive().file(name, b"")


def test_a_name_that_is_taken_is_refused():
    archive = CpioArchive()
    archive.file("init", b"")

    with pytest.raises(ValueError, match="has 'init' already"):
        archive.link("init", "elsewhere")
