"""Replays a scenario of the contract against a dev cluster over real sockets, in time that the replay moves."""

import asyncio
import base64
import json

import aiohttp

from app.devcluster import DevCluster, DevClusterConfig, Durations, ManualClock, Rule, Subject
from tests.support.contract_steps import exact_events, read_body
from tests.support.normalising import normalise, tracks

NAMESPACE = "rec"
DURATIONS = Durations(
    schedule=0.01,
    image_pull=0.0,
    launch=0.59,
    domain_start=1.5,
    guest_boot=1.0,
    probe=0.45,
    graceful_stop=1.0,
    image_retry=3.0,
    volume_bind=0.03,
    import_total=4.06,
    clone_total=1.0,
    snapshot_total=1.0,
    snapshot_restore=0.5,
)
_TOKENS = {"admin": Subject("system:admin", (Rule(),)), "norights": Subject("system:serviceaccount:rec:norights")}
_BOUND = 2000
_LAST_MOMENT = 0.005


class Replay:
    """`run` gives the list of complaints; an empty one is agreement."""

    def __init__(self, steps, *, setup=(), storage=(), actions=()):
        self.steps = steps
        self._storage = storage
        self.complaints = []
        self._setup = setup
        self._actions = list(actions)
        self._answers = {}
        self._watches = {}
        self._uids = {}

    async def run(self):
        self.clock = ManualClock()
        config = DevClusterConfig(
            durations=DURATIONS,
            namespaces=("default", NAMESPACE),
            images=("quay.io/containerdisks/fedora:42",),
            tokens=_TOKENS,
            jitter_share=0.0,
        )
        async with DevCluster(config, clock=self.clock) as self.cluster, aiohttp.ClientSession() as self.session:
            self._start = self.clock.now()
            for resource, obj in self._storage:
                self.cluster.store.put(resource, obj)
            for obj in self._setup:
                await self._send_setup(obj)
            for number, step in enumerate(self.steps):
                await self._reach(step["at"])
                await self._do(number, step)
            await self._reach(float("inf"))
        return self.complaints

    async def _send_setup(self, obj):
        path = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachines"
        headers = {"Authorization": "Bearer admin"}
        async with self.session.post(self.cluster.url + path, json=obj, headers=headers) as response:
            assert response.status == 201, await response.text()
        await self.clock.settle()

    async def _reach(self, moment):
        """Move the clock; on the way act on the cluster, and close the watches that the recorder closed before."""
        due = [(watch.closes, self._finish, watch) for watch in self._watches.values()]
        due += [(at, action, self.cluster) for at, action in self._actions]
        for at, act, subject in sorted(due, key=lambda item: item[0]):
            if at > moment:
                break
            await self._advance(at)
            await act(subject)
            self._actions = [item for item in self._actions if item != (at, act)]
        if moment != float("inf"):
            await self._advance(moment)

    async def _advance(self, moment):
        passed = (self.clock.now() - self._start).total_seconds()
        if moment > passed:
            await self.clock.advance(moment - passed)

    async def _do(self, number, step):
        for order in step.get("faults", ()):
            self.cluster.faults.order(**order)
        query = {key: str(self._resolve(value)) for key, value in step.get("query", {}).items()}
        headers = {}
        caller = step.get("as", "admin")
        if caller != "nobody":
            headers["Authorization"] = f"Bearer {caller}"
        for name in ("accept", "content-type"):
            if name in step:
                headers[name] = step[name]
        body = step.get("body")
        data = None
        if body is not None:
            data = body if isinstance(body, str) else json.dumps(self._resolve(body))
        skip = {name for name in ("Accept", "Content-Type") if name.lower() not in headers}
        request = self.session.request(
            step["method"],
            self.cluster.url + self._resolve(step["path"]),
            params=query,
            headers=headers,
            data=data,
            skip_auto_headers=skip,
        )
        expected = step["expect"]
        if "end" in expected:
            await self._open_watch(number, step, request)
            return
        try:
            async with request as response:
                text = await response.text()
        except aiohttp.ClientConnectionError:
            if expected["status"] is not None:
                self._complain(number, step, "no answer", "", expected["status"])
            return
        await self.clock.settle()
        self._judge(number, step, response, text)

    def _judge(self, number, step, response, text):
        expected = step["expect"]
        try:
            body = json.loads(text)
        except ValueError:
            body = text or None
        media = response.headers.get("Content-Type", "").partition(";")[0]
        body = read_body(body, media)
        if isinstance(body, dict):
            self._answers[number] = body
            self._learn(body)
        if response.status != expected["status"]:
            self._complain(number, step, "status", response.status, expected["status"], text[:600])
            return
        if "type" in expected and media != expected["type"]:
            self._complain(number, step, "content type", media, expected["type"])
        warnings = response.headers.getall("Warning", [])
        if warnings != expected.get("warnings", []):
            self._complain(number, step, "warnings", warnings, expected.get("warnings", []))
        if response.headers.get("Retry-After") != expected.get("retry_after"):
            self._complain(
                number, step, "Retry-After", response.headers.get("Retry-After"), expected.get("retry_after")
            )
        ours, theirs = normalise(body), expected["body"]
        if isinstance(theirs, dict) and theirs.get("kind") == "APIResourceList":
            # The dev cluster serves fewer kinds; those it serves must be described alike.
            theirs = {**theirs, "resources": {name: theirs["resources"].get(name) for name in ours["resources"]}}
        for path, got, wanted in differences(ours, theirs):
            self._complain(number, step, path, got, wanted)

    def _learn(self, obj):
        metadata = obj.get("metadata") or {}
        for item in obj.get("items") or []:
            self._learn(item)
        if "uid" in metadata and "name" in metadata:
            names = self._uids.setdefault(metadata["name"], [])
            if metadata["uid"] not in names:
                names.append(metadata["uid"])

    async def _open_watch(self, number, step, request):
        response = await request.__aenter__()
        if response.status != 200:
            self._complain(number, step, "status", response.status, 200, await response.text())
            await request.__aexit__(None, None, None)
            return
        watch = _Watch(self, number, step, request, response)
        self._watches[number] = watch
        await self.clock.settle()

    async def _finish(self, watch):
        del self._watches[watch.number]
        await watch.catch_up()
        end = await watch.end()
        step, expected = watch.step, watch.step["expect"]
        if end != expected["end"]["by"]:
            self._complain(watch.number, step, "end", end, expected["end"]["by"])
        errors = [normalise(obj) for _, kind, obj in watch.events if kind == "ERROR"]
        if errors != expected.get("errors", []):
            self._complain(watch.number, step, "errors", errors, expected.get("errors", []))
        if "events" in expected:
            for path, ours, theirs in differences(
                _by_object(exact_events(watch.events)), _by_object(expected["events"])
            ):
                self._complain(watch.number, step, f"events{path}", ours, theirs)
        else:
            # What came in the last moment may have been on its way still when the recorder hung up.
            seen = [event for event in watch.events if event[0] < watch.closes - _LAST_MOMENT or end != "client"]
            for told in compare_tracks(tracks(seen), expected["objects"]):
                self._complain(watch.number, step, *told)

    def _resolve(self, value):
        if isinstance(value, list):
            return [self._resolve(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$uid" in value:
            return self._uid(value["$uid"])
        if "$text" in value:
            return value["$text"].format(*(self._uid(place) for place in value["uids"]))
        if "$from" in value:
            number, path = value["$from"]
            found = self._answers[number]
            for key in path:
                found = found[key]
            return found
        if "$version" in value:
            return str(int(self._version(value["$version"])) + value.get("plus", 0))
        if "$token" in value:
            token = self._answers[value["$token"]]["metadata"]["continue"]
            return _age(token) if value.get("aged") else token
        return {key: self._resolve(item) for key, item in value.items()}

    def _uid(self, place):
        if isinstance(place, int):
            return self._answers[place]["metadata"]["uid"]
        if place[0] == "watch":
            return next(
                obj["metadata"]["uid"]
                for _, _, obj in self._all_events(place[1])
                if obj["metadata"].get("name") == place[2]
            )
        return self._answers[place[0]]["items"][place[1]]["metadata"]["uid"]

    def _version(self, place):
        if place == "now":
            return self.cluster.store.rv
        if isinstance(place, int):
            return self._answers[place]["metadata"]["resourceVersion"]
        return self._all_events(place[1])[-1][2]["metadata"]["resourceVersion"]

    def _all_events(self, number):
        return self.past[number].events

    @property
    def past(self):
        return self._watches | _Watch.opened

    def _complain(self, number, step, what, ours, theirs, more=""):
        self.complaints.append(
            f"step {number} {step['method']} {step['path']} at {step['at']}: {what}: got {ours!r}, expected {theirs!r} {more}"
        )


class _Watch:
    opened = {}  # noqa: RUF012  # reset by each replay's fixture

    def __init__(self, replay, number, step, request, response):
        self.number = number
        self.step = step
        self.events = []
        self._replay = replay
        self._request = request
        self._response = response
        self._server = next(reversed(list(replay.cluster.server.watches)), None)
        end = step["expect"]["end"]
        self.closes = step["at"] + end["t"] + (0.002 if end["by"] != "client" else 0)
        self._ended = None
        _Watch.opened[number] = self
        self._task = asyncio.create_task(self._read())

    async def _read(self):
        try:
            while line := await self._response.content.readline():
                event = json.loads(line)
                obj = event["object"]
                self._replay._learn(obj)
                at = (self._replay.clock.now() - self._replay._start).total_seconds()
                self.events.append((at, event["type"], obj))
            self._ended = "server"
        except aiohttp.ClientPayloadError:
            self._ended = "broken"

    async def catch_up(self):
        """Until everything the server has queued for any watch was sent and read."""
        for _ in range(_BOUND):
            if self._ended or not any(watch.pending for watch in self._replay.cluster.server.watches):
                break
            await asyncio.sleep(0)
        before = -1
        for _ in range(_BOUND):
            if before == len(self.events) and self._ended != "":
                await asyncio.sleep(0.002)
                if before == len(self.events):
                    return
            before = len(self.events)
            await asyncio.sleep(0.002)

    async def end(self):
        ended = self._ended or "client"
        if not self._task.done():
            self._task.cancel()
        self._response.close()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._replay.clock.settle()
        return ended


def differences(ours, theirs, path=""):
    """Every place where two JSON values differ, as (path, ours, theirs)."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted(set(ours) | set(theirs)):
            found += differences(ours.get(key, "<absent>"), theirs.get(key, "<absent>"), f"{path}.{key}")
        return found
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        found = []
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            found += differences(one, other, f"{path}[{number}]")
        return found
    return [] if ours == theirs else [(path, ours, theirs)]


def compare_tracks(ours, theirs):
    """Complaints where an object's course, or what it came to, differs."""
    found = []
    for name in sorted(set(ours) | set(theirs)):
        if name not in ours or name not in theirs:
            found.append((f"object {name}", name in ours, name in theirs))
            continue
        for track in sorted(set(ours[name]["tracks"]) | set(theirs[name]["tracks"])):
            mine = ours[name]["tracks"].get(track, [])
            recorded = theirs[name]["tracks"].get(track, [])
            if not _fits(mine, recorded):
                found.append((f"{name} {track}", mine, recorded))
        found += [
            (f"{name} last{told[0]}", *told[1:]) for told in differences(ours[name]["last"], theirs[name]["last"])
        ]
    return found


def _fits(mine, recorded):
    """What lasted in one run occurred in the other, in the same order; what was short may be missing from either."""
    return _occurs(mine, recorded) and _occurs(recorded, mine)


def _occurs(turns, among):
    values = iter([value for value, _ in among])
    return all(any(value == other for other in values) for value, lasting in turns if lasting)


def _by_object(events):
    """The order between objects is noise; that of each object's events is not."""
    grouped = {}
    for kind, obj in events:
        grouped.setdefault(obj["metadata"].get("name", ""), []).append([kind, obj])
    return grouped


def _age(token):
    opened = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    opened["rv"] = 1
    return base64.urlsafe_b64encode(json.dumps(opened, separators=(",", ":")).encode()).decode().rstrip("=")
