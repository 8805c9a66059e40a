"""The preloads' side of the cluster in memory: objects by name, and what a test orders of them."""

from dataclasses import replace
from itertools import count

from app.domain.preload_lifecycle import NodePull, ObjectKind, PreloadObject, Present, PullState, Volume
from app.domain.preloads import PreloadSpec
from app.errors import ClusterConflict
from app.ids import preload_object_name

VOLUME = Volume("", "12Gi", "fast", ("ReadWriteOnce",), "Block")


class FakePreloads:
    """`before[call]` is run before a call and may raise; `calls` tells what was asked, in order."""

    def __init__(self) -> None:
        self.objects: dict[str, PreloadObject] = {}
        self.calls: list[tuple[str, str]] = []
        self.before = {}
        self.present: dict[str, Volume] = {}
        self.cloned: dict[str, tuple[str, ...]] = {}
        self.needs: list[tuple[object, tuple[PreloadSpec, ...]]] = []
        """A VM's spec, and what would bring its images near."""
        self.lingers = False
        self.names_ever: set[str] = set()
        self._numbers = count(1)

    # What the service asks

    def reference(self, spec):
        return spec.image.reference("default")

    def specs_for(self, spec):
        return next((specs for known, specs in self.needs if known == spec), ())

    async def check(self, order):
        self._called("check", order.name)

    async def make(self, order):
        name = preload_object_name(order.name, order.preload_id, order.generation)
        self._called("make", name)
        if name not in self.objects:
            if name in self.names_ever:
                raise ClusterConflict(f"the name {name} is used for a second time")
            self.names_ever.add(name)
            kind = ObjectKind.CRON if order.spec.schedule else ObjectKind.VOLUME
            kind = ObjectKind.NODES if order.spec.is_container else kind
            uid = f"uid-{next(self._numbers)}"
            self.objects[name] = PreloadObject(kind, name, uid, order.preload_id, order.generation, phase="Pending")
        self._called("made", name)

    async def look(self, preload_id):
        self._called("look", str(preload_id))
        return tuple(each for each in self.objects.values() if each.preload_id == preload_id)

    async def find_present(self, name):
        self._called("find", name)
        volume = self.present.get(name)
        return Present(volume, "it was there already" if volume else f"there is no volume {name}")

    async def clones(self, volume):
        return self.cloned.get(volume.claim, ())

    async def remove(self, seen):
        self._called("remove", seen.name)
        found = self.objects.get(seen.name)
        if found is None or found.uid != seen.uid:
            return
        if self.lingers:
            self.change(seen.name, deleting=True)
        else:
            del self.objects[seen.name]

    async def all(self):
        return tuple(self.objects.values())

    # What a test orders

    def change(self, name, **changes):
        self.objects[name] = replace(self.objects[name], **changes)

    def only(self):
        (name,) = self.objects
        return name

    def finish(self, name, **changes):
        """The volume is complete."""
        volume = replace(VOLUME, claim=name, **changes)
        self.change(name, phase="Succeeded", progress=100.0, volume=volume, trouble=None)

    def pull(self, name, **nodes):
        """How it stands on the nodes: a state, or a reason for failing."""
        told = [
            NodePull(node, PullState(how)) if how in list(PullState) else NodePull(node, PullState.FAILED, how)
            for node, how in nodes.items()
        ]
        self.change(name, nodes=tuple(told), wanted=len(nodes))

    def called(self, call):
        return [name for what, name in self.calls if what == call]

    def _called(self, call, name):
        self.calls.append((call, name))
        before = self.before.get(call)
        if before is not None:
            before(name)
