"""Several documents at once: all are checked before the first is applied, and one that is refused refuses them all."""

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.domain.preloads import PreloadSpec
from app.errors import EmberpoolError, FieldProblem, InvalidRequest, ManifestRefused, Unavailable, Unschedulable
from app.manifests.documents import Document
from app.manifests.fields import suggest
from app.manifests.links import link, names_of_volumes
from app.manifests.requests import Reference, Resource, Wish
from app.manifests.translate import order, translate
from app.manifests.vocabulary import TEMPLATE_WORDS

_SERVER_ERRORS = 500
_TOLD = 5
log = structlog.get_logger(__name__)
_Model = TypeVar("_Model", bound=BaseModel)


class Action(StrEnum):
    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes, or would become, of one document. `href` is where to look at it; None: it is not there yet."""

    action: Action
    href: str | None
    state: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    wish: Wish
    outcome: Outcome


class Handler(Protocol):
    """Fulfils the wishes for one kind of resource. Errors name fields of the wish's `body`, dotted."""

    async def check(self, wish: Wish, coming: Mapping[Reference, Wish]) -> Outcome:
        """What `fulfil` would do, found out without changing anything. Raises what speaks against it.

        `coming`: what the other documents make before this one is fulfilled, and so may be referred to.
        """
        ...

    async def fulfil(self, wish: Wish) -> Outcome: ...


Preloads = Mapping[str, PreloadSpec]


class ManifestService:
    """Bodies of manifests. `find_preloads` gives those of the names that are there, for VMs that use their volumes."""

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

    async def apply(self, documents: Sequence[Document], *, dry_run: bool) -> list[Applied]:
        """Makes everything what the documents say, in the order of their references; gives it in the order of the documents.

        Raises ManifestRefused with every problem of every document, and nothing is changed then. What cannot be known
        before, such as a cluster that goes away in between, is raised as what it is, and says what was applied until then.
        """
        wishes, problems = translate(documents, namespace=self._namespace)
        ordered, circle = order(await self._link(wishes))
        problems += circle
        coming: dict[Reference, Wish] = {}
        unsound: set[Reference] = set()
        found: list[Applied] = []
        for wish in ordered:
            if (
                not wish.sound or wish.needs.keys() & unsound
            ):  # what it needs is refused: what it would say of that, its author knows
                unsound.add(wish.key)
                continue
            try:
                found.append(Applied(wish, await self._handlers[wish.resource].check(wish, coming)))
            except EmberpoolError as error:
                problems += _problems(wish, error)
                unsound.add(wish.key)
            coming[wish.key] = wish
        if problems:
            raise _refusal(problems, documents)
        if not dry_run:
            found = await self._fulfil(ordered)
        position = {document.path: number for number, document in enumerate(documents)}
        return sorted(found, key=lambda applied: position[applied.wish.document.path])

    async def _link(self, wishes: Sequence[Wish]) -> list[Wish]:
        """With the volumes of VMs that name a preload made from it; one of this very body comes before one that is there."""
        names = frozenset[str]().union(*(names_of_volumes(wish) for wish in wishes))
        if not names:
            return list(wishes)
        preloads = dict(await self._find_preloads(names))
        for wish in wishes:
            if wish.resource is Resource.PRELOAD and wish.name in names:
                with contextlib.suppress(InvalidRequest):  # its own check says what is wrong with it
                    preloads[wish.name] = validated(wish, PreloadSpec)
        return [link(wish, preloads, namespace=self._namespace) for wish in wishes]

    async def _fulfil(self, wishes: Sequence[Wish]) -> list[Applied]:
        done: list[Applied] = []
        for wish in wishes:
            try:
                outcome = await self._handlers[wish.resource].fulfil(wish)
            except EmberpoolError as error:
                raise _broken_off(wish, error, done) from error
            done.append(Applied(wish, outcome))
            if outcome.action is not Action.UNCHANGED:
                log.info("manifest.applied", kind=wish.kind, name=wish.name, action=outcome.action)
        return done


def validated(wish: Wish, model: type[_Model]) -> _Model:
    """The wish's body as the API's own model of it. Raises InvalidRequest."""
    try:
        return model.model_validate(wish.body)
    except ValidationError as error:
        problems = [FieldProblem(".".join(map(str, each["loc"])), _sentence(each)) for each in error.errors()]
        raise InvalidRequest("the manifest is not valid", problems=problems) from error


def _problems(wish: Wish, error: EmberpoolError) -> Iterator[FieldProblem]:
    """The error in the words of the document. Raises it where it says nothing of the document."""
    if error.status >= _SERVER_ERRORS and not error.problems:
        raise _elsewhere(wish, error) from error
    if not error.problems:
        yield wish.problem("", error.detail)
    for problem in error.problems:
        place, message = problem.field, problem.message
        if isinstance(error, Unschedulable) and place == "placement" and "placement" not in wish.body:
            place = "vm" if wish.resource is Resource.CLAIM else "template"  # there it asks for what no node has
        yield wish.problem(place, message + _hint(place, message))


def _hint(place: str, message: str) -> str:
    """What a field that the cluster does not know may have been meant to be."""
    if "unknown field" not in message:
        return ""
    meant = suggest(place.rpartition(".")[2], TEMPLATE_WORDS)
    return f"; did you mean `{meant}`?" if meant is not None else ""


def _refusal(problems: Sequence[FieldProblem], documents: Sequence[Document]) -> ManifestRefused:
    named = "; ".join(f"{problem.field}: {problem.message}" for problem in problems[:_TOLD])
    more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
    refused = sum(any(f"{each.field}.".startswith(f"{document.path}.") for each in problems) for document in documents)
    which = "The document is" if len(documents) == 1 else f"{refused} of {len(documents)} documents {_is(refused)}"
    return ManifestRefused(f"{which} refused, and nothing was changed. {named}{more}", problems=problems)


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _elsewhere(wish: Wish, error: EmberpoolError) -> EmberpoolError:
    """Of a check: the reason lies not with the document."""
    return type(error)(
        f"{wish.document.path} could not be checked, and nothing was changed: {error.detail}",
        retry_after=error.retry_after,
    )


def _broken_off(wish: Wish, error: EmberpoolError, done: Collection[Applied]) -> EmberpoolError:
    """Of an application that had begun."""
    before = ", ".join(f"{applied.wish.document.path} ({applied.outcome.action})" for applied in done)
    told = f"{before} {_was(len(done))} applied before" if done else "nothing was applied before"
    again = "apply the whole again once it can be" if isinstance(error, Unavailable) else "apply the whole again"
    return type(error)(
        f"{wish.document.path} could not be applied: {error.detail}; {told}, and {again}: what is there stays unchanged",
        problems=[wish.problem(problem.field, problem.message) for problem in error.problems],
        retry_after=error.retry_after,
    )


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _sentence(found: ErrorDetails) -> str:
    message = found["msg"].removeprefix("Value error, ")
    match found["type"]:
        case "extra_forbidden":
            return "there is no such field"
        case "missing":
            return "is missing"
    given = found.get("input")
    return f"{message}; it is {given!r}" if isinstance(given, str | int | float) and "should" in message else message
