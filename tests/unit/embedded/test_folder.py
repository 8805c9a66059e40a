"""Where the embedded default keeps its data."""

import os
from pathlib import Path

import pytest

from app.embedded.folder import EmbeddedError, default_data_dir, lock_folder


@pytest.mark.parametrize(
    ("user", "environment", "expected"),
    [
        (0, {}, Path("/var/lib/emberpool")),
        (0, {"XDG_DATA_HOME": "/srv/data"}, Path("/var/lib/emberpool")),
        (1000, {"XDG_DATA_HOME": "/srv/data"}, Path("/srv/data/emberpool")),
        (1000, {"XDG_DATA_HOME": "relative"}, Path("/home/ada/.local/share/emberpool")),  # the standard says: ignore it
        (1000, {}, Path("/home/ada/.local/share/emberpool")),
    ],
)
def test_the_default_folder_depends_on_the_user(monkeypatch, user, environment, expected):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    assert default_data_dir(environment) == expected


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"data folder .*file/data cannot be created: Not a directory"):
        lock_folder(tmp_path / "file" / "data").__enter__()
