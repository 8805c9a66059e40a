"""Snapshots in the cluster in memory: taken at once unless a test orders otherwise, and gone at once when removed."""

from dataclasses import replace
from itertools import count

from app.domain.paths import SnapshotDisk
from app.domain.snapshots import KeptMemory, SnapshotStatus, SourceVm, VolumeVerdict
from app.errors import ClusterConflict, ClusterNotFound, FieldProblem

ROOT = VolumeVerdict("root", enabled=True)
CLOUD_INIT = VolumeVerdict("cloudinit", enabled=False, reason="there is no disk", written=False)


class FakeSnapshots:
    """`objects` by name. `outcome` is what becomes of a snapshot that is taken; `others` are VMs that no row knows."""

    def __init__(self, gateway):
        self._gateway = gateway
        self._numbers = count(1)
        self.objects: dict[str, SnapshotStatus] = {}
        self.others: dict[str, SourceVm] = {}
        self.halted: set[str] = set()
        self.volumes = (ROOT, CLOUD_INIT)
        self.outcome = {"ready": True}
        self.unkeepable: tuple[str, ...] = ()
        """Why no memory can be kept."""
        self.memory = KeptMemory(1024, "qemu 10")
        """What a snapshot that asks for memory gets; None: nothing."""
        self.stops_at_once = True
        self.lingers = False
        """Whether a snapshot that is removed stays until the test lets it go."""

    # What the service asks

    def judge(self, spec):
        return self.volumes

    def judge_memory(self, spec):
        return self.unkeepable

    def memory_differences(self, template, kept, disks):
        if template.spec == kept:
            return ()
        return (FieldProblem("template.memory", "is 4Gi here and 2Gi in the kept memory"),)

    async def source(self, name):
        await self._gateway._called("source", name)
        if name in self.others:
            return self.others[name]
        vm = self._gateway.vms.get(name)
        if vm is None:
            return None
        halted = name in self.halted
        running = not halted or vm.phase is not None
        shape = f"shape-of-{name}"
        return SourceVm(name, vm.uid, running, halted, vm.deleting, self.volumes, shape, {"vm": name})

    async def stop(self, *, name, uid):
        await self._gateway._called("stop", name)
        vm = self._gateway.vms.get(name)
        if vm is None:
            raise ClusterNotFound(f"VM {name} is not there.")
        if vm.uid != uid:
            raise ClusterConflict(f"VM {name} is another one by now.")
        self.halted.add(name)
        if self.stops_at_once:
            self.shut_down(name)

    async def take(self, *, name, snapshot, take_id, vm, deadline_seconds, memory=False):
        await self._gateway._called("take", name)
        found = self.objects.get(name)
        if found is None:
            found = SnapshotStatus(
                name, f"snap-{next(self._numbers)}", take_id, ready=False, failed=False, deleting=False
            )
            if memory:
                found = replace(found, memory=self.memory)
            self.objects[name] = found
            self.turn_out(name, **self.outcome)
        elif found.take_id != take_id:
            raise ClusterConflict(f"The name {name} is not ours.")
        return self.objects[name]

    async def look(self, name):
        await self._gateway._called("look", name)
        return self.objects.get(name)

    async def disks(self, sight):
        await self._gateway._called("disks", sight.name)
        return tuple(
            SnapshotDisk(volume, f"vs-of-{sight.name}-{volume}", "2Gi", "fast", ("ReadWriteOnce",), "Block")
            for volume in sight.included
        )

    def count_bytes(self, disks):
        return sum(int(disk.size.removesuffix("Gi")) * 2**30 for disk in disks)

    async def remove(self, *, name, uid, take_id):
        await self._gateway._called("remove", name)
        found = self.objects.get(name)
        if found is None or found.take_id != take_id or (uid is not None and found.uid != uid):
            return False
        if self.lingers:
            self.objects[name] = replace(found, deleting=True)
            return True
        del self.objects[name]
        return False

    async def all(self):
        await self._gateway._called("all", "")
        return tuple(self.objects.values())

    # What a test orders

    def shut_down(self, name):
        """A VM that was stopped has shut down."""
        self._gateway.change(name, phase=None, vmi_uid=None, ready=False, agent_connected=False)

    def turn_out(self, name, **changes):
        """What becomes of a snapshot; one that is ready has the volumes that can be in it."""
        found = replace(self.objects[name], **changes)
        if found.ready:
            found = replace(
                found,
                content=f"content-of-{name}",
                included=tuple(volume.name for volume in self.volumes if volume.enabled),
                excluded=tuple(volume.name for volume in self.volumes if not volume.enabled),
            )
        self.objects[name] = found
        return found
