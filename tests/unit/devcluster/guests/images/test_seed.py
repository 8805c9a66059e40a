"""Seeds, read back, and the script that the built-in guest gets of them, run by a shell."""

import base64
import gzip
import io
import subprocess

import pytest
import yaml
from pycdlib.pycdlib import PyCdlib

from app.devcluster.guests.images.errors import SeedRefused
from app.devcluster.guests.images.identity import new_host_key
from app.devcluster.guests.images.iso import make_iso
from app.devcluster.guests.images.seed import cloud_init_data, make_seed
from app.devcluster.guests.images.user_data import guest_script, meta_data

META = meta_data("i-1", "web-1")


def no_secret(name):
    raise SeedRefused(f"secret {name} not found")


def read_iso(path):
    """The label, and each file by its path, as systems with Joliet and with Rock Ridge see it."""
    image = PyCdlib()
    image.open(str(path))
    label = image.pvd.volume_identifier.decode().rstrip()
    seen = []
    for kind in ("joliet_path", "rr_path"):
        files = {}
        for folder, _, names in image.walk(**{kind: "/"}):
            for name in names:
                place = f"{folder.rstrip('/')}/{name}"
                content = io.BytesIO()
                image.get_file_from_iso_fp(content, **{kind: place})
                files[place.removeprefix("/")] = content.getvalue()
        seen.append(files)
    image.close()
    assert seen[0] == seen[1]
    return label, seen[0]


def run(script, function, root):
    """Run a function of the script with a shell whose root is told to be `root`: all paths in the data must lie below it."""
    program = f'say() {{ echo "$1"; }}\n{script}\n{function}\necho name=$hostname id=$instance_id'
    return subprocess.run(
        ["sh", "-c", program], cwd=root, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_a_seed_has_the_label_and_the_files_that_cloud_init_looks_for(tmp_path):
    make_seed(tmp_path / "seed.iso", user_data=b"#!/bin/sh\n", network_data=b"version: 2\n", meta_data=META)

    label, files = read_iso(tmp_path / "seed.iso")

    assert label == "cidata"
    assert files.pop("emberpool.sh").startswith(b"hostname=web-1\n")
    assert files == {"user-data": b"#!/bin/sh\n", "network-config": b"version: 2\n", "meta-data": META}
    assert [path.name for path in tmp_path.iterdir()] == ["seed.iso"]


def test_a_host_key_is_given_to_cloud_init_as_vendor_data(tmp_path):
    key = new_host_key()

    make_seed(tmp_path / "seed.iso", user_data=b"", meta_data=META, host_key=key)

    _, files = read_iso(tmp_path / "seed.iso")
    assert yaml.safe_load(files["vendor-data"]) == {
        "ssh_keys": {"ed25519_private": key.private, "ed25519_public": f"{key.public}\n"}
    }


def test_files_of_a_secret_keep_their_names_and_folders(tmp_path):
    given = {
        "tls.crt": b"certificate",
        "A-Long_Name.with.dots.and-more-of-them.json": b"{}",
        "..data": b"",
        "a/b/c": b"deep",
    }

    make_iso(tmp_path / "secret.iso", given, "secret")

    assert read_iso(tmp_path / "secret.iso") == ("secret", given)


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a//b", "."])
def test_a_name_that_is_no_file_on_an_image_is_refused(tmp_path, name):
    with pytest.raises(SeedRefused, match="not the name of a file"):
        make_iso(tmp_path / "x.iso", {name: b""}, "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"userData": "#!/bin/sh"}, b"#!/bin/sh"),
        ({"userDataBase64": base64.b64encode(b"\x00\xff").decode()}, b"\x00\xff"),
        ({"secretRef": {"name": "mine"}}, b"from the secret"),
        ({}, b""),
    ],
)
def test_user_data_is_read_from_where_the_volume_has_it(source, expected):
    assert cloud_init_data(source, lambda name: {"userdata": b"from the secret"}).user_data == expected


