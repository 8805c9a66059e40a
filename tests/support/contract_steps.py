"""Makes of a recording the steps that the dev cluster is held against.

A step keeps the request, with generated values replaced by references to where they come from, and the normalised answer;
a watch keeps, for each object, the course of its phase, conditions and finalizers.
"""

import base64
import json

import yaml

from tests.support.normalising import UUID, normalise, tracks
from tests.support.recorded import exchanges

SCENARIOS = (
    "vm-lifecycle",
    "writes",
    "lists",
    "finalizers-and-gc",
    "discovery-lite",
    "leases-and-secrets",
    "failures",
    "server-restart",
    "pool",
    "datavolume",
    "snapshot",
)
_CALLERS = {"a service account with no rights": "norights", "a token nobody issued": "forged", "nobody": "nobody"}


def steps_of(scenario):
    origin = _Origin()
    steps = []
    for line in exchanges(scenario):
        _mend(scenario, len(steps), line)
        steps.append(_step(line, origin, exact=_is_exact(scenario, line["request"]["path"])))
        origin.learn(len(steps) - 1, line)
    return steps


def _mend(scenario, number, line):
    """Three requests of one scenario were recorded with the body of the last; the answers to the others tell theirs."""
    if scenario != "datavolume" or number not in {7, 8}:
        return
    spec = line["request"]["body"]["spec"]
    spec["storage"] = {"resources": {"requests": {"storage": "10Gi"}}}
    if number == 7:
        spec["preloadPolicy"] = "Always"
    else:
        spec["source"] = {"http": {}}


def _step(line, origin, *, exact):
    step = _request(line, origin)
    response = line["response"]
    expected = step["expect"] = {"status": response["status"]}
    if response["status"] is None:
        return step
    if "content-type" in response["headers"]:
        expected["type"] = response["headers"]["content-type"].partition(";")[0]
    for name in ("warnings", "retry_after"):
        if name in response:
            expected[name] = response[name]
    if "events" in response:
        expected |= _watched(response, exact=exact)
    else:
        expected["body"] = normalise(read_body(response["body"], expected.get("type")))
    return step


def _request(line, origin):
    request = line["request"]
    headers = request.get("headers") or {}
    step = {"at": line["at"], "method": request["method"], "path": origin.refer(request["path"])}
    query = {key: origin.refer(value, key) for key, value in (request.get("query") or {}).items()}
    if query:
        step["query"] = query
    step |= {name: headers[name] for name in ("accept", "content-type") if name in headers}
    if "as" in request:
        step["as"] = _CALLERS[request["as"]]
    body = request.get("body")
    if body is not None:
        faults = _faults(body)
        if faults:
            step["faults"] = faults
        step["body"] = body if isinstance(body, str) else origin.refer(_without_rig(body))
    return step


def _watched(response, *, exact):
    events = [(event["t"], event["type"], event["object"]) for event in response["events"]]
    watched = {"end": {"t": response["end"]["t"], "by": response["end"]["by"]}}
    errors = [normalise(obj) for _, kind, obj in events if kind == "ERROR"]
    if errors:
        watched["errors"] = errors
    if exact:
        watched["events"] = exact_events(events)
    else:
        watched["objects"] = tracks(events)
    return watched


def read_body(body, media):
    """Two YAML texts may say the same in other words."""
    return yaml.safe_load(body) if media == "application/yaml" else body


def _is_exact(scenario, path):
    """Where only the client's own requests change objects, every event counts."""
    return scenario == "lists" or path.endswith(("/secrets", "/leases"))


def exact_events(events):
    """All events in order for each object, bookmarks aside but for the one that ends the initial events."""
    kept = []
    for _, kind, obj in events:
        if kind == "BOOKMARK" and "annotations" not in obj["metadata"]:
            continue
        kept.append([kind, normalise(obj)])
    return kept


