"""The built-in guest, made of this machine's packages and booted: what its seed asks for, what its disk keeps, how it ends."""

import asyncio
import json
import shutil
from dataclasses import replace

import pytest

from app.devcluster.guests.images.identity import new_host_key
from app.devcluster.guests.images.seed import make_seed
from app.devcluster.guests.images.user_data import meta_data
from app.devcluster.guests.qemu.machines import open_machines
from tests.support.machines import BOOT_SECONDS, Heard, create_disk, find_guest, find_qemu, shell, template_plan
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.timeout(6 * BOOT_SECONDS)

USER_DATA = {
    "hostname": "web-1",
    "ssh_authorized_keys": ["ssh-ed25519 AAAA-of-root"],
    "users": ["default", {"name": "ada", "ssh_authorized_keys": ["ssh-ed25519 AAAA-of-ada"]}],
    "write_files": [{"path": "/srv/greeting", "content": "It's $HOME\n", "permissions": "0640"}],
    "runcmd": ["echo ran >> /srv/ran"],
}


@pytest.fixture(name="found")
def _found():
    return find_qemu()


@pytest.fixture(name="guest")
def _guest(found):
    return find_guest()


@pytest.fixture(name="boot")
async def _boot(found, guest, tmp_path):
    """Boot the guest once from the one disk, with the seed of an instance; gives the machine and what it tells."""
    create_disk(tmp_path, "template.qcow2")
    async with open_machines(tmp_path, found) as machines:
        boots = 0

        async def boot(instance_id, host_key=None):
            nonlocal boots
            boots += 1
            seed = tmp_path / f"seed-{boots}.iso"
            user_data = f"#cloud-config\n{json.dumps(USER_DATA)}".encode()
            make_seed(seed, user_data=user_data, meta_data=meta_data(instance_id, "other"), host_key=host_key)
            heard = Heard()
            machine = await machines.start(
                replace(template_plan(tmp_path, guest), name=f"boot-{boots}", seed=seed), heard
            )
            await heard.until("connected")
            return machine, heard

        yield boot


async def until_the_commands_ran(machine, times):
    """They run beside everything else, so their file comes some time after the agent."""
    await shell(machine, f"until [ $(cat /srv/ran | wc -l) = {times} ]; do sleep 0.1; done")


async def power_off(machine, heard):
    await shell(machine, "poweroff")
    assert (await heard.until_ended()).reason == "shutdown"


async def host_key_shown(machine):
    """The key that the SSH server proves to have, and the machine-id."""
    endpoint = machine.endpoint(22)
    scan = await asyncio.create_subprocess_exec(
        *("ssh-keyscan", "-T", str(int(PATIENCE)), "-t", "ed25519", "-p", str(endpoint.port), endpoint.host),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await scan.communicate()
    return out.decode().split(maxsplit=1)[1].strip()


async def test_the_guest_does_what_its_seed_says_keeps_it_on_its_disk_and_is_another_for_another_instance(boot):
    key = new_host_key()
    machine, heard = await boot("i-1", host_key=key)
    assert await shell(machine, "hostname; cat /srv/greeting; stat -c %a /srv/greeting") == "web-1\nIt's $HOME\n640"
    keys = await shell(machine, "cat ~root/.ssh/authorized_keys ~ada/.ssh/authorized_keys")
    assert keys == "ssh-ed25519 AAAA-of-root\nssh-ed25519 AAAA-of-ada"
    assert await shell(machine, "cat /etc/ssh/ssh_host_ed25519_key.pub") == key.public
    await until_the_commands_ran(machine, 1)
    first_id = await shell(machine, "cat /etc/machine-id")
    await shell(machine, "echo kept > /srv/kept")
    await power_off(machine, heard)

    machine, heard = await boot("i-1")
    assert (
        await shell(machine, "cat /srv/kept /srv/ran /etc/machine-id; wc -l < /var/log/boots")
        == f"kept\nran\n{first_id}\n2"
    )
    assert await shell(machine, "cat /etc/ssh/ssh_host_ed25519_key.pub") == key.public
    await power_off(machine, heard)

    machine, heard = await boot("i-2")
    assert await shell(machine, "cat /srv/kept") == "kept"
    assert await shell(machine, "cat /etc/machine-id") != first_id
    own_key = await shell(machine, "cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub")
    assert own_key != key.public
    await until_the_commands_ran(machine, 2)
    if shutil.which("ssh-keyscan"):
        assert await host_key_shown(machine) == own_key
    console = await asyncio.to_thread(machine.console.read_text)
    assert "changes are kept on /dev/vda" in console
    assert "ready" in console