def test_user_data_that_cannot_be_read_is_refused_with_a_reason():
    with pytest.raises(SeedRefused, match="userDataBase64 is no base64"):
        cloud_init_data({"userDataBase64": "%"}, no_secret)
    with pytest.raises(SeedRefused, match="The secret mine has no userdata"):
        cloud_init_data({"secretRef": {"name": "mine"}}, lambda name: {"other": b""})


def test_the_guests_script_writes_files_exactly_and_runs_commands_in_order(tmp_path):
    text = 'It\'s "quoted" $HOME `no` \\ \n\tEND\n'
    config = {
        "hostname": "db-1",
        "write_files": [
            {"path": f"{tmp_path}/a b/plain", "content": text, "permissions": "0640"},
            {
                "path": f"{tmp_path}/packed",
                "content": base64.b64encode(gzip.compress(b"\0\1")).decode(),
                "encoding": "gz+b64",
            },
            {"path": f"{tmp_path}/packed", "content": "more", "append": True},
        ],
        "runcmd": [f"echo one > {tmp_path}/ran; false", ["sh", "-c", f"echo 'two words' >> {tmp_path}/ran"]],
    }
    script = guest_script(f"#cloud-config\n{yaml.safe_dump(config)}".encode(), b"", META)

    told = run(script, "first_boot; run_commands", tmp_path)

    assert told == "name=db-1 id=i-1\n"
    assert (tmp_path / "a b/plain").read_text() == text
    assert (tmp_path / "a b/plain").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "packed").read_bytes() == b"\0\1more"
    assert (tmp_path / "ran").read_text() == "one\ntwo words\n"


def test_a_mode_without_quotes_is_the_octal_number_that_yaml_reads(tmp_path):
    script = guest_script(
        f"#cloud-config\nwrite_files: [{{path: {tmp_path}/x, permissions: 0600}}]\n".encode(), b"", META
    )

    run(script, "first_boot", tmp_path)

    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_the_guests_script_tells_what_it_did_not_read(tmp_path):
    script = guest_script(b"#cloud-config\npackages: [nginx]\nchpasswd: {expire: false}\n", b"", META)

    assert "not read of the seed: chpasswd, packages" in run(script, "every_boot", tmp_path)


def test_parts_of_a_mime_message_are_read_each_by_its_kind():
    message = (
        b"Content-Type: multipart/mixed; boundary=B\nMIME-Version: 1.0\n\n"
        b"--B\nContent-Type: text/cloud-config\n\n#cloud-config\nhostname: from-mime\n\n"
        b"--B\nContent-Type: text/x-shellscript\n\n#!/bin/sh\necho program\n\n--B--\n"
    )

    script = guest_script(gzip.compress(message), b"", META)

    assert script.startswith("hostname=from-mime\n")
    assert base64.b64encode(b"#!/bin/sh\necho program\n").decode() in script


@pytest.mark.parametrize(
    ("user_data", "reason"),
    [
        (b"#cloud-config\n[1, 2\n", "is no YAML"),
        (b"#cloud-config\n- a\n", "must be a mapping"),
        (b"#cloud-config\nwrite_files: [{content: x}]\n", "KeyError: 'path'"),
        (b"#cloud-config\nwrite_files: [{path: /x, permissions: rw}]\n", "no mode of a file"),
        (b"#cloud-config\nusers: [{name: 'a;reboot'}]\n", "no name of a user"),
        (gzip.compress(bytes(17 * 1024 * 1024)), "larger than"),
        (b"\x1f\x8bbroken", "broken gzip"),
    ],
)
def test_user_data_that_makes_no_sense_is_refused(user_data, reason):
    with pytest.raises(SeedRefused, match=reason):
        guest_script(user_data, b"", META)


def test_network_data_sets_the_addresses_of_the_card():
    network = (
        b"network:\n  version: 2\n  ethernets:\n    any:\n      addresses: [192.0.2.7/24]\n      gateway4: 192.0.2.1\n"
    )

    script = guest_script(b"", network, META)

    assert "ip address add 192.0.2.7/24 dev eth0" in script
    assert "ip route replace default via 192.0.2.1" in script
