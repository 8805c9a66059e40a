"""Validation of DataVolumes and DataImportCrons as in CDI v1.66.0, with its messages."""

from app.devcluster.apiserver.objects import annotations_of, owners_of
from app.devcluster.apiserver.quantities import whole
from app.devcluster.apiserver.registry import CLAIMS
from app.devcluster.apiserver.status import Json, cause
from app.devcluster.apiserver.store import Store
from app.devcluster.cdi.cron_schedule import Schedule

_MEBI = 2**20
_LABEL_LIMIT = 63
_ADOPTION = "cdi.kubevirt.io/allowClaimAdoption"
_COLLECTING = frozenset({"Never", "Outdated"})


def check_volume(store: Store, volume: Json, old: Json | None) -> list[Json]:
    if old is not None:
        changed = old.get("spec") != volume.get("spec")
        return [cause("FieldValueDuplicate", "Cannot update DataVolume Spec", "DataVolume.Spec")] if changed else []
    metadata = volume["metadata"]
    claim = store.get(CLAIMS, metadata["namespace"], metadata.get("name", ""))
    owners = owners_of(claim.obj) if claim else []
    filled = any(owner.get("controller") and owner["kind"] == "DataVolume" for owner in owners)
    if claim is not None and not filled and annotations_of(volume).get(_ADOPTION) != "true":
        told = f"Destination PVC {metadata['namespace']}/{metadata['name']} already exists"
        return [cause("FieldValueDuplicate", told, "DataVolume.Name")]
    return _check_spec(volume["spec"], "spec")


def check_cron(cron: Json, old: Json | None) -> list[Json]:
    if len(cron["metadata"].get("name", "")) > _LABEL_LIMIT:
        return [_invalid(f"Name cannot be longer than {_LABEL_LIMIT} characters", "")]
    spec = cron["spec"]
    if old is not None:
        changed = old.get("spec") != spec
        told = "Cannot update DataImportCron Spec"
        return [cause("FieldValueDuplicate", told, "DataImportCron.Spec")] if changed else []
    template = spec["template"]["spec"]
    source = template.get("source") or {}
    if "registry" not in source and "pvc" not in source:
        return [_invalid("Missing source", "spec.Template")]
    if any(template.get(name) for name in ("sourceRef", "contentType", "checkpoints", "finalCheckpoint")):
        return [_invalid("Unsettable fields: SourceRef, ContentType, Checkpoints, FinalCheckpoint", "spec.Template")]
    return _check_spec(template, "Template") or _check_terms(spec)


def _check_terms(spec: Json) -> list[Json]:
    """Schedule, retention and DataSource of a cron."""
    managed = spec.get("managedDataSource", "")
    rules = (
        (not spec.get("schedule") or _is_schedule(spec["schedule"]), "Illegal cron schedule", "spec.Schedule"),
        ((spec.get("importsToKeep") or 0) >= 0, "Illegal ImportsToKeep value", "spec.ImportsToKeep"),
        (spec.get("garbageCollect") in {None, *_COLLECTING}, "Illegal GarbageCollect value", "spec.GarbageCollect"),
        (bool(managed), "Illegal ManagedDataSource value", "spec.ManagedDataSource"),
        (len(managed) <= _LABEL_LIMIT, f"Name cannot be longer than {_LABEL_LIMIT} characters", ""),
    )
    return [_invalid(message, field) for holds, message, field in rules if not holds][:1]


def _check_spec(spec: Json, field: str) -> list[Json]:
    """Of a DataVolume, or of a cron's template."""
    kind = "pvc" if "pvc" in spec else "storage"
    if "pvc" not in spec and "storage" not in spec:
        return [_invalid("Missing Data volume PVC", f"{field}.PVC")]
    if "pvc" in spec and "storage" in spec:
        told = "Duplicate storage definition, both target storage and target pvc defined"
        return [_invalid(told, f"{field}.PVC.Storage")]
    source, reference = spec.get("source"), spec.get("sourceRef")
    cloned = bool(reference) or "pvc" in (source or {}) or "snapshot" in (source or {})
    causes = _check_size(
        spec[kind], "PVC" if kind == "pvc" else "Storage", field, optional=cloned and kind == "storage"
    )
    if causes:
        return causes
    access = spec[kind].get("accessModes") or []
    if kind == "pvc" and len(access) != 1:
        told = "PVC multiple accessModes" if access else "Required value: at least 1 access mode is required"
        return [_invalid(told, f"{field}.PVC.accessModes")]
    if bool(source) == bool(reference):
        told = "Data volume should have either Source or SourceRef, or be externally populated"
        return [_invalid(told, f"{field}.source")]
    if reference and reference.get("kind") != "DataSource":
        told = f"Unsupported sourceRef kind {reference.get('kind')}, currently only DataSource is supported"
        return [_invalid(told, f"{field}.sourceRef.Kind")]
    if source and len(source) > 1:
        return [_invalid("Multiple Data volume sources", f"{field}.source")]
    return []


def _check_size(storage: Json, name: str, field: str, *, optional: bool) -> list[Json]:
    where = f"{field}.{name}.resources.requests.size"
    size = ((storage.get("resources") or {}).get("requests") or {}).get("storage")
    if size is None:
        return [] if optional else [_invalid(f"{name} size is missing", where)]
    if whole(size) <= 0:
        return [_invalid(f"{name} size can't be equal or less than zero", where)]
    return [_invalid(f"{name} size should be at least 1MiB", where)] if whole(size) < _MEBI else []


def _is_schedule(text: str) -> bool:
    try:
        Schedule.parse(text)
    except ValueError:
        return False
    return True


def _invalid(message: str, field: str) -> Json:
    return cause("FieldValueInvalid", message, field)
