"""User data, read on this side for the built-in guest, which has no cloud-init: a shell script of three functions that its setup calls.

Read are scripts (#!) and cloud-config documents, alone or as parts of a MIME message, also compressed by gzip. Of a cloud-config:
hostname, fqdn, ssh_authorized_keys, users (name, ssh_authorized_keys, shell), ssh_keys (ed25519), write_files
and bootcmd, runcmd; of network data of version 2, the addresses of the one card. What is not read is listed on the guest's console.
"""

import base64
import binascii
import email
import gzip
import json
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import yaml

from app.devcluster.guests.images.errors import SeedRefused
from app.devcluster.guests.images.identity import HostKey

_READ: Final = frozenset(
    {
        "hostname",
        "fqdn",
        "ssh_authorized_keys",
        "users",
        "ssh_keys",
        "write_files",
        "bootcmd",
        "runcmd",
        "final_message",
    }
)
_LARGEST: Final = 16 * 1024 * 1024
_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HOST_KEY: Final = "/etc/ssh/ssh_host_ed25519_key"


def guest_script(user_data: bytes, network_data: bytes, meta_data: bytes, host_key: HostKey | None = None) -> str:
    """What the built-in guest reads of a seed. The user data's host key goes before `host_key`. Raises SeedRefused if something is no YAML or has the wrong form."""
    meta = _mapping(meta_data, "meta data")
    script = _Script(str(meta.get("local-hostname") or "emberpool"))
    if host_key:
        script.set_host_key(host_key.private, host_key.public)
    for part in _parts(user_data):
        if part.startswith(b"#!"):
            script.run_program(part)
        elif part.startswith((b"#cloud-config", b"## template: jinja\n#cloud-config")):
            script.read_config(_mapping(part, "user data"))
        elif part.strip():
            script.skip(f"a part that begins with {part.split(maxsplit=1)[0][:40].decode(errors='replace')}")
    script.read_network(_mapping(network_data, "network data"))
    return script.text(str(meta.get("instance-id") or ""))


def _parts(user_data: bytes) -> Iterator[bytes]:
    plain = _decompressed(user_data)
    if not re.match(rb"(?i)(content-type|mime-version):", plain):
        yield plain
        return
    for part in email.message_from_bytes(plain).walk():
        if not part.is_multipart():
            content = part.get_payload(decode=True)
            yield _decompressed(content if isinstance(content, bytes) else b"")


