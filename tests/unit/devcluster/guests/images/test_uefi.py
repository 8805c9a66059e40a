"""Where the UEFI firmware is."""

import pytest

from app.devcluster.guests.images.uefi import Uefi, find_uefi

PLACES = [
    ("usr/share/OVMF", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("usr/share/OVMF", "OVMF_CODE.fd", "OVMF_VARS.fd"),
    ("usr/share/edk2/ovmf", "OVMF_CODE.fd", "OVMF_VARS.fd"),
]


@pytest.mark.parametrize(("folder", "code", "variables"), PLACES)
def test_the_firmware_is_found_where_distributions_put_it(tmp_path, folder, code, variables):
    place = tmp_path / folder
    place.mkdir(parents=True)
    (place / code).touch()
    assert find_uefi(tmp_path) is None  # an image without its variables is of no use
    (place / variables).touch()

    assert find_uefi(tmp_path) == Uefi(place / code, place / variables)
