"""The dev cluster held against what a real API server and real KubeVirt controllers answered."""

import json
from pathlib import Path

import pytest

from .contract_source import CONTRACT, SCENARIOS, convert, unfold
from .replay import Replay

RECORDINGS = Path(__file__).parents[3] / "shared" / "recordings"


def machine(name, **labels):
    spec = {"runStrategy": "Halted", "template": {"spec": {"domain": {"devices": {}, "memory": {"guest": "64Mi"}}}}}
    metadata = {"name": name, "namespace": "rec", "labels": labels}
    return {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": metadata, "spec": spec}


SETUP = {
    "lists": [
        machine("a", app="rec-lists", tier="gold"),
        machine("b", app="rec-lists", tier="silver"),
        machine("c", app="rec-lists"),
        machine("d", app="other", tier="gold"),
        machine("e", app="other"),
    ],
    "server-restart": [machine("keep", app="rec-restart"), machine("keep2", app="rec-restart")],
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_scenario(scenario):
    steps = unfold(json.loads((CONTRACT / f"{scenario}.json").read_text()))

    complaints = await Replay(steps, setup=SETUP.get(scenario, ())).run()

    assert not complaints, f"{len(complaints)} differences:\n" + "\n".join(complaints)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_copy_matches_the_recordings(scenario):
    if not RECORDINGS.is_dir():
        pytest.skip("the recordings are not here; the contract files are our copy of them")

    assert json.loads((CONTRACT / f"{scenario}.json").read_text()) == convert(RECORDINGS, scenario)
