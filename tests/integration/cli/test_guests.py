"""`emberpool guests`, against a dev cluster that runs, one that does not, and one whose guests are real by what it says."""

import json

import pytest
import yaml

from tests.support.fake_api_server import ApiServer, kubeconfig, says, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
ANNOTATIONS = {
    "guests.emberpool.io/ssh": "127.0.0.5:2222",
    "guests.emberpool.io/boot": "built-in",
    "guests.emberpool.io/notes": "Its memory is 128Mi instead of 2Gi.",
    "kubevirt.io/other": "x",
}


def instance(name, annotations=(), **status):
    return {"metadata": {"name": name, "namespace": "default", "annotations": dict(annotations)}, "status": status}


def folder_of(tmp_path, text):
    (tmp_path / "cluster").mkdir(parents=True)
    (tmp_path / "cluster" / "kubeconfig").write_text(text, encoding="utf-8")
    return str(tmp_path)


async def test_each_guest_is_a_line_with_where_it_is_reached(run, tmp_path):
    running = instance(
        "web-1",
        ANNOTATIONS,
        phase="Running",
        nodeName="node1",
        interfaces=[{"ipAddress": "127.0.0.5"}],
        memory={"guestCurrent": "128Mi"},
    )
    server = ApiServer(says({"items": [running, instance("web-2", phase="Scheduling")]}))
    async with serving(server, tmp_path) as settings:
        folder = folder_of(tmp_path / "data", settings.kubeconfig.read_text(encoding="utf-8"))
        said = await run("guests", "--data-dir", folder)
        as_json = json.loads((await run("guests", "--data-dir", folder, "-o", "json")).out)
    first, second = (line.split(maxsplit=7) for line in said.out.splitlines()[1:])
    assert first[:7] == ["web-1", "Running", "127.0.0.5", "127.0.0.5:2222", "128Mi", "node1", "built-in"]
    assert first[7].strip() == "Its memory is 128Mi instead of 2Gi."
    assert [cell.strip() for cell in second] == ["web-2", "Scheduling", *["-"] * 6]
    assert [each["name"] for each in as_json["items"]] == ["web-1", "web-2"]


async def test_simulated_guests_are_listed_too(run, server, cluster, tmp_path):
    folder = folder_of(tmp_path, cluster.kubeconfig_text())
    assert "No guest runs." in (await run("guests", "--data-dir", folder)).err
    await server.fill("listed", size=1)
    (line,) = (await run("guests", "--data-dir", folder)).out.splitlines()[1:]
    assert line.startswith("listed-")
    assert "Running" in line


async def test_a_dev_cluster_that_does_not_run_is_told(run, tmp_path):
    folder = folder_of(tmp_path, yaml.safe_dump(kubeconfig("http://127.0.0.1:1")))
    said = await run("guests", "--data-dir", folder)
    assert (said.code, said.out) == (1, "")
    assert "There is no dev cluster to ask." in said.err
    assert "does not run (http://127.0.0.1:1:" in said.err
