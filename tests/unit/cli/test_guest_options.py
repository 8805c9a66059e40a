"""What `up` and `demo` hand to the dev cluster about its guests."""

import pytest
import typer

from app.cli.guest_options import GuestOptions, Guests, read_guests
from app.embedded.folder import lock_folder


def test_simulated_guests_ask_for_nothing(tmp_path):
    with lock_folder(tmp_path) as folder:
        assert GuestOptions(Guests.SIMULATED).arguments(folder) == []


def test_real_guests_keep_their_files_in_the_data_folder(tmp_path):
    image = tmp_path / "disk.qcow2"
    image.touch()
    url = "https://images.example.com/a.img?size=1"
    options = read_guests(Guests.AUTO, [f"fedora={image}", f"{url}={image}", "b=https://example.com/b.img"], "192Mi")
    with lock_folder(tmp_path / "data") as folder:
        given = options.arguments(folder)
    assert given == [
        *("--guests", "auto", "--guest-folder", str(tmp_path / "data" / "guests"), "--guest-memory", "192Mi"),
        *("--guest-image", f"fedora={image}", "--guest-image", f"{url}={image}"),
        *("--guest-image", "b=https://example.com/b.img"),
    ]


@pytest.mark.parametrize("memory", ["", "0Mi", "128", "128M", "-1Gi"])
def test_a_size_that_is_none_is_a_usage_error(memory):
    with pytest.raises(typer.BadParameter, match="is no size"):
        read_guests(Guests.QEMU, None, memory)


@pytest.mark.parametrize("image", ["", "=", "a=", "=/b", "a"])
def test_an_image_without_a_name_or_a_place_is_a_usage_error(image):
    with pytest.raises(typer.BadParameter, match="is not NAME=IMAGE"):
        read_guests(Guests.QEMU, [image], None)
