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
        "The service refused the request. 2 of 2 documents are refused, and nothing was changed: standard input, line 18: spec.minAvailible:"
        in said.err
    )
    assert ": kind: is Pod, which this service does not apply" in said.err


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in files.items():
        (folder / f"{name}.yaml").write_bytes(as_yaml(document))


def named(said):
    return [line.split()[1] for line in said.out.splitlines()[1:]]


async def test_apply_takes_many_files_folders_patterns_and_addresses(run, tmp_path):
    write(tmp_path, a=machine(name="a"), b=machine(name="b"))
    write(tmp_path / "below", c=machine(name="c"))
    (tmp_path / "d.json").write_text(json.dumps(machine(name="d")))
    (tmp_path / "e.txt").write_text("no manifest")
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    dry = ("apply", "--dry-run")
    assert named(await run(*dry, "-f", b, "-f", a, "-f", b)) == ["b", "a"]
    assert named(await run(*dry, "-f", f"{a},{b}")) == ["a", "b"]
    assert named(await run(*dry, "-f", str(tmp_path))) == ["a", "b", "d"]
    assert named(await run(*dry, "-R", "-f", str(tmp_path))) == ["a", "b", "c", "d"]
    assert named(await run(*dry, "-f", str(tmp_path / "*.yaml"))) == ["a", "b"]
    assert named(await run(*dry, "-f", a, "-f", "-", stdin=as_yaml(machine(name="z")))) == ["a", "z"]
    empty = await run("apply", "-f", str(tmp_path / "below" / ".."), "-f", str(tmp_path / "none"))
    assert (empty.code, "none: No such file or directory" in empty.err) == (1, True)


async def test_apply_names_file_and_line(run, tmp_path):
    write(tmp_path, a=machine(name="a"), b=machine(name="b", runing=True))
    (tmp_path / "c.json").write_text(json.dumps(machine(name="a"), indent=1))
    said = await run("apply", "-f", str(tmp_path))
    assert said.code == 1
    assert f"{tmp_path}/b.yaml, line 18: spec.runing: is not a known field; did you mean `running`?" in said.err
    assert f"{tmp_path}/c.json, line 5: metadata.name: {tmp_path}/a.yaml makes claim 'a' already" in said.err
    assert "documents[" not in said.err


async def test_apply_reads_what_an_address_holds(run, address):
    said = await run("apply", "-f", f"{address}/openapi.json")
    assert (said.code, f"{address}/openapi.json: kind: is missing" in said.err) == (1, True)
    missing = await run("apply", "-f", f"{address}/nothing")
    assert (missing.code, f"{address}/nothing: HTTP 404" in missing.err) == (1, True)


async def test_other_kinds_are_passed_over_on_demand(run):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "init"}}
    body = as_yaml(secret, machine(name="beside"))
    refused = await run("apply", "-f", "-", "--dry-run", stdin=body)
    assert (refused.code, "apply it with kubectl, in namespace 'default'" in refused.err) == (1, True)
    said = await run("apply", "-f", "-", "--dry-run", "--skip-unknown", stdin=body)
    assert (said.code, named(said)) == (0, ["beside"])
    assert "Secret init: passed over, as the service does not apply this kind." in said.err
    claimed = await run("claim", "-f", "-", "--skip-unknown", "--wait", "30", stdin=body)
    assert claimed.code == 0, claimed.err
    assert (await run("release", "claims/beside")).code == 0


async def test_an_export_in_utf16_is_applied(run):
    exported = machine(name="exported")
    exported["metadata"] |= {"finalizers": ["kubevirt.io/virtualMachineControllerFinalize"], "uid": "u"}
    exported["spec"]["template"] = {"metadata": {"name": "x", "creationTimestamp": None}, **VMI}
    body = as_yaml({"apiVersion": "v1", "kind": "List", "items": [exported], "metadata": {"resourceVersion": ""}})
    said = await run("apply", "-f", "-", "--dry-run", stdin=body.decode().encode("utf-16"))
    assert (said.code, named(said)) == (0, ["exported"])
    assert "left out, as the cluster writes it: metadata.finalizers, metadata.uid." in said.err
    assert "left out, as in KubeVirt a template has no name of its own: spec.template.metadata.name." in said.err


async def test_a_claim_from_a_file_of_another_namespace_is_refused(run):
    elsewhere = machine(name="away")
    elsewhere["metadata"]["namespace"] = "elsewhere"
    for command in (("claim",), ("apply",)):
        said = await run(*command, "-f", "-", stdin=as_yaml(elsewhere))
        assert (said.code, said.out) == (1, "")
        assert "namespace: must be 'default', the only namespace of this service; or leave it out" in said.err


