import json
import os
from pathlib import Path

import pytest

from app.devcluster.guests.qemu.errors import MemoryBroken
from app.devcluster.guests.qemu.memory_image import MemoryImage, begin_image, copy_memory, finish_image

PARTS = {"QEMU": "7.2.22"}


def write(target: Path) -> MemoryImage:
    partial = begin_image(target)
    (partial / "ram").write_bytes(b"memory")
    (partial / "state").write_bytes(b"devices")
    return finish_image(MemoryImage(partial, "qemu:1", PARTS, {"root": "layer-1"}, 0.25, shared=True), target)


def test_what_was_written_is_opened_as_it_was(tmp_path):
    written = write(tmp_path / "kept")
    assert MemoryImage.open(tmp_path / "kept") == written
    assert (written.ram.read_bytes(), written.disks, written.stood_still) == (b"memory", {"root": "layer-1"}, 0.25)
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_a_save_that_was_killed_is_not_taken_for_a_whole_one_and_does_not_hinder_the_next(tmp_path):
    (begin_image(tmp_path / "kept") / "ram").write_bytes(b"half")
    with pytest.raises(MemoryBroken, match="no whole memory"):
        MemoryImage.open(tmp_path / "kept")
    with pytest.raises(MemoryBroken, match="no whole memory"):
        MemoryImage.open(tmp_path / "kept.partial")
    write(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_a_file_that_was_cut_off_is_found(tmp_path):
    image = write(tmp_path / "kept")
    image.ram.write_bytes(b"mem")
    with pytest.raises(MemoryBroken, match="is not whole"):
        MemoryImage.open(tmp_path / "kept")


def test_a_form_of_another_version_is_refused(tmp_path):
    image = write(tmp_path / "kept")
    manifest = image.folder / "memory.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"form": 99}))
    with pytest.raises(MemoryBroken, match="of a form"):
        MemoryImage.open(tmp_path / "kept")


def test_a_target_that_is_there_is_not_replaced(tmp_path):
    kept = write(tmp_path / "kept")
    with pytest.raises(OSError, match="not empty"):
        write(tmp_path / "kept")
    assert MemoryImage.open(tmp_path / "kept") == kept


def test_memory_is_copied_without_what_was_never_written(tmp_path):
    size = 64 * 2**20
    with (tmp_path / "source").open("wb+") as source:
        source.truncate(size)
        os.pwrite(source.fileno(), b"begin", 0)
        os.pwrite(source.fileno(), b"middle", 32 * 2**20 + 7)
        copy_memory(source.fileno(), tmp_path / "copy", size)
    with (tmp_path / "copy").open("rb") as copy:
        assert os.fstat(copy.fileno()).st_size == size
        assert os.fstat(copy.fileno()).st_blocks * 512 < 2**20
        assert os.pread(copy.fileno(), 5, 0) == b"begin"
        assert os.pread(copy.fileno(), 6, 32 * 2**20 + 7) == b"middle"
