"""Applies several documents together: all are prepared before the first is committed, and one refusal refuses them all."""

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.domain.fields import suggest
from app.domain.preloads import PreloadSpec
from app.domain.sentences import describe_invalid
from app.errors import (
    EmberpoolError,
    FieldProblem,
    InvalidRequest,
    ManifestRefused,
    Unavailable,
    Unschedulable,
    list_problems,
)
from app.manifests.documents import Document
from app.manifests.links import by_data_source, link, link_sources, names_of_volumes
from app.manifests.requests import Reference, Resource, ResourceRequest
from app.manifests.translate import Skipped, order, translate
from app.manifests.vocabulary import TEMPLATE_WORDS
from app.services.writes import Overtaken, WriteOutcome, prepare_and_commit

_SERVER_ERRORS: Final = 500
_MOST_HINTS: Final = 20
"""Of one document: to find a word that is like another one takes long, and nobody is told more problems."""
log = structlog.get_logger(__name__)
_Model = TypeVar("_Model", bound=BaseModel)
_Plan = TypeVar("_Plan")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one document. `href` is the path of its resource; None if the resource does not exist yet."""

    action: WriteOutcome
    href: str | None
    state: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    request: ResourceRequest
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Result:
    """The results in the order of the documents, and the documents that were passed over."""

    applied: list[Applied]
    skipped: list[Skipped]


@dataclass(frozen=True, slots=True)
class Prepared(Applied, Generic[_Plan]):
    """A document that was checked. `plan` is what `commit` writes; `outcome` is the result, were it committed now."""

    plan: _Plan


Coming = Mapping[Reference, Prepared[Any]]
"""What the documents before this one will have made when it is committed; it may refer to them."""
Preloads = Mapping[str, PreloadSpec]


class Handler(Protocol):
    """Prepares and commits the requests for one kind of resource. Errors name fields of the request's `body`, dotted."""

    async def prepare(self, request: ResourceRequest, coming: Coming) -> Prepared[Any]:
        """Checks the request without changing anything. Raises the reason if it cannot be committed."""
        ...

    async def commit(self, prepared: Prepared[Any]) -> Outcome:
        """Writes what was prepared, with no further expansion and no further dry run. Raises Overtaken."""
        ...


class ManifestService:
    """Applies the documents of one request body.

    `find_preloads` returns the existing preloads that have one of the given names, or a DataSource of such a name, the oldest
    first: for VMs that use their volumes.
    """

    def __init__(
        self,
        handlers: Mapping[Resource, Handler],
        find_preloads: Callable[[Collection[str]], Awaitable[Preloads]],
        *,
        namespace: str,
    ) -> None:
        self._handlers = handlers
        self._find_preloads = find_preloads
        self._namespace = namespace

    async def apply(self, documents: Sequence[Document], *, dry_run: bool, skip_unknown: bool = False) -> Result:
        """Commits the documents in the order of their references. `skip_unknown`: see `translate`.

        Raises ManifestRefused with every problem of every document; nothing is changed then. An error that nobody could foresee,
        such as a cluster that becomes unavailable meanwhile, is raised as itself, and its text says what was applied before it.
        """
        translated = translate(documents, namespace=self._namespace, skip_unknown=skip_unknown)
        ordered, circle = order(await self._link(translated.requests))
        plans, refused = await self._prepare(ordered)
        problems = [*translated.problems, *circle, *refused]
        if problems:
            raise _refusal(problems, documents)
        applied: Sequence[Applied] = plans if dry_run else await self._commit(plans)
        position = {document.path: number for number, document in enumerate(documents)}
        in_order = sorted(applied, key=lambda each: position[each.request.document.path])
        return Result(in_order, translated.skipped)

    async def _link(self, requests: Sequence[ResourceRequest]) -> list[ResourceRequest]:
        """Replaces volumes that name a preload by clones of it; a preload of this body is preferred to an existing one."""
        names = frozenset[str]().union(*(names_of_volumes(request) for request in requests))
        if not names:
            return list(requests)
        preloads = dict(await self._find_preloads(names))
        for request in requests:
            if request.resource is Resource.PRELOAD and {request.name, request.body.get("data_source")} & names:
                preloads.pop(request.name, None)  # it is the newest now
                with contextlib.suppress(InvalidRequest):  # preparing it reports what is wrong with it
                    preloads[request.name] = validated(request, PreloadSpec)
        sources = by_data_source(preloads)
        linked = [link(request, preloads, namespace=self._namespace) for request in requests]
        return [link_sources(request, sources, namespace=self._namespace) for request in linked]

    async def _prepare(self, ordered: Sequence[ResourceRequest]) -> tuple[list[Prepared[Any]], list[FieldProblem]]:
        prepared: dict[Reference, Prepared[Any]] = {}
        problems: list[FieldProblem] = []
        refused: set[Reference] = set()
        for request in ordered:
            if not request.valid or request.references.keys() & refused:
                # Where what it refers to is refused, a further problem would tell its author nothing new.
                refused.add(request.key)
                continue
            try:
                prepared[request.key] = await self._handlers[request.resource].prepare(request, prepared)
            except EmberpoolError as error:
                problems += _problems(request, error)
                refused.add(request.key)
        return list(prepared.values()), problems

    async def _commit(self, plans: Sequence[Prepared[Any]]) -> list[Applied]:
        done: list[Applied] = []
        for prepared in plans:
            request = prepared.request
            try:
                outcome = await self._commit_one(prepared)
            except EmberpoolError as error:
                raise _interrupted(request, error, done) from error
            done.append(Applied(request, outcome))
            if outcome.action is not WriteOutcome.UNCHANGED:
                log.info("manifest.applied", kind=request.kind, name=request.name, action=outcome.action)
        return done

    async def _commit_one(self, prepared: Prepared[Any]) -> Outcome:
        handler = self._handlers[prepared.request.resource]
        try:
            return await handler.commit(prepared)
        except Overtaken:  # everything that it refers to has been committed by now
            return await prepare_and_commit(lambda: handler.prepare(prepared.request, {}), handler.commit)


