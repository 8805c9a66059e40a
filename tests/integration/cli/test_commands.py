"""apply, claim, get and release, as people and scripts call them."""

import json

import pytest
import yaml

from tests.support.manifest_documents import VMI, as_yaml, machine, pool
from tests.support.service import TEMPLATE, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def settled(server, name):
    async def full():
        found = await server.pool(name)
        return found["status"]["counts"]["ready"] >= found["spec"]["size"]

    await until(full)


async def test_apply_says_what_it_did(run, tmp_path):
    file = tmp_path / "pool.yaml"
    file.write_bytes(as_yaml(pool(name="applied", size=0)))
    tried = await run("apply", "-f", str(file), "--dry-run")
    assert (tried.code, "Nothing was changed: this was a dry run." in tried.err) == (0, True)
    first = await run("apply", "-f", str(file))
    assert first.code == 0
    assert [line.split() for line in first.out.splitlines()] == [
        ["KIND", "NAME", "ACTION", "RESOURCE"],
        ["VirtualMachinePool", "applied", "created", "/v1/pools/applied"],
    ]
    assert all(line == line.rstrip() for line in first.out.splitlines())
    again = await run("apply", "-f", "-", stdin=file.read_bytes())
    assert again.out.splitlines()[1].split()[2] == "unchanged"


async def test_apply_prints_the_whole_answer_for_programs(run):
    body = as_yaml(machine(name="told"))
    as_json = await run("apply", "-f", "-", "-o", "json", "--dry-run", stdin=body)
    found = json.loads(as_json.out)
    assert (found["dry_run"], found["documents"][0]["action"], as_json.err) == (True, "created", "")
    assert yaml.safe_load((await run("apply", "-f", "-", "-o", "yaml", "--dry-run", stdin=body)).out) == found


async def test_apply_tells_every_refusal_in_a_line(run):
    said = await run("apply", "-f", "-", stdin=as_yaml(pool(name="a", minAvailible=1), {"kind": "Pod"}))
    assert (said.code, said.out) == (1, "")
    assert (
        "The service refused the request. 2 of 2 documents are refused, and nothing was changed: documents[0].spec.minAvailible:"
        in said.err
    )
    assert "documents[1].kind: 'Pod' is not a known kind" in said.err


async def test_apply_watches_until_all_is_there(run):
    said = await run("apply", "-f", "-", "--watch", stdin=as_yaml(pool(name="watched", size=1), machine(name="seen")))
    assert said.code == 0, said.err
    assert "pools/watched: 1/1 ready" in said.err
    assert "claims/seen: shape-" in said.err
    assert (await run("release", "seen")).code == 0


async def test_apply_says_what_will_not_come(run):
    no_room = machine(name="huge", template={"spec": {**VMI["spec"], "domain": {"memory": {"guest": "64Mi"}}}})
    assert (await run("apply", "-f", "-", stdin=as_yaml(no_room))).code == 0
    assert (await run("release", "huge")).code == 0
    said = await run("get", "claims", "huge", "-o", "json")
    assert json.loads(said.out)["state"] == "released"


async def test_claim_get_and_release(run, server):
    await server.put("web", size=1)
    await settled(server, "web")
    claimed = await run("claim", "web", "--lease", "600", "--label", "job=ci", "--key", "k-1", "-o", "json")
    claim = json.loads(claimed.out)
    assert (claimed.code, claim["state"], claim["path"], claim["labels"]) == (0, "bound", "pool", {"job": "ci"})
    assert claim["lease_seconds"] == 600
    assert (
        json.loads(
            (await run("claim", "web", "--lease", "600", "--label", "job=ci", "--key", "k-1", "-o", "json")).out
        )["id"]
        == claim["id"]
    )

    listed = await run("get", "claims", "--pool", "web", "--label", "job=ci")
    assert listed.out.splitlines()[0].split()[:3] == ["NAME", "STATE", "POOL"]
    assert claim["id"] in listed.out
    assert claim["vm"]["name"] in listed.out
    one = await run("get", "claims", claim["id"], "-o", "yaml")
    assert yaml.safe_load(one.out)["id"] == claim["id"]
    vm = json.loads((await run("get", "vms", claim["vm"]["name"], "-o", "json")).out)
    assert (vm["id"], vm["state"]) == (claim["vm"]["id"], "claimed")

    released = await run("release", claim["id"])
    assert (released.code, "released" in released.out) == (0, True)
    again = await run("release", claim["id"], "-o", "json")
    assert json.loads(again.out)["items"][0]["state"] == "released"
    assert "had already ended: released." in again.err
    assert claim["id"] not in (await run("get", "claims", "--pool", "web")).out
    assert claim["id"] in (await run("get", "claims", "--pool", "web", "--all")).out


async def test_claim_waits_for_a_vm(run, server):
    await server.put("slow", size=0)
    said = await run("claim", "slow", "--wait", "30", "-o", "json")
    assert (said.code, json.loads(said.out)["state"]) == (0, "bound")
    await server.client.post("/v1/pools/slow/pause")


