"""The installer of the guest program, and the shell that both are written in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.lifecycle import guest_program
from app.lifecycle.guest_program import FILES, identity_files


@pytest.mark.parametrize(
    ("folders", "made"),
    [
        (["etc/systemd/system"], "etc/systemd/system/multi-user.target.wants/emberpool-guest.service"),
        (["etc/init.d", "etc/runlevels"], "etc/runlevels/default/emberpool-guest"),
        ([], "usr/local/lib/emberpool/guest.sh"),
    ],
)
def test_the_installer_prepares_an_image_for_its_init(tmp_path, folders, made):
    root, disk = tmp_path / "root", tmp_path / "disk"
    disk.mkdir()
    for name, content in identity_files(None).items():
        (disk / name).write_text(content, encoding="utf-8")
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for _ in range(2):  # it can be run again
        environment = {**os.environ, "EMBERPOOL_ROOT": str(root)}
        subprocess.run(["sh", str(disk / "install.sh"), str(disk)], check=True, env=environment, capture_output=True)
    assert made in {str(each.relative_to(root)) for each in root.rglob("*")}
    assert os.access(root / "usr/local/lib/emberpool/guest.sh", os.X_OK)
    assert (root / "etc/emberpool/claimed.d").is_dir()


def test_the_scripts_have_no_fault_that_shellcheck_knows():
    folder = Path(guest_program.__file__).parent
    scripts = [str(folder / name) for name in FILES if name.endswith(".sh")]
    checked = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", "-s", "sh", *scripts], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