def validated(request: ResourceRequest, model: type[_Model]) -> _Model:
    """The request's body as the API's own model of it. Raises InvalidRequest."""
    try:
        return model.model_validate(request.body)
    except ValidationError as error:
        problems = [FieldProblem(".".join(map(str, each["loc"])), _sentence(each)) for each in error.errors()]
        raise InvalidRequest("the manifest is not valid", problems=problems) from error


def _problems(request: ResourceRequest, error: EmberpoolError) -> Iterator[FieldProblem]:
    """The error as problems of the document's fields. Raises it if the document is not the cause."""
    if error.status >= _SERVER_ERRORS and not error.problems:
        raise type(error)(
            f"{request.document.path} could not be checked, and nothing was changed: {error.detail}",
            retry_after=error.retry_after,
        ) from error
    if not error.problems:
        yield request.problem("", error.detail)
    if isinstance(error, Unschedulable):
        # Its problems are what each node lacks, which says nothing without the sentence around them.
        place = error.problems[0].field
        if place == "placement" and "placement" not in request.body:
            place = "vm" if request.resource is Resource.CLAIM else "template"
        yield request.problem(place, error.detail)
        return
    for number, problem in enumerate(error.problems):
        hint = _hint(problem.field, problem.message) if number < _MOST_HINTS else ""
        yield request.problem(problem.field, problem.message + hint)


def _hint(place: str, message: str) -> str:
    """A suggestion for a field that the cluster does not know."""
    if "unknown field" not in message:
        return ""
    parent, _, word = place.rpartition(".")
    meant = suggest(word, TEMPLATE_WORDS)
    if meant == word:
        return f": `{word}` is a field, but not of {parent.rpartition('.')[2]}"
    return f"; did you mean `{meant}`?" if meant is not None else ""


def _refusal(problems: Sequence[FieldProblem], documents: Sequence[Document]) -> ManifestRefused:
    refused = sum(any(f"{each.field}.".startswith(f"{document.path}.") for each in problems) for document in documents)
    several = f"{refused} of {len(documents)} documents {'is' if refused == 1 else 'are'}"
    which = "The document is" if len(documents) == 1 else several
    return ManifestRefused(f"{which} refused, and nothing was changed. {list_problems(problems)}", problems=problems)


def _interrupted(request: ResourceRequest, error: EmberpoolError, done: Collection[Applied]) -> EmberpoolError:
    """For an error after the first document was committed, or might have been."""
    before = ", ".join(f"{applied.request.document.path} ({applied.outcome.action})" for applied in done)
    told = f"{before or 'nothing'} {'were' if len(done) > 1 else 'was'} applied before it"
    when = " once the service can reach what it needs" if isinstance(error, Unavailable) else ""
    return type(error)(
        f"{request.document.path} could not be applied: {error.detail}; {told}. Apply the whole body again{when}: "
        "what exists already stays unchanged",
        problems=[request.problem(problem.field, problem.message) for problem in error.problems],
        retry_after=error.retry_after,
    )


def _sentence(found: ErrorDetails) -> str:
    match found["type"]:
        case "extra_forbidden":
            return "is not a known field"
        case "missing":
            return "is missing"
    return describe_invalid(found)
