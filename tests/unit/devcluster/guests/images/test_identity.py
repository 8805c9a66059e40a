"""What makes a clone a machine of its own."""

import base64
import struct

from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from app.devcluster.guests.images import system_calls as calls
from app.devcluster.guests.images.identity import Identity, calls_to_become, new_host_key, new_identity


def test_fifty_identities_share_no_machine_id_and_no_host_key():
    identities = [new_identity(f"vm-{number}") for number in range(50)]

    assert len({identity.machine_id for identity in identities}) == 50
    assert len({identity.host_key.public for identity in identities}) == 50


def test_a_host_keys_public_line_belongs_to_its_private_file():
    key = new_host_key()

    private = load_ssh_private_key(key.private.encode(), password=None)

    assert private.public_key() == load_ssh_public_key(key.public.encode())
    assert base64.b64decode(key.public.split()[1]).startswith(struct.pack(">I", 11) + b"ssh-ed25519")


def test_the_calls_carry_the_identity_and_the_time():
    identity = Identity("web-7", "0123456789abcdef" * 2, new_host_key(), mac="52:54:00:12:34:56", interface="enp1s0")

    encoded = calls_to_become(identity, now=1_700_000_000.25, entropy=b"e" * 64).encoded()

    assert struct.pack("<qq", 1_700_000_000, 250_000_000) in encoded
    assert b"e" * 64 in encoded
    assert b"web-7\n" in encoded
    assert identity.machine_id.encode() in encoded
    assert identity.host_key.private.encode() in encoded
    assert b"enp1s0".ljust(16, b"\0") + struct.pack("<H", 1) + bytes.fromhex("525400123456") in encoded


def test_a_clone_that_keeps_its_address_makes_no_call_to_set_one():
    identity = new_identity("web-7")

    encoded = calls_to_become(identity, now=0.0).encoded()

    numbers = {struct.unpack_from("<q", encoded, at)[0] for at in range(0, 64 * 30, 64)}
    assert calls.SOCKET not in numbers
    assert b"arp_notify" not in encoded