async def test_claim_takes_a_file(run, tmp_path):
    file = tmp_path / "vm.yaml"
    file.write_bytes(as_yaml(machine(name="filed")))
    said = await run("claim", "-f", str(file), "--wait", "30", "--path", "cold", "--path", "preload")
    assert said.code == 0, said.err
    row = said.out.splitlines()[1].split()
    assert (row[0], row[1], row[2], row[3]) == ("filed", "bound", "-", "cold")
    assert "Path cold: cold, from its template alone" in said.err
    assert (await run("release", "filed")).code == 0
    piped = await run("claim", "-f", "-", "--wait", "30", stdin=as_yaml(machine(name="piped")))
    assert piped.code == 0, piped.err
    assert (await run("release", "piped")).code == 0
    short = await run("claim", "-f", "-", "--wait", "30", "-o", "json", stdin=as_yaml(TEMPLATE))
    claim = json.loads(short.out)
    assert claim["state"] == "bound"
    assert claim["lease_seconds"] == 3600
    assert (await run("release", claim["id"])).code == 0


async def test_a_wait_that_was_too_short_is_told(run, server):
    await server.put("busy", size=0, max_vms=1, boot_timeout_seconds=60)
    first = json.loads((await run("claim", "busy", "--wait", "30", "-o", "json")).out)
    assert first["state"] == "bound"
    said = await run("claim", "busy", "--wait", "0.2")
    assert said.code == 1
    assert any(words in said.err for words in ("No VM is ready yet. Claim", "The service refused the request. "))


async def test_get_lists_each_kind(run, server):
    await server.put("listed", size=0)
    for kind in ("pools", "claims", "vms", "snapshots", "preloads", "nodes", "paths"):
        table = await run("get", kind)
        assert table.code == 0, table.err
        assert table.out.startswith(("NAME", "PATH")) or table.err == f"There are no {kind}."
        assert "items" in json.loads((await run("get", kind, "-o", "json")).out)
    assert json.loads((await run("get", "pools", "listed", "-o", "json")).out)["name"] == "listed"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["apply"], 2, "Missing option '--file'"),
        (["apply", "-f", "/none"], 1, "The file cannot be used. /none: No such file or directory."),
        (["claim"], 2, "give either a POOL, or a file with -f"),
        (["claim", "a", "-f", "b"], 2, "give either a POOL, or a file with -f"),
        (["claim", "nowhere"], 1, "The service refused the request. No pool is named 'nowhere'"),
        (["claim", "a", "--label", "x"], 2, "--label: 'x' is not NAME=VALUE"),
        (["claim", "a", "--path", "warp"], 1, "paths.0: Input should be 'pool', 'snapshot', 'preload' or 'cold'"),
        (["claim", "a", "--wait", "-1"], 2, "Invalid value for '--wait'"),
        (["get", "pods"], 2, "'pods' is not one of"),
        (["get", "pools", "nowhere"], 1, "The service refused the request. No pool is named 'nowhere'"),
        (["get", "claims", "nowhere"], 1, "Not found. No claim has the id or the label name=nowhere"),
        (["get", "vms", "nowhere"], 1, "Not found. No VM has the id or the name nowhere"),
        (["get", "pools", "--label", "a=b"], 2, "--label does not apply to pools"),
        (["get", "claims", "a", "--all"], 2, "--all filters a list"),
        (["get", "claims", "--label", "x"], 1, "label: a label filter is name=value"),
        (["release"], 2, "Missing argument '"),
        (["release", "nowhere"], 1, "Not found. No claim has the id or the label name=nowhere"),
        (["get", "pools", "--server", "nowhere"], 2, "--server: 'nowhere' is not an http or https URL"),
        (["get", "pools", "--server", "http://127.0.0.1:x"], 2, "is not an http or https URL"),
    ],
)
async def test_what_is_wrong_is_one_sentence(run, arguments, code, sentence):
    said = await run(*arguments)
    assert (said.code, said.out) == (code, "")
    assert sentence.casefold() in said.err.casefold()
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: [", "-: the body is not YAML at line "),
        (as_yaml(machine(name="a"), machine(name="b")), "- has 2 documents, and this command takes one"),
        (
            as_yaml(pool(name="a")),
            "documents[0].kind is VirtualMachinePool, which describes one of pools, not of claims",
        ),
        (as_yaml(machine(name="a", runing=True)), "did you mean `running`?"),
    ],
)
async def test_a_file_that_is_no_vm_is_told(run, text, sentence):
    said = await run("claim", "-f", "-", stdin=text)
    assert said.code == 1
    assert sentence in said.err


async def test_nodes_and_paths_are_told_in_numbers(run, server):
    async def seen():
        return (await server.client.get("/v1/nodes")).json()["items"]

    await until(seen)
    nodes = await run("get", "nodes")
    assert nodes.out.splitlines()[1].split()[2] == "yes"
    paths = await run("get", "paths", "cold", "-o", "json")
    assert {each["path"] for each in json.loads(paths.out)["items"]} == {"cold"}
    assert "(all)" in (await run("get", "paths")).out
    name = json.loads((await run("get", "nodes", "-o", "json")).out)["items"][0]["name"]
    assert json.loads((await run("get", "nodes", name, "-o", "json")).out)["name"] == name
