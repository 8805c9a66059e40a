"""Disks as qcow2 files: what a guest finds in them, which files there are, and what is told where it goes wrong."""

import asyncio
import json

import pytest

from app.devcluster.guests.disks.disks import DEEPEST, Disks
from app.devcluster.guests.disks.errors import DiskBusy, DiskError, DiskMissing, DiskTooSmall, ImageRefused
from app.devcluster.guests.disks.qcow2 import is_pristine
from tests.support.disk_images import BLOCK, files, needs_qemu_img, qemu_img, raw_image, read, write

pytestmark = needs_qemu_img

SIZE = 4 * BLOCK


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "disks"


@pytest.fixture
async def disks(folder):
    opened = await Disks.open(folder)
    yield opened
    opened.close()


async def test_a_blank_disk_has_zeros_and_the_size_that_was_asked_for(disks, tmp_path):
    await disks.blank("a", SIZE)

    assert read(disks.path("a"), tmp_path) == [0, 0, 0, 0]
    assert disks.size("a") == SIZE


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_import_has_the_data_of_the_image_and_zeros_up_to_its_size(disks, folder, tmp_path, compressed):
    source = raw_image(tmp_path / "image.raw", [1, 2])
    if compressed:
        target = tmp_path / "image.qcow2"
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", source, target)
        source = target
    told = []
    await disks.blank("a", SIZE)

    await disks.import_image("a", source, SIZE, told.append)

    assert read(disks.path("a"), tmp_path) == [1, 2, 0, 0]
    assert told == sorted(told)
    assert told[-1] == 100
    assert len(files(folder)) == 1


async def test_an_image_larger_than_the_disk_is_refused_and_the_disk_stays_as_it_was(disks, folder, tmp_path):
    await disks.blank("a", BLOCK)
    write(disks.path("a"), 0, 7)

    with pytest.raises(DiskTooSmall, match=f"has {2 * BLOCK} bytes .* disk of {BLOCK}: ask for a larger disk"):
        await disks.import_image("a", raw_image(tmp_path / "image.raw", [1, 2]), BLOCK, print)

    assert read(disks.path("a"), tmp_path) == [7]
    assert len(files(folder)) == 1


async def test_what_is_no_image_or_refers_to_other_files_is_refused(disks, folder, tmp_path):
    secret = raw_image(tmp_path / "secret", [9])
    overlay, external = tmp_path / "overlay.qcow2", tmp_path / "external.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", overlay)
    data = f"data_file={tmp_path / 'data'},data_file_raw=on"
    qemu_img("create", "-f", "qcow2", "-o", data, external, SIZE)
    (page := tmp_path / "page.html").write_text("<html>Sign in</html>")
    listed = tmp_path / "listed.vmdk"
    qemu_img("create", "-f", "vmdk", listed, SIZE)

    with pytest.raises(ImageRefused, match=r"overlay.qcow2 is incomplete: it refers to .*secret"):
        await disks.import_image("a", overlay, SIZE, print)
    with pytest.raises(ImageRefused, match=r"external.qcow2 is incomplete: it refers to .*data"):
        await disks.import_image("a", external, SIZE, print)
    with pytest.raises(ImageRefused, match=r"page.html cannot be read as a disk image"):
        await disks.import_image("a", page, SIZE, print, format_name="qcow2")
    with pytest.raises(ImageRefused, match=r"listed.vmdk has the format vmdk, and only .* are taken"):
        await disks.import_image("a", listed, SIZE, print)
    assert disks.names() == frozenset()
    assert files(folder) == set()


async def test_a_copy_and_its_original_go_separate_ways(disks, tmp_path):
    await disks.blank("a", SIZE)
    write(disks.path("a"), 0, 1)

    await disks.overlay("b", "a")
    write(disks.path("a"), 1, 2)
    write(disks.path("b"), 0, 3)

    assert read(disks.path("a"), tmp_path) == [1, 2, 0, 0]
    assert read(disks.path("b"), tmp_path) == [3, 0, 0, 0]


