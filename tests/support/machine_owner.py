"""`python -m tests.support.machine_owner FOLDER MOMENT KERNEL INITRD APPEND`: a process that owns guests, until somebody kills it at that moment.

It prints the numbers of its supervisor and of its guests when the moment is there, and then stands still.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from app.devcluster.guests.images.built_in import BuiltInGuest
from app.devcluster.guests.qemu.detect import probe_machines
from app.devcluster.guests.qemu.machine import Machine
from tests.support.machines import Heard, Rig, overlay, reopen_rig

_FOR_EVER = 3600


async def main(folder: Path, moment: str, guest: BuiltInGuest) -> None:
    async with reopen_rig(folder, await probe_machines(), guest) as rig:
        await {"booting": _boot, "restoring": _restore, "saving": _save}[moment](rig)


async def _boot(rig: Rig) -> None:
    plan, _ = rig.clone_plan(restore=None, identity=())
    machine = await rig.machines.start(plan, Heard())
    _stand_still(rig, machine)


async def _restore(rig: Rig) -> None:
    first, _, _ = await rig.clone()
    plan, _ = rig.clone_plan()

    def stand_still(_: float) -> bytes:
        """The second clone runs by now, and has no identity yet."""
        _stand_still(rig, first, *rig.machines.all())
        return b""

    await rig.machines.start(replace(plan, identity=(replace(plan.identity[0], make_input=stand_still),)), Heard())


async def _save(rig: Rig) -> None:
    machine, _, _ = await rig.clone()

    async def stand_still() -> Mapping[str, str]:
        top = rig.folder / f"{machine.name}.qcow2"
        await machine.snapshot_disk("root", overlay(rig.folder, f"{machine.name}-live.qcow2", top.name))
        _stand_still(rig, machine)
        return {}

    await machine.save_memory(rig.folder / "half", stand_still)


def _stand_still(rig: Rig, *machines: Machine) -> None:
    print(rig.machines.supervisor_pid, *{machine.pid for machine in machines}, flush=True)  # noqa: T201 - read by the test
    time.sleep(_FOR_EVER)


if __name__ == "__main__":
    _folder, _moment, _kernel, _initrd, _append = sys.argv[1:]
    asyncio.run(main(Path(_folder), _moment, BuiltInGuest(Path(_kernel), Path(_initrd), _append, {})))
