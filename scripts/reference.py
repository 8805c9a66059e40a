"""Writes the pages of docs/ that are generated from the code: settings.md and metrics.md. Run it with `make reference`."""

import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app import telemetry
from app.config import Settings

DOCS = Path(__file__).resolve().parents[1] / "docs"

_SETTINGS = """\
# Settings

Each setting is an environment variable `EMBERPOOL_<NAME>`. `emberpool serve --help` shows which of them are flags too; a flag wins over the variable. A variable that is none of these has no effect; the log says so (`setting.unknown`) where one of them may be meant. Times are in seconds.

This page is generated from `app/config.py` by `make reference`.

| name | default | meaning |
|---|---|---|
"""
_METRICS = """\
# Metrics

Each replica serves its own figures at `GET /metrics`, in the format of Prometheus, without a token. The names of labels are in braces. No label ever holds an id or a VM's name, so that the number of series is bounded.

This page is generated from `app/telemetry.py` by `make reference`.

| name | kind | meaning |
|---|---|---|
"""


def settings_page() -> str:
    """Raises ValueError if a setting has no description."""
    return _SETTINGS + "".join(_setting(name, field) for name, field in Settings.model_fields.items())


def metrics_page() -> str:
    """Every metric that is defined in `app/telemetry.py`, by name."""
    collectors = [value for value in vars(telemetry).values() if isinstance(value, MetricWrapperBase)]
    return _METRICS + "".join(sorted(_metric(collector) for collector in collectors))


def pages() -> dict[Path, str]:
    return {DOCS / "settings.md": settings_page(), DOCS / "metrics.md": metrics_page()}


def _setting(name: str, field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"the setting {name} has no description: give it a docstring")
    meaning = " ".join(field.description.split())
    choices = _choices(field.annotation)
    if choices:
        meaning += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    return f"| `{name.upper()}` | {_default(field.default)} | {meaning} |\n"


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if isinstance(annotation, UnionType):
        return [choice for each in get_args(annotation) for choice in _choices(each)]
    return [str(choice) for choice in getattr(annotation, "__members__", {}).values()]


def _default(default: object) -> str:
    if default is None or default == ():
        return "none"
    return f"`{default.get_secret_value() if isinstance(default, SecretStr) else default}`"


def _metric(collector: MetricWrapperBase) -> str:
    (family,) = collector.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = ",".join(collector._labelnames)  # noqa: SLF001  # the library has no public way to ask for them
    shown = f"{name}{{{labels}}}" if labels else name
    return f"| `{shown}` | {family.type} | {family.documentation} |\n"


def main() -> int:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
