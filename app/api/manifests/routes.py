"""Applies Kubernetes-style manifests: several documents in one body, all of them or none."""

from functools import partial
from importlib import resources
from typing import Annotated, Final, Self

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from app.api.bodies import in_thread
from app.api.dependencies import Svc
from app.api.problems import CLUSTER_ERRORS, responses
from app.api.views import View
from app.errors import ManifestRefused
from app.manifests.documents import read_documents
from app.manifests.requests import Resource
from app.manifests.translate import Skipped
from app.services.manifests.service import Applied
from app.services.writes import WriteOutcome

PATH: Final = "/v1/manifests"
BYTES: Final = "application/octet-stream"
YAML_TYPES: Final = ("application/yaml", "text/yaml", "application/x-yaml", BYTES)
_JSON: Final = "application/json"
_EXAMPLES: Final = resources.files(__package__) / "examples"
_BODY: Final = {
    "required": True,
    "content": {
        _JSON: {
            "schema": {
                "type": "object",
                "additionalProperties": True,
                "description": "One document, or a List of them.",
            }
        },
        BYTES: {
            "schema": {"type": "string", "format": "binary", "description": "Documents in YAML, or in JSON."},
            "examples": {
                "pool": {"summary": "A pool", "value": (_EXAMPLES / "pool.yaml").read_text()},
                "snapshot": {
                    "summary": "A snapshot, and a VM that starts from it",
                    "value": (_EXAMPLES / "snapshot.yaml").read_text(),
                },
            },
        },
    },
}
"""YAML has types of its own, but the generators of clients know only this one for a body that is no JSON."""
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


class SkippedDocument(View):
    """A document that was passed over."""

    document: str = Field(description="The position of the document in the body.")
    kind: str
    name: str = Field(description="Its `metadata.name`; empty if it has none.")

    @classmethod
    def of(cls, skipped: Skipped) -> Self:
        return cls.from_row(skipped, document=skipped.path)


class ManifestsView(BaseModel):
    dry_run: bool
    documents: list[AppliedDocument]
    skipped: list[SkippedDocument] = Field(
        description="With `skip_unknown`: the documents of kinds that the service does not apply."
    )


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
    skip_unknown: Annotated[
        bool,
        Query(description="Pass over documents of kinds that the service does not apply, such as Secret or Service."),
    ] = False,
) -> ManifestsView:
    """Applies documents of kind VirtualMachinePool, VirtualMachineSnapshot, VirtualMachine, DataVolume and DataImportCron.
    YAML may be sent as `application/yaml` or as `application/octet-stream`.

    All documents are checked before the first is applied, by the service's own rules and by a dry run in the cluster. If one is
    refused, nothing is changed, and `errors` names each document, field and reason. Documents may refer to each other in any
    order. The same body again changes nothing, and each `action` is `unchanged`.

    A VirtualMachine becomes a claim with the label `name`. Unless the manifest sets a lease, it is the longest that the serving
    pool gives, or 30 days if the VM is made for the claim. Until the claim ends, the VM is not changed in place. Annotations `emberpool.io/<setting>` set what a manifest has no field for. For a pool:
    every field of its spec (`max-vms`, `warm-when`, `placement` as JSON, ...). For a VirtualMachine: `lease-seconds`, `warm-when`,
    `paths`, `deadline-seconds`, `remember`, `placement` and `allow-unschedulable`. For both: `start-from-snapshot` and `start-from-preload`. For a
    snapshot: `source-pool`, `quiesce`, `refresh`, `keep` and `timeout-seconds`. For a DataVolume: `schedule`, `keep` and
    `ttl-seconds`.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    documents = await in_thread(partial(read_documents, body, only_json=kind == _JSON))
    result = await svc.manifests.apply(documents, dry_run=dry_run, skip_unknown=skip_unknown)
    return ManifestsView(
        dry_run=dry_run,
        documents=[AppliedDocument.of(each) for each in result.applied],
        skipped=[SkippedDocument.of(each) for each in result.skipped],
    )
