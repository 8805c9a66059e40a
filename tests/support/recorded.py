"""What a real API server and the KubeVirt controllers answered: see `recordings/README.md` for the versions and the format."""

import gzip
import json
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parent / "recordings"


def exchanges(scenario: str) -> list[dict[str, Any]]:
    """Requests and their answers, in the order in which the requests were sent."""
    with gzip.open(RECORDINGS / f"{scenario}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [line for text in lines if "note" not in (line := json.loads(text))]


def exchange(scenario: str, step: str) -> dict[str, Any]:
    """The only exchange, or the first one, that is named `step`."""
    return next(line for line in exchanges(scenario) if line["step"] == step)
