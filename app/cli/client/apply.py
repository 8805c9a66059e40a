"""`emberpool apply`: applies manifests, and shows the progress if that is wanted."""

from typing import Annotated, Final

import typer

from app.cli.client.files import read_file
from app.cli.client.options import OutputForm, Server, Token, connect
from app.cli.client.printing import Output, read_columns, show, tell
from app.cli.client.progress import watch_progress
from app.cli.client.service import DEFAULT_SERVER

_COLUMNS: Final = read_columns(
    "KIND:kind NAME:name ACTION:action RESOURCE",
    {"RESOURCE": lambda document: document["resource"]["href"] or str(document["resource"]["type"])},
)


def apply(
    *,
    file: Annotated[
        str, typer.Option("--file", "-f", help="A YAML file with any number of documents; -: standard input.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and change nothing.")] = False,
    output: OutputForm = Output.TABLE,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Wait until everything is ready, and show the progress.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Apply manifests: all documents, or none if one is refused. Applying them again changes nothing."""
    body = read_file(file)
    with connect(server, token) as service:
        applied = service.ask(
            "POST",
            "/v1/manifests",
            content=body,
            params={"dry_run": "true"} if dry_run else {},
            headers={"Content-Type": "application/yaml"},
        )
        show(output, applied, _COLUMNS, applied["documents"])
        if output is Output.TABLE:
            for document in applied["documents"]:
                for note in document["notes"]:
                    tell(f"{document['kind']} {document['name']}: {note}.")
            if dry_run:
                tell("Nothing was changed: this was a dry run.")
        if watch and not dry_run:
            watch_progress(service, [document["resource"]["href"] for document in applied["documents"]])