async def test_a_copy_may_be_larger_and_not_smaller(disks, tmp_path):
    await disks.blank("a", SIZE)
    write(disks.path("a"), 3, 1)

    await disks.overlay("b", "a", SIZE + BLOCK)
    with pytest.raises(DiskTooSmall):
        await disks.overlay("c", "a", BLOCK)

    assert read(disks.path("b"), tmp_path) == [0, 0, 0, 1, 0]
    assert disks.names() == {"a", "b"}


async def test_a_layer_keeps_the_data_of_its_moment_for_every_disk_made_from_it(disks, tmp_path):
    await disks.blank("a", SIZE)
    write(disks.path("a"), 0, 1)
    await disks.freeze("a", "layer")
    write(disks.path("a"), 0, 2)
    await disks.freeze("a", "layer")  # again, as after a restart: the first moment counts

    await disks.overlay("b", "layer")
    await disks.remove("a")
    write(disks.path("b"), 1, 3)
    await disks.overlay("c", "layer")

    assert read(disks.path("b"), tmp_path) == [1, 3, 0, 0]
    assert read(disks.path("c"), tmp_path) == [1, 0, 0, 0]


async def test_many_copies_of_an_unchanged_disk_do_not_make_its_chain_longer(disks, folder):
    await disks.blank("a", SIZE)
    for number in range(DEEPEST + 4):
        await disks.overlay(f"copy-{number}", "a")

    assert is_pristine(disks.path("a"))
    assert len(files(folder)) == DEEPEST + 6  # one shared, one of each


async def test_a_disk_that_is_frozen_again_and_again_is_flattened_and_keeps_its_data(disks, tmp_path):
    await disks.blank("a", SIZE)
    for number in range(DEEPEST + 4):
        write(disks.path("a"), number % 4, number + 1)
        await disks.freeze("a", f"layer-{number}")
        await disks.overlay("b", f"layer-{number}")
        assert max(len(disks.behind("a")), len(disks.behind("b"))) <= DEEPEST
    for number in range(DEEPEST + 3):
        await disks.remove(f"layer-{number}")

    last = [number + 1 for number in range(DEEPEST, DEEPEST + 4)]
    assert read(disks.path("a"), tmp_path) == read(disks.path("b"), tmp_path) == last


async def test_files_go_with_the_last_that_needs_them(disks, folder):
    await disks.blank("a", SIZE)
    write(disks.path("a"), 0, 1)
    await disks.freeze("a", "layer")
    await disks.overlay("b", "layer")

    await disks.remove("layer")
    assert len(files(folder)) == 3
    await disks.remove("a")
    assert len(files(folder)) == 2
    await disks.remove("b")
    await disks.remove("b")
    assert files(folder) == set()


async def test_a_second_process_is_refused_the_folder(disks, folder):
    with pytest.raises(DiskError, match="in use by another dev cluster: stop it, or name another folder"):
        await Disks.open(folder)


async def test_what_is_opened_again_is_what_was_closed_without_what_a_crash_left(disks, folder, tmp_path):
    await disks.blank("a", SIZE)
    write(disks.path("a"), 0, 5)
    await disks.blank("unwanted", SIZE)
    await disks.blank("lost", SIZE)
    disks.path("lost").unlink()
    (folder / "disk-000099.qcow2").write_bytes(b"half a")
    (folder / "index.json.part").write_text("{")
    disks.close()

    again = await Disks.open(folder, wanted=["a", "lost", "other"])
    try:
        assert again.names() == {"a"}
        assert read(again.path("a"), tmp_path) == [5, 0, 0, 0]
        assert len(files(folder)) == 1
        with pytest.raises(DiskMissing, match="there is no disk lost"):
            again.path("lost")
    finally:
        again.close()


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"volumes": {"a": "x"}, "layers": {}, "files": {}})])
async def test_an_index_that_cannot_be_read_is_told_and_nothing_is_removed(disks, folder, text):
    await disks.blank("a", SIZE)
    disks.close()
    (folder / "index.json").write_text(text)

    with pytest.raises(DiskError, match=r"index.json cannot be read .*: without it nobody knows which disk is which"):
        await Disks.open(folder)

    assert len(files(folder)) == 1


