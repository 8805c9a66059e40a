"""Kubernetes-style manifests: many documents in one body, all of them or none."""

import asyncio
from importlib import resources
from typing import Annotated, Final, Self

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from app.api.dependencies import Services, services
from app.api.problems import responses
from app.errors import (
    BodyTooLarge,
    ClusterError,
    ClusterForbidden,
    ClusterUnavailable,
    DatabaseUnavailable,
    InvalidRequest,
    MalformedBody,
    ManifestRefused,
    UnsupportedMediaType,
)
from app.manifests.documents import read_json, read_yaml
from app.manifests.requests import Resource
from app.services.manifests.service import Applied
from app.services.writes import WriteOutcome

PATH: Final = "/v1/manifests"
YAML_TYPES: Final = ("application/yaml", "text/yaml", "application/x-yaml")
_JSON: Final = "application/json"
_EXAMPLES: Final = resources.files(__package__) / "examples"
_BODY: Final = {
    "required": True,
    "content": {
        YAML_TYPES[0]: {
            "schema": {"type": "string"},
            "examples": {
                "pool": {"summary": "A pool", "value": (_EXAMPLES / "pool.yaml").read_text()},
                "snapshot": {
                    "summary": "A snapshot, and a VM that starts from it",
                    "value": (_EXAMPLES / "snapshot.yaml").read_text(),
                },
            },
        },
        _JSON: {"schema": {"type": "object", "description": "One document, or a List of them."}},
    },
}
router = APIRouter(tags=["manifests"])


class Became(BaseModel):
    """What the document is here."""

    resource: Resource
    name: str = Field(description="Of a VirtualMachine: the claim's label `name`.")
    href: str | None = Field(description="Where to look at it. null: it is not there yet.")
    state: str | None = Field(description="Of a claim, a snapshot or a preload: how it stands.")


class AppliedView(BaseModel):
    document: str = Field(description="Where it stands in the body.")
    kind: str
    name: str
    action: WriteOutcome = Field(description="With `dry_run`: what would be done.")
    became: Became
    notes: list[str] = Field(description="What was translated, and how; what was left out, and why.")

    @classmethod
    def of(cls, applied: Applied) -> Self:
        request, outcome = applied.request, applied.outcome
        return cls(
            document=request.document.path,
            kind=request.kind,
            name=request.name,
            action=outcome.action,
            became=Became(resource=request.resource, name=request.name, href=outcome.href, state=outcome.state),
            notes=[*request.notes, *outcome.notes],
        )


class ManifestsView(BaseModel):
    dry_run: bool
    documents: list[AppliedView]


@router.post(
    PATH,
    operation_id="applyManifests",
    summary="Make what Kubernetes-style manifests ask for",
    response_description="Each document, what was done for it, and what it became",
    openapi_extra={"requestBody": _BODY},
    responses=responses(
        *(ManifestRefused, InvalidRequest, MalformedBody, BodyTooLarge, UnsupportedMediaType),
        *(ClusterUnavailable, ClusterForbidden, ClusterError, DatabaseUnavailable),
    ),
)
async def apply(
    request: Request,
    svc: Annotated[Services, Depends(services)],
    *,
    dry_run: Annotated[bool, Query(description="Check everything, and change nothing.")] = False,
) -> ManifestsView:
    """VirtualMachinePool, VirtualMachineSnapshot, VirtualMachine, DataVolume and DataImportCron, as users write them. All
    documents are checked before the first is applied, by our own rules and by the cluster's dry run: where one is refused,
    nothing is changed, and `errors` names each document, field and reason. They may refer to each other in any order. The
    same body again changes nothing, and says `unchanged`.

    A VirtualMachine becomes a claim with the label `name`, for 30 days where it does not say otherwise; while that lasts the VM
    is not changed in place. What a manifest has no field for is set by annotations `emberpool.io/<setting>`: of a pool every
    field of its spec (`max-vms`, `warm-when`, `placement` as JSON, ...); of a VirtualMachine `lease-seconds`, `warm-when`, `paths`,
    `deadline-seconds`, `remember`, `placement`; of both `start-from-snapshot` and `start-from-preload`; of a snapshot `source-pool`,
    `quiesce`, `refresh`, `keep`, `timeout-seconds`; of a DataVolume `schedule`, `keep`, `ttl-seconds`.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    documents = await asyncio.to_thread(read_json if kind == _JSON else read_yaml, body)
    applied = await svc.manifests.apply(documents, dry_run=dry_run)
    return ManifestsView(dry_run=dry_run, documents=[AppliedView.of(each) for each in applied])