class _Origin:
    """Where values that the server made up were first seen."""

    def __init__(self):
        self._uids = {}
        self._versions = {}
        self._tokens = {}
        self._made_up = {}

    def learn(self, number, line):
        response = line["response"]
        body = response.get("body")
        self._collect(body, number, [])
        if isinstance(body, dict) and isinstance(body.get("metadata"), dict):
            metadata = body["metadata"]
            if "resourceVersion" in metadata:
                self._versions[metadata["resourceVersion"]] = number
            if metadata.get("continue"):
                self._tokens[metadata["continue"]] = number
            if "uid" in metadata:
                self._uids.setdefault(metadata["uid"], number)
            for index, item in enumerate(body.get("items") or []):
                self._uids.setdefault(item["metadata"]["uid"], [number, index])
        for event in response.get("events") or []:
            metadata = event["object"].get("metadata") or {}
            if "uid" in metadata and "name" in metadata:
                self._uids.setdefault(
                    metadata["uid"], ["watch", number, metadata["name"], metadata["creationTimestamp"]]
                )
                self._versions.setdefault(metadata["resourceVersion"], ["watch", number])
            elif event["type"] == "BOOKMARK":
                self._versions.setdefault(metadata["resourceVersion"], ["watch", number])

    def refer(self, value, key=""):
        if isinstance(value, dict):
            return {name: self.refer(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self.refer(item) for item in value]
        if not isinstance(value, str):
            return value
        if key == "resourceVersion" and value.isdecimal() and value != "0":
            return self._version(value)
        if key == "continue":
            return self._token(value)
        if value in self._uids:
            return {"$uid": self._uids[value]}
        if value in self._made_up:
            return {"$from": self._made_up[value]}
        known = [found for found in UUID.findall(value) if found in self._uids]
        if known:
            return {"$text": UUID.sub("{}", value), "uids": [self._uids[found] for found in known]}
        return value

    def _collect(self, value, number, path):
        """Ids inside specs, such as a firmware's, which a client sends back as it read them."""
        if isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                self._collect(item, number, [*path, key])
        elif isinstance(value, str) and UUID.fullmatch(value):
            self._made_up.setdefault(value, [number, path])

    def _version(self, value):
        if value in self._versions:
            return {"$version": self._versions[value]}
        for known, number in self._versions.items():
            if int(value) - int(known) == 100_000:
                return {"$version": number, "plus": 100_000}
        if not self._versions or int(value) > min(map(int, self._versions)) - 100:
            return {"$version": "now"}  # read from a list that the recorder did not keep
        return "1"

    def _token(self, value):
        if value in self._tokens:
            return {"$token": self._tokens[value]}
        try:
            opened = json.loads(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))
        except ValueError:
            return value
        for known, number in self._tokens.items():
            other = json.loads(base64.urlsafe_b64decode(known + "=" * (-len(known) % 4)))
            if other["start"] == opened["start"]:
                return {"$token": number, "aged": True}
        return value


def _faults(body):
    """The rig's orders in a template's annotations, as orders to the dev cluster."""
    if not isinstance(body, dict):
        return []
    annotations = ((body.get("spec") or {}).get("template") or {}).get("metadata", {}).get("annotations") or {}
    name = (body.get("metadata") or {}).get("name", "")
    found = []
    for key, value in annotations.items():
        order = {
            "fakehost/boot-seconds": {"kind": "never-boots"},
            "fakehost/agent-seconds": {"kind": "no-agent"},
            "fakehost/image-pull": {"kind": "image-error", "settings": {"message": value}},
            "fakehost/fail-boot": {"kind": "boot-fails"},
            "fakehost/crash-after-seconds": {"kind": "guest-dies", "settings": {"seconds": 2.0}},
        }.get(key)
        if order is None and key.startswith("fakehost/"):
            raise KeyError(f"the rig's annotation {key} has no translation")
        if order is not None:
            found.append({**order, "name": name})
    return found


def _without_rig(value):
    if isinstance(value, dict):
        cleaned = {key: _without_rig(item) for key, item in value.items() if not key.startswith("fakehost/")}
        if cleaned.get("annotations") == {} and value.get("annotations"):
            del cleaned["annotations"]
        return cleaned
    if isinstance(value, list):
        return [_without_rig(item) for item in value]
    return value
