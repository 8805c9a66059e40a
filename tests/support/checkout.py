"""Where the checkout is that these tests look at, and the tools that came with the tests' dependencies."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent  # not resolved: in a virtual environment the interpreter is a link out of it
# Manifests of users: written before this project was, for what KubeVirt itself would not take.
USER_MANIFESTS = Path(__file__).parent / "manifests"
