"""Applies Kubernetes-style manifests: several documents in one body, all of them or none."""

import asyncio
from importlib import resources
from typing import Annotated, Final, Self

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from app.api.dependencies import Svc
from app.api.problems import CLUSTER_ERRORS, responses
from app.errors import ManifestRefused
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


class AppliedResource(BaseModel):
    """The resource that the document describes."""

    type: Resource
    name: str = Field(description="The name of the resource. For a claim: its label `name`.")
    href: str | None = Field(description="The path of the resource; null if it does not exist yet.")
    state: str | None = Field(description="The state of a claim, snapshot or preload.")


class AppliedDocument(BaseModel):
    document: str = Field(description="The position of the document in the body.")
    kind: str
    name: str
    action: WriteOutcome = Field(description="What was done; with `dry_run`, what would be done.")
    resource: AppliedResource
    notes: list[str] = Field(description="How the document was translated, and what was ignored and why.")

    @classmethod
    def of(cls, applied: Applied) -> Self:
        request, outcome = applied.request, applied.outcome
        return cls(
            document=request.document.path,
            kind=request.kind,
            name=request.name,
            action=outcome.action,
            resource=AppliedResource(type=request.resource, name=request.name, href=outcome.href, state=outcome.state),
            notes=[*request.notes, *outcome.notes],
        )


class ManifestsView(BaseModel):
    dry_run: bool
    documents: list[AppliedDocument]


@router.post(
    PATH,
    operation_id="applyManifests",
    summary="Apply Kubernetes-style manifests",
    response_description="Each document, what was done, and the resource that it describes",
    openapi_extra={"requestBody": _BODY},
    responses=responses(ManifestRefused, *CLUSTER_ERRORS),
)
async def apply(
    request: Request,
    svc: Svc,
    *,
    dry_run: Annotated[bool, Query(description="Check everything, and change nothing.")] = False,
) -> ManifestsView:
    """Applies documents of kind VirtualMachinePool, VirtualMachineSnapshot, VirtualMachine, DataVolume and DataImportCron.

    All documents are checked before the first is applied, by the service's own rules and by a dry run in the cluster. If one is
    refused, nothing is changed, and `errors` names each document, field and reason. Documents may refer to each other in any
    order. The same body again changes nothing, and each `action` is `unchanged`.

    A VirtualMachine becomes a claim with the label `name`. Its lease is 30 days unless the manifest sets another; until the claim
    ends, the VM is not changed in place. Annotations `emberpool.io/<setting>` set what a manifest has no field for. For a pool:
    every field of its spec (`max-vms`, `warm-when`, `placement` as JSON, ...). For a VirtualMachine: `lease-seconds`, `warm-when`,
    `paths`, `deadline-seconds`, `remember` and `placement`. For both: `start-from-snapshot` and `start-from-preload`. For a
    snapshot: `source-pool`, `quiesce`, `refresh`, `keep` and `timeout-seconds`. For a DataVolume: `schedule`, `keep` and
    `ttl-seconds`.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    documents = await asyncio.to_thread(read_json if kind == _JSON else read_yaml, body)
    applied = await svc.manifests.apply(documents, dry_run=dry_run)
    return ManifestsView(dry_run=dry_run, documents=[AppliedDocument.of(each) for each in applied])