class Guest:
    """Writes to the file that it was given last."""

    def __init__(self):
        self.answer = True
        self.asked = []
        self.path = None

    async def pivot(self, disk, overlay):
        self.asked.append((disk, overlay))
        await asyncio.to_thread(write, disk, 1, 2)  # until it changes over, it still writes to the first
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer:
            self.path = overlay
        return self.answer


@pytest.fixture
async def guest():
    return Guest()


@pytest.fixture
async def used(folder, guest):
    """A disk that a guest uses."""
    disks = await Disks.open(folder, pivot=guest.pivot)
    await disks.blank("a", SIZE)
    guest.path = await disks.attach("a", "vm")
    yield disks
    disks.close()


async def test_a_running_guest_changes_over_and_what_it_wrote_until_then_is_in_the_layer(used, guest, tmp_path):
    write(guest.path, 0, 1)

    await used.freeze("a", "layer")
    write(guest.path, 0, 9)
    await used.overlay("b", "layer")
    await used.overlay("c", "a")  # the guest's disk itself: another change-over

    assert read(used.path("b"), tmp_path) == [1, 2, 0, 0]
    assert read(used.path("c"), tmp_path) == [9, 2, 0, 0]
    assert guest.path == used.path("a")
    assert len(guest.asked) == 2


async def test_a_guest_that_does_not_change_over_goes_on_with_its_file(used, guest, folder, tmp_path):
    guest.answer = False
    before = used.path("a")

    with pytest.raises(DiskBusy, match="just starting or ending: try again"):
        await used.freeze("a", "layer")

    assert used.path("a") == before
    assert used.names() == {"a"}
    assert len(files(folder)) == 1


async def test_nothing_is_lost_if_nobody_knows_whether_the_guest_changed_over(used, guest, tmp_path):
    guest.answer = ConnectionError("the monitor hung up")

    with pytest.raises(DiskError, match="may not have changed over: the monitor hung up"):
        await used.freeze("a", "layer")
    write(guest.path, 0, 1)  # it did not, and goes on for a while
    used.detach("vm")

    assert read(used.path("a"), tmp_path) == [1, 2, 0, 0]
    assert used.names() == {"a"}


async def test_a_disk_in_use_is_neither_replaced_nor_flattened(used, guest):
    with pytest.raises(DiskBusy, match="in use by a guest: stop it first"):
        await used.blank("a", SIZE)
    for number in range(DEEPEST - 1):
        await used.freeze("a", f"layer-{number}")
    with pytest.raises(DiskBusy, match="stop it, take the snapshot, and start it again"):
        await used.freeze("a", "one-too-many")
    used.detach("vm")

    await used.freeze("a", "one-too-many")


async def test_operations_on_one_disk_that_are_asked_for_at_once_follow_each_other(disks, tmp_path):
    await disks.blank("a", SIZE)
    write(disks.path("a"), 0, 1)
    copies = [disks.overlay(f"copy-{number}", "a") for number in range(8)]
    layers = [disks.freeze("a", f"layer-{number}") for number in range(4)]
    circle = [disks.overlay("left", "a"), disks.overlay("right", "left"), disks.overlay("left", "right")]

    outcomes = await asyncio.gather(*copies, *layers, *circle, return_exceptions=True)

    assert [each for each in outcomes if each is not None and not isinstance(each, DiskMissing)] == []
    for name in disks.names():
        assert read(disks.path(name), tmp_path) == [1, 0, 0, 0]


async def test_a_name_that_could_leave_the_folder_is_refused(disks):
    for name in ("", "../a", "A", "a/b", "-a"):
        with pytest.raises(DiskError, match="cannot be the name of a disk"):
            await disks.blank(name, SIZE)