def _decompressed(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    decompressor = zlib.decompressobj(wbits=31)
    try:
        plain = decompressor.decompress(data, _LARGEST)
    except zlib.error as error:
        raise SeedRefused(f"The user data is broken gzip: {error}.") from error
    if decompressor.unconsumed_tail:
        raise SeedRefused(f"The user data is larger than {_LARGEST} bytes once it is decompressed.")
    return plain


def _mapping(data: bytes, what: str) -> dict[str, Any]:
    try:
        read = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SeedRefused(f"The {what} is no YAML: {error}") from error
    if read is None:
        return {}
    if not isinstance(read, dict):
        raise SeedRefused(f"The {what} must be a mapping of YAML.")
    return read


class _Script:
    """Lines of the functions first_boot, every_boot and run_commands, quoted so that the shell takes nothing of the data for its own."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._first: list[str] = []
        self._every: list[str] = []
        self._commands: list[str] = []
        self._skipped: list[str] = []

    def skip(self, what: str) -> None:
        self._skipped.append(what)

    def run_program(self, program: bytes) -> None:
        self._commands.append(_write("/run/emberpool/user-script", program, "0700"))
        self._commands.append("/run/emberpool/user-script")

    def read_config(self, config: dict[str, Any]) -> None:
        self._hostname = str(config.get("hostname") or config.get("fqdn") or self._hostname)
        try:
            self._add_keys("root", "/root", config.get("ssh_authorized_keys"))
            for number, user in enumerate(config.get("users") or (), 1000):
                self._add_user(user, number)
            self._add_host_key(config.get("ssh_keys") or {})
            for file in config.get("write_files") or ():
                self._write_file(file)
            self._every += [_command(command) for command in config.get("bootcmd") or ()]
            self._commands += [_command(command) for command in config.get("runcmd") or ()]
        except (KeyError, TypeError, AttributeError, ValueError, binascii.Error, OSError) as error:
            raise SeedRefused(
                f"The user data has a part that cannot be read: {type(error).__name__}: {error}."
            ) from error
        for key in sorted(config.keys() - _READ):
            self.skip(key)

    def set_host_key(self, private: str, public: str | None) -> None:
        self._first.append(_write(_HOST_KEY, private.encode(), "0600"))
        made = f"ssh-keygen -y -f {_HOST_KEY} > {_HOST_KEY}.pub"
        self._first.append(_write(f"{_HOST_KEY}.pub", f"{public.strip()}\n".encode(), "0644") if public else made)

    def read_network(self, network: dict[str, Any]) -> None:
        """Version 2 (netplan's form), with or without the key `network` around it; the guest has one card, eth0."""
        network = network.get("network", network)
        cards = list((network.get("ethernets") or {}).values())
        if network and (network.get("version") != 2 or len(cards) != 1):  # noqa: PLR2004 -- the form's own number
            self.skip("network data that is not of version 2 with one card")
            return
        for card in cards:
            self._set_addresses(card)

    def text(self, instance_id: str) -> str:
        skipped = [f"say {shlex.quote('not read of the seed: ' + ', '.join(self._skipped))}"] if self._skipped else []
        functions = {"first_boot": self._first, "every_boot": [*skipped, *self._every], "run_commands": self._commands}
        texts = [f"{name}() {{\n:\n{chr(10).join(lines)}\n}}\n" for name, lines in functions.items()]
        return f"hostname={shlex.quote(self._hostname)}\ninstance_id={shlex.quote(instance_id)}\n" + "".join(texts)

    def _add_keys(self, user: str, home: str, keys: Iterable[str] | None) -> None:
        if not keys:
            return
        self._first.append(f"mkdir -p -m 0700 {home}/.ssh")
        self._first.append(
            _write(
                f"{home}/.ssh/authorized_keys",
                "".join(f"{key.strip()}\n" for key in keys).encode(),
                "0600",
                append=True,
            )
        )
        self._first.append(f"chown -R {user} {home}/.ssh")

    def _add_user(self, user: str | dict[str, Any], number: int) -> None:
        if user == "default":
            return
        facts = {"name": user} if isinstance(user, str) else user
        name = str(facts["name"])
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name}' is no name of a user")
        home = "/root" if name == "root" else f"/home/{name}"
        if name != "root":
            shell = str(facts.get("shell") or "/bin/sh")
            shell = "/bin/sh" if shell.endswith("/bash") else shell
            self._first += [
                f"echo {shlex.quote(f'{name}:x:{number}:{number}::{home}:{shell}')} >> /etc/passwd",
                f"echo {name}:x:{number}: >> /etc/group",
                f"echo '{name}:*:19000:0:99999:7:::' >> /etc/shadow",
                f"mkdir -p -m 0700 {home}",
                f"chown {number}:{number} {home}",
            ]
        self._add_keys(name, home, facts.get("ssh_authorized_keys") or facts.get("ssh-authorized-keys"))

    def _add_host_key(self, keys: dict[str, str]) -> None:
        if "ed25519_private" in keys:
            self.set_host_key(keys["ed25519_private"], keys.get("ed25519_public"))

    def _write_file(self, file: dict[str, Any]) -> None:
        content = file.get("content") or b""
        data = content if isinstance(content, bytes) else str(content).encode()
        encoding = str(file.get("encoding") or "").lower()
        if encoding in ("b64", "base64", "gz+b64", "gz+base64", "gzip+base64", "gzip+b64"):
            data = base64.b64decode(data, validate=False)
        if encoding.startswith(("gz", "gzip")):
            data = gzip.decompress(data)
        self._first.append(
            _write(str(file["path"]), data, _mode(file.get("permissions")), append=bool(file.get("append")))
        )
        if owner := file.get("owner"):
            self._first.append(f"chown {shlex.quote(str(owner))} {shlex.quote(str(file['path']))}")

    def _set_addresses(self, card: dict[str, Any]) -> None:
        addresses = card.get("addresses") or []
        if card.get("dhcp4"):
            self._every.append("ask_dhcp")
        elif addresses:
            self._every.append("ip address flush dev eth0")
        self._every += [f"ip address add {shlex.quote(str(address))} dev eth0" for address in addresses]
        gateways = [
            card.get("gateway4"),
            *(route.get("via") for route in card.get("routes") or () if route.get("to") in ("default", "0.0.0.0/0")),
        ]
        self._every += [f"ip route replace default via {shlex.quote(str(gateway))}" for gateway in gateways if gateway]
        servers = (card.get("nameservers") or {}).get("addresses") or []
        if servers:
            self._every.append(
                _write("/etc/resolv.conf", "".join(f"nameserver {server}\n" for server in servers).encode(), "0644")
            )


def _command(command: str | list[Any]) -> str:
    """A line for the shell, or the words of one command; each in a shell of its own, so that none ends the others."""
    if isinstance(command, list):
        return shlex.join(str(word) for word in command)
    return f"sh -c {shlex.quote(str(command))}"


def _mode(permissions: int | str | None) -> str:
    """YAML reads 0644 without quotes as an octal number."""
    return f"{permissions:04o}" if isinstance(permissions, int) else str(permissions or "0644")


def _write(path: str, data: bytes, permissions: str, *, append: bool = False) -> str:
    """Base64, because the shell's strings hold no null bytes."""
    if not re.fullmatch(r"0?[0-7]{3,4}", permissions):
        raise ValueError(f"'{permissions}' is no mode of a file; write one such as '0644', in quotes")
    name = shlex.quote(path)
    packed = base64.b64encode(data).decode()
    target = ">>" if append else ">"
    return (
        f"mkdir -p \"$(dirname {name})\"\nbase64 -d {target} {name} <<'END'\n{packed}\nEND\nchmod {permissions} {name}"
    )


def meta_data(instance_id: str, hostname: str) -> bytes:
    """Meta data of NoCloud. JSON is YAML too."""
    return json.dumps({"instance-id": instance_id, "local-hostname": hostname}).encode()
