"""The verbs of the API on the store: get, create, replace, patch. Everything here is synchronous and knows no HTTP."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from app.devcluster.apiserver import builtin, schemas
from app.devcluster.apiserver.admission import Admission
from app.devcluster.apiserver.decoding import Decoded, unsupported
from app.devcluster.apiserver.metadata import check_finalizers_kept, check_metadata
from app.devcluster.apiserver.patches import apply_configuration, apply_json_patch, apply_merge_patch
from app.devcluster.apiserver.registry import LEASES, NAMESPACES, Resource
from app.devcluster.apiserver.status import (
    ApiError,
    Json,
    already_exists,
    bad_option,
    bad_request,
    cause,
    conflict,
    invalid,
    not_found,
)
from app.devcluster.apiserver.store import Store, Stored
from app.devcluster.apiserver.times import stamp
from app.devcluster.clock import Clock
from app.devcluster.durations import Jitter

_MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"
_SKIPPED = (
    "Invalid value: null: some validation rules were not checked because the object was invalid; correct the "
    "existing errors to complete validation"
)
_SERVER_OWNED = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
)
_UNCONDITIONAL = frozenset({"secrets", "pods", "nodes", "namespaces", "persistentvolumeclaims", "daemonsets"})
_STRATEGIC = "application/strategic-merge-patch+json"


@dataclass(frozen=True, slots=True)
class WriteOptions:
    dry_run: bool = False
    field_validation: str = "Warn"
    field_manager: str = ""


@dataclass(slots=True)
class Written:
    stored: Stored
    warnings: list[str]
    created: bool = False


class Api:
    def __init__(self, store: Store, clock: Clock, admission: Admission, names: Jitter) -> None:
        self.store = store
        self.clock = clock
        self._admission = admission
        self._names = names

    def get(self, resource: Resource, namespace: str, name: str) -> Stored:
        stored = self.store.get(resource, namespace, name)
        if stored is None:
            raise not_found(resource.group, resource.plural, name)
        return stored

    def create(self, resource: Resource, namespace: str, decoded: Decoded, options: WriteOptions) -> Written:
        obj, warnings = self._read(resource, decoded, options)
        metadata = dict(obj.get("metadata") or {})
        self._set_namespace(resource, namespace, metadata)
        given_version = metadata.get("resourceVersion")
        generated = "generateName" in metadata
        if generated and not metadata.get("name"):
            metadata["name"] = self._free_name(resource, namespace, metadata["generateName"])
        for key in (*_SERVER_OWNED, "resourceVersion", "managedFields"):
            metadata.pop(key, None)
        if namespace and self.store.get(NAMESPACES, "", namespace) is None:
            raise not_found("", "namespaces", namespace)
        if resource.status:
            obj.pop("status", None)
        obj = {**obj, "apiVersion": resource.api_version, "kind": obj.get("kind", resource.kind), "metadata": metadata}
        obj = self._admission.mutate(resource, builtin.with_defaults(resource, obj), None)
        obj = self._check(resource, obj, None)
        warnings += self._admission.validate(resource, obj, None)
        if given_version:
            raise ApiError(500, None, "resourceVersion should not be set on objects to be created")
        self._refuse_taken(resource, namespace, metadata["name"], generated=generated)
        metadata = {**obj["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": stamp(self.clock.now())}
        if resource.counts_generation:
            metadata["generation"] = 1
        obj = {**obj, "metadata": metadata}
        stored = Stored(obj, 0) if options.dry_run else self.store.put(resource, obj)
        return Written(stored, warnings, created=True)

    def replace(
        self, resource: Resource, namespace: str, name: str, decoded: Decoded, options: WriteOptions, *, status: bool
    ) -> Written:
        given, warnings = self._read(resource, decoded, options)
        metadata = dict(given.get("metadata") or {})
        if metadata.get("name", name) != name:
            raise bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            )
        self._set_namespace(resource, namespace, metadata)
        old = self.store.get(resource, namespace, name)
        if old is None:
            if resource is LEASES and not status:
                return self.create(resource, namespace, decoded, options)
            raise not_found(resource.group, resource.plural, name)
        version = metadata.get("resourceVersion")
        if not version and resource.plural not in _UNCONDITIONAL:
            message = "Invalid value: 0: must be specified for an update"
            raise invalid(
                resource.group,
                resource.plural,
                name,
                [cause("FieldValueInvalid", message, "metadata.resourceVersion")],
            )
        uid = metadata.get("uid")
        actual = old.obj["metadata"]["uid"]
        if uid and uid != actual:
            raise conflict(
                resource.group,
                resource.plural,
                name,
                f"StorageError: invalid object, Code: 4, Key: /registry/{resource.group}/{resource.plural}/"
                f"{namespace}/{name}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in "
                f"precondition: {uid}, UID in object meta: {actual}",
            )
        given = {**given, "metadata": metadata}
        return self._update(resource, old, given, options, warnings, status=status)

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        decoded: Decoded,
        content_type: str,
        options: WriteOptions,
        *,
        status: bool,
    ) -> Written:
        if content_type == _STRATEGIC and resource.custom:
            raise unsupported("application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml")
        applied = content_type == "application/apply-patch+yaml"
        if applied and not options.field_manager:
            raise bad_option(
                "PatchOptions", "fieldManager", "FieldValueRequired", "Required value: is required for apply patch"
            )
        old = self.store.get(resource, namespace, name)
        if old is None and applied:
            return self.create(resource, namespace, decoded, options)
        if old is None:
            raise not_found(resource.group, resource.plural, name)
        given = _patched(old.obj, decoded.value, content_type)
        metadata = given.get("metadata")
        if not isinstance(metadata, dict):
            raise bad_request("the object provided has no metadata")
        if metadata.get("name") != name:
            raise bad_request(
                f"the name of the object ({metadata.get('name', '')}) does not match the name on the URL ({name})"
            )
        if metadata.get("uid", old.obj["metadata"]["uid"]) != old.obj["metadata"]["uid"]:
            message = f'Invalid value: "{metadata["uid"]}": field is immutable'
            raise invalid(resource.group, resource.kind, name, [cause("FieldValueInvalid", message, "metadata.uid")])
        given, warnings = self._reread(resource, given, options)
        return self._update(resource, old, given, options, warnings, status=status)

    def modify(self, resource: Resource, stored: Stored, change: Callable[[Json], Json]) -> Stored:
        """A controller's write, without webhooks: `change` gives the new object, which is stored only if it differs.

        An object that is being deleted and has no finalizer left is removed.
        """
        obj = change(stored.obj)
        return self._store(resource, stored, obj, dry_run=False)

    def _update(
        self,
        resource: Resource,
        old: Stored,
        given: Json,
        options: WriteOptions,
        warnings: list[str],
        *,
        status: bool,
    ) -> Written:
        before = old.obj["metadata"]
        name = before["name"]
        version = given["metadata"].get("resourceVersion")
        if version and version != str(old.rv):
            raise conflict(resource.group, resource.plural, name, _MODIFIED)
        if status:
            obj = {**old.obj}
            obj.pop("status", None)
            if "status" in given:
                obj["status"] = given["status"]
        else:
            obj = self._merge_main(resource, old.obj, given)
            obj = self._admission.mutate(resource, builtin.with_defaults(resource, obj), old.obj)
        obj = self._check(resource, obj, old.obj)
        if not status:
            warnings = warnings + self._admission.validate(resource, obj, old.obj)
        return Written(self._store(resource, old, obj, dry_run=options.dry_run), warnings)

    def _store(self, resource: Resource, old: Stored, obj: Json, *, dry_run: bool) -> Stored:
        metadata = {**obj["metadata"], "resourceVersion": str(old.rv)}
        if metadata.get("finalizers") == []:
            del metadata["finalizers"]
        obj = {**obj, "metadata": metadata}
        if obj == old.obj:
            return old
        if resource.counts_generation and _spec_differs(resource, old.obj, obj):
            metadata["generation"] = metadata.get("generation", 0) + 1
        if dry_run:
            return Stored(obj, old.rv)
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers") and _is_released(metadata):
            self.store.remove(resource, metadata.get("namespace", ""), metadata["name"])
            return Stored(obj, old.rv)
        return self.store.put(resource, obj)

    def _merge_main(self, resource: Resource, old: Json, given: Json) -> Json:
        metadata = {key: value for key, value in given["metadata"].items() if key != "managedFields"}
        for key in _SERVER_OWNED:
            metadata.pop(key, None)
            if key in old["metadata"]:
                metadata[key] = old["metadata"][key]
        if "namespace" in old["metadata"]:
            metadata["namespace"] = old["metadata"]["namespace"]
        for key in ("labels", "annotations", "finalizers", "ownerReferences"):
            if key in metadata and not metadata[key]:
                del metadata[key]
        obj = {**given, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        if resource.status:
            obj.pop("status", None)
            if "status" in old:
                obj["status"] = old["status"]
        return obj

    def _check(self, resource: Resource, obj: Json, old: Json | None) -> Json:
        metadata = obj["metadata"]
        name = metadata.get("name", "")
        causes = check_metadata(resource, metadata)
        if obj["kind"] != resource.kind:
            message = f'Invalid value: "{obj["kind"]}": must be {resource.kind}'
            raise invalid(resource.group, obj["kind"], name, [cause("FieldValueInvalid", message, "kind")])
        if old is not None:
            causes += check_finalizers_kept(old["metadata"], metadata)
        if resource.custom:
            checked = schemas.check(resource, obj)
            causes += checked.causes
            obj = checked.obj
            if resource.scale and (obj.get("spec") or {}).get("replicas", 0) < 0:
                replicas = obj["spec"]["replicas"]
                message = f"Invalid value: {replicas}: should be a non-negative integer"
                causes.append(cause("FieldValueInvalid", message, ".spec.replicas"))
        causes += builtin.check(resource, obj, old)
        if causes and schemas.skips_rules(resource, causes):
            causes.append(cause("FieldValueInvalid", _SKIPPED, "<nil>"))
        if causes:
            raise invalid(resource.group, resource.kind, name, causes)
        return obj

    def _read(self, resource: Resource, decoded: Decoded, options: WriteOptions) -> tuple[Json, list[str]]:
        obj: Json = decoded.value
        problems = [f'unknown field "{path}"' for path in _unknown(resource, obj)]
        problems = [f'duplicate field "{path}"' for path in decoded.duplicates] + problems
        handled = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
        if problems and options.field_validation == "Strict":
            raise bad_request(f"{handled}: strict decoding error: {', '.join(problems)}")
        unreadable = builtin.decoding_problem(resource, obj)
        if unreadable:
            raise bad_request(f"{handled}: {unreadable}")
        warnings = problems if options.field_validation == "Warn" else []
        return builtin.without_unknown(resource, obj), list(warnings)

    def _reread(self, resource: Resource, obj: Json, options: WriteOptions) -> tuple[Json, list[str]]:
        """Like `_read`, for the result of a patch: problems are reported as problems of the patch."""
        problems = [f'unknown field "{path}"' for path in _unknown(resource, obj)]
        problem = builtin.decoding_problem(resource, obj)
        if problems and options.field_validation == "Strict":
            problem = f"strict decoding error: {', '.join(problems)}"
        if problem:
            shown = orjson.dumps(orjson.dumps(obj).decode()).decode()
            causes = [cause("FieldValueInvalid", f"Invalid value: {shown}: {problem}", "patch")]
            message = f' "" is invalid: patch: {causes[0]["message"]}'
            raise ApiError(422, "Invalid", message, details={"causes": causes})
        warnings = problems if options.field_validation == "Warn" else []
        return builtin.without_unknown(resource, obj), list(warnings)

    def _set_namespace(self, resource: Resource, namespace: str, metadata: Json) -> None:
        if not resource.namespaced:
            metadata.pop("namespace", None)
            return
        if metadata.get("namespace") not in {None, "", namespace}:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        metadata["namespace"] = namespace

    def _free_name(self, resource: Resource, namespace: str, prefix: str) -> str:
        while True:
            name = prefix[:58] + self._names.token()
            if self.store.get(resource, namespace, name) is None:
                return name

    def _refuse_taken(self, resource: Resource, namespace: str, name: str, *, generated: bool) -> None:
        taken = self.store.get(resource, namespace, name)
        if taken is None:
            return
        going = "deletionTimestamp" in taken.obj["metadata"]
        error = already_exists(resource.group, resource.plural, name, going=going)
        if generated:
            error = ApiError(
                409,
                "AlreadyExists",
                f"{error.message}, the server was not able to generate a unique name for the object",
                details={**(error.details or {}), "retryAfterSeconds": 1},
                retry_after=1,
            )
        raise error


def _patched(target: Json, patch: Any, content_type: str) -> Json:
    match content_type:
        case "application/json-patch+json":
            return apply_json_patch(target, patch)
        case "application/apply-patch+yaml":
            if not isinstance(patch, dict):
                raise bad_request("error decoding patch: the configuration to apply is no object")
            return apply_configuration(target, patch)
        case _:
            return apply_merge_patch(target, patch)


def _unknown(resource: Resource, obj: Json) -> list[str]:
    if not resource.custom:
        return builtin.unknown_fields(resource, obj)
    return schemas.check(resource, obj).unknown


def _spec_differs(resource: Resource, old: Json, new: Json) -> bool:
    ignored = {"metadata", "status"} if resource.status else {"metadata"}
    keys = (set(old) | set(new)) - ignored
    return any(old.get(key) != new.get(key) for key in keys)


def _is_released(metadata: Json) -> bool:
    """A pod stays during its grace period, until its node removes it; other objects go with their last finalizer."""
    return not metadata.get("deletionGracePeriodSeconds")
