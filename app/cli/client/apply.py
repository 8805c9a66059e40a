"""`emberpool apply`: applies manifests, and shows the progress if that is wanted."""

from typing import Annotated, Final

import typer

from app.cli.client.files import Files, read_files
from app.cli.client.options import DEFAULT_SERVER, OutputForm, Server, SkipUnknown, Token, connect
from app.cli.client.printing import REFUSED, Output, read_columns, show, tell
from app.cli.client.progress import watch_progress
from app.errors import EmberpoolError, FieldProblem
from emberpool.client import Client, Refused
from emberpool.client.schemas import ManifestsView

_COLUMNS: Final = read_columns(
    "KIND:kind NAME:name ACTION:action RESOURCE",
    {"RESOURCE": lambda document: document["resource"]["href"] or str(document["resource"]["type"])},
)


class ManifestsRefused(EmberpoolError):
    """With the places in the files that were given."""

    code = "service-refused"
    title = REFUSED


def apply(
    *,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            "--filename",
            help="A YAML or JSON file with any number of documents, a folder of such files, an http(s) address, or - for standard "
            "input. May be repeated.",
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-R", help="Also read the folders in a folder.")] = False,
    kustomize: Annotated[str | None, typer.Option("--kustomize", "-k", hidden=True)] = None,
    skip_unknown: SkipUnknown = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and change nothing.")] = False,
    output: OutputForm = Output.TABLE,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Wait until everything is ready, and show the progress.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Apply manifests: all documents, or none if one is refused. Applying them again changes nothing."""
    if kustomize is not None:
        raise typer.BadParameter(
            f"-k is not supported; build it with kubectl: kubectl kustomize {kustomize} | emberpool apply -f -"
        )
    if not file:
        raise typer.BadParameter("name the files to apply with -f; - is standard input")
    files = read_files(file, recursive=recursive)
    with connect(server, token) as client:
        applied = _apply(client, files, dry_run=dry_run, skip_unknown=skip_unknown)
        show(output, applied, _COLUMNS, applied["documents"])
        if output is Output.TABLE:
            _tell_notes(applied, files)
        if watch and not dry_run:
            watch_progress(client, [document["resource"]["href"] or "" for document in applied["documents"]])


def _apply(client: Client, files: Files, *, dry_run: bool, skip_unknown: bool) -> ManifestsView:
    try:
        return client.apply_manifests(files.body(), dry_run=dry_run or None, skip_unknown=skip_unknown or None)
    except Refused as error:
        if error.code != "manifest-refused" or not error.problems:
            raise ManifestsRefused(files.locate(error.detail)) from error
        first = error.detail.partition(". ")[0]
        told = "".join(f"\n  {files.tell(FieldProblem(*problem))}" for problem in error.problems)
        raise ManifestsRefused(f"{first}:{told}") from error


def _tell_notes(applied: ManifestsView, files: Files) -> None:
    for document in applied["documents"]:
        for note in document["notes"]:
            tell(f"{document['kind']} {document['name']}: {files.locate(note)}.")
    for skipped in applied["skipped"]:
        tell(f"{skipped['kind']} {skipped['name']}: passed over, as the service does not apply this kind.")
    if applied["dry_run"]:
        tell("Nothing was changed: this was a dry run.")
