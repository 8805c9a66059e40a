"""`emberpool guests`: the guests of the dev cluster that `emberpool up` runs, and how each is reached from this machine."""

from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
import yaml

from app.cli.client.options import OutputForm
from app.cli.client.printing import Json, Output, read_columns, show, tell
from app.embedded.folder import EmbeddedError, default_data_dir, kubeconfig_in

_INSTANCES: Final = "/apis/kubevirt.io/v1/virtualmachineinstances"
_ANNOTATIONS: Final = "guests.emberpool.io/"
_TIMEOUT_SECONDS: Final = 10.0
_COLUMNS: Final = read_columns(
    "NAME:name STATE:state ADDRESS:address SSH:ssh MEMORY:memory NODE:node BOOT:boot NOTES:notes"
)


class NoDevCluster(EmbeddedError):
    code = "no-dev-cluster"
    title = "There is no dev cluster to ask"


def guests(
    *,
    data_dir: Annotated[
        Path | None, typer.Option(help="The data folder of `emberpool up`.", show_default=str(default_data_dir()))
    ] = None,
    output: OutputForm = Output.TABLE,
) -> None:
    """List the guests of the dev cluster that `up` runs, and how each is reached from this machine."""
    found = [_describe(vmi) for vmi in _read_instances((data_dir or default_data_dir()).expanduser().resolve())]
    if output is Output.TABLE and not found:
        tell("No guest runs.")
    else:
        show(output, {"items": found}, _COLUMNS, found)


def _read_instances(folder: Path) -> list[Json]:
    """Raises NoDevCluster."""
    path = kubeconfig_in(folder)
    try:
        (cluster,) = yaml.safe_load(path.read_text(encoding="utf-8"))["clusters"]
    except OSError as error:
        raise NoDevCluster(f"{folder} is no data folder of a dev cluster: start one with `emberpool up`") from error
    address = str(cluster["cluster"]["server"])
    try:
        # It runs on this machine: a proxy from the environment must not be used.
        with httpx.Client(base_url=address, timeout=_TIMEOUT_SECONDS, trust_env=False) as http:
            answer = http.get(_INSTANCES)
            answer.raise_for_status()
            items: list[Json] = answer.json()["items"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise NoDevCluster(
            f"the dev cluster of {folder} does not run ({address}: {error}); start it with `emberpool up`"
        ) from error
    return items


def _describe(vmi: Json) -> Json:
    """A row. `ssh` is where the guest's SSH server answers on this machine."""
    metadata, status = vmi["metadata"], vmi.get("status") or {}
    told = {
        key.removeprefix(_ANNOTATIONS): value
        for key, value in (metadata.get("annotations") or {}).items()
        if key.startswith(_ANNOTATIONS)
    }
    interfaces = status.get("interfaces") or [{}]
    return {
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "state": status.get("phase"),
        "address": interfaces[0].get("ipAddress"),
        "ssh": told.get("ssh"),
        "memory": (status.get("memory") or {}).get("guestCurrent"),
        "node": status.get("nodeName"),
        "boot": told.get("boot"),
        "notes": told.get("notes"),
    }