async def test_get_takes_other_words_for_a_kind(run, server):
    await server.put("worded", size=0)
    for words in (("pool", "worded"), ("pools/worded",), ("VirtualMachinePool", "worded"), ("vmpool/worded",)):
        assert json.loads((await run("get", *words, "-o", "json")).out)["name"] == "worded"
    for kind in ("claim", "vm", "snapshot", "preload", "path", "node", "datavolumes"):
        assert (await run("get", kind)).code == 0


async def test_apply_watches_until_all_is_there(run):
    said = await run("apply", "-f", "-", "--watch", stdin=as_yaml(pool(name="watched", size=1), machine(name="seen")))
    assert said.code == 0, said.err
    assert "pools/watched: 1/1 ready" in said.err
    assert "claims/seen: " in said.err
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
        (["apply"], 2, "name the files to apply with -f"),
        (["apply", "-f", "/none"], 1, "The file cannot be used. /none: No such file or directory."),
        (["claim"], 2, "give either a POOL, or a file with -f"),
        (["claim", "a", "-f", "b"], 2, "give either a POOL, or a file with -f"),
        (["claim", "nowhere"], 1, "The service refused the request. No pool is named 'nowhere'"),
        (["claim", "a", "--label", "x"], 2, "--label: 'x' is not NAME=VALUE"),
        (["claim", "a", "--path", "warp"], 1, "paths.0: must be 'pool', 'memory', 'snapshot', 'preload' or 'cold'"),
        (["claim", "a", "--wait", "-1"], 2, "Invalid value for '--wait'"),
        (["get", "poools"], 2, "'poools' is nothing that can be listed; did you mean pools; there are:"),
        (["get", "zzz"], 2, "'zzz' is nothing that can be listed; there are: pools, claims, vms"),
        (["get", "pools", "-o", "xml"], 2, "'--output' / '-o': 'xml' is not one of 'table', 'json', 'yaml'"),
        (["scale", "a", "--size", "x"], 2, "'--size': must be a whole number; it is 'x'"),
        (["claim", "a", "--lease", "0"], 2, "'--lease': must be 1 or more; it is "),
        (["patch", "a", "-p", "{"], 2, "--patch: '{' is not JSON; write it as in {\"size\": 12}"),
        (["get", "pool/"], 2, "the name is empty"),
        (["delete", "node", "a"], 2, "'node' cannot be deleted"),
        (["get", "pool/a", "b"], 2, "pool/a names one already; leave 'b' out"),
        (
            ["get", "pools", "-o", "json", "-o", "yaml"],
            2,
            "Invalid value for '--output' / '-o': it takes one value, and is given 2 times",
        ),
        (["claim", "a", "--wait", "1", "--wait", "2"], 2, "'--wait': it takes one value, and is given 2 times"),
        (["serve", "--port", "1", "--port", "2"], 2, "'--port': it takes one value, and is given 2 times"),
        (["claim", "-f", "a", "--file", "b"], 2, "it takes one value, and is given 2 times"),
        (["apply", "-k", "folder"], 2, "kubectl kustomize folder | emberpool apply -f -"),
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


@pytest.mark.parametrize("sign", ["?", "#", "/"])
async def test_a_name_with_a_sign_of_urls_is_not_another_name(run, server, sign):
    await server.put("kept", size=0)
    name = f"kept{sign}x"
    for command in (["get", "pool"], ["delete", "pool"], ["rotate"], ["scale", "--size", "1"]):
        assert (await run(*command, name)).code == 1
    kept = json.loads((await run("get", "pool", "kept", "-o", "json")).out)
    assert (kept["spec"]["size"], kept["generation"]) == (0, 1)


@pytest.mark.parametrize("word", ["vmpool", "virtualmachinepools"])
async def test_what_is_listed_by_a_word_is_deleted_by_it(run, server, word):
    await server.put(word, size=0)
    assert (await run("delete", word, word)).code == 0


async def test_a_folder_keeps_the_case_of_its_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifests").mkdir()
    said = await run("apply", "-f", "manifests")
    assert "The file cannot be used. manifests is a folder without any file" in said.err


async def test_a_secret_beside_a_claimed_vm_is_told_without_a_namespace_that_is_not_known(run):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "init"}}
    said = await run("claim", "-f", "-", stdin=as_yaml(secret, machine(name="a")))
    assert (said.code, "in the namespace of the VMs if it has one" in said.err) == (1, True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: [", "tandard input: the text is not YAML at line "),
        (
            as_yaml(machine(name="a"), machine(name="b")),
            "tandard input has 2 documents that the service applies, and this command takes one",
        ),
        (
            as_yaml(pool(name="a")),
            "tandard input: it is a VirtualMachinePool, which describes one of pools, not of claims",
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
