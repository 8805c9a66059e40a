"""Whatever happens to disks, in whatever order: each has the data it should have, and no file is missing or left over."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from app.devcluster.guests.disks.disks import Disks
from tests.support.disk_images import BLOCK, files, needs_qemu_img, raw_image, read, write

BLOCKS = 3
numbers = st.integers(0, BLOCKS - 1)
values = st.integers(1, 255)


class Histories(RuleBasedStateMachine):
    """A volume or layer is known here by its name and the byte in each of its blocks."""

    volumes = Bundle("volumes")
    layers = Bundle("layers")

    @initialize(target=volumes)
    def begin(self):
        """Begins with a disk, and a copy of it that was written to."""
        self.place = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.disks = self.runner.run(Disks.open(self.place / "disks"))
        self.written, self.frozen, self.made = {}, {}, 0
        first = self.make()
        self.import_into(first, 3)
        copy = self.clone(first)
        self.write(copy, 0, 4)
        return multiple(first, copy)

    def name(self, kind):
        self.made += 1
        return f"{kind}-{self.made}"

    @rule(target=volumes)
    def make(self):
        name = self.name("volume")
        self.runner.run(self.disks.blank(name, BLOCKS * BLOCK))
        self.written[name] = [0] * BLOCKS
        return name

    @rule(name=volumes, first=values)
    def import_into(self, name, first):
        image = raw_image(self.place / "image", [first, 7])
        self.runner.run(self.disks.import_image(name, image, BLOCKS * BLOCK, lambda _percent: None, format_name="raw"))
        self.written[name] = [first, 7] + [0] * (BLOCKS - 2)

    @rule(name=volumes, block=numbers, value=values)
    def write(self, name, block, value):
        write(self.disks.path(name), block, value)
        self.written[name][block] = value

    @rule(target=layers, name=volumes)
    def snapshot(self, name):
        layer = self.name("layer")
        self.runner.run(self.disks.freeze(name, layer))
        self.frozen[layer] = list(self.written[name])
        return layer

    @rule(target=volumes, base=volumes)
    def clone(self, base):
        name = self.name("volume")
        self.runner.run(self.disks.overlay(name, base))
        self.written[name] = list(self.written[base])
        return name

    @rule(target=volumes, base=layers)
    def restore(self, base):
        name = self.name("volume")
        self.runner.run(self.disks.overlay(name, base))
        self.written[name] = list(self.frozen[base])
        return name

    @rule(name=volumes, base=layers)
    def restore_into(self, name, base):
        self.runner.run(self.disks.overlay(name, base))
        self.written[name] = list(self.frozen[base])

    @rule(name=consumes(volumes))
    def delete(self, name):
        self.runner.run(self.disks.remove(name))
        del self.written[name]

    @rule(name=consumes(layers))
    def delete_snapshot(self, name):
        self.runner.run(self.disks.remove(name))
        del self.frozen[name]

    @rule()
    def restart(self):
        self.disks.close()
        self.disks = self.runner.run(Disks.open(self.place / "disks"))

    @invariant()
    def every_file_is_needed_and_every_needed_file_is_there(self):
        if not hasattr(self, "disks"):
            return
        assert self.disks.names() == {*self.written, *self.frozen}
        needed = {file for name in self.disks.names() for file in self.disks.behind(name)}
        assert files(self.place / "disks") == needed

    def teardown(self):
        if not hasattr(self, "disks"):
            return
        try:
            found = {name: read(self.disks.path(name), self.place) for name in self.disks.names()}
            assert found == {**self.written, **self.frozen}
        finally:
            self.disks.close()
            self.runner.close()
            shutil.rmtree(self.place)


TestHistories = needs_qemu_img(Histories.TestCase)
TestHistories.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # to shrink a failure would take many minutes
    suppress_health_check=[HealthCheck.too_slow],
)
