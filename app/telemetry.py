"""Logs and metric names. Labels of metrics are bounded: never an id, a VM's name or a path with one in it."""

import logging
import sys
from typing import Literal

import structlog
from prometheus_client import Counter, Histogram

CLAIM_SECONDS = Histogram(
    "emberpool_claim_seconds",
    "POST /v1/claim, from the request's arrival to its answer, by outcome.",
    ["outcome"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
REQUESTS = Counter("emberpool_http_requests_total", "HTTP requests, by operation and status.", ["operation", "status"])
BOOT_SECONDS = Histogram(
    "emberpool_boot_seconds",
    "From asking the cluster for a VM to the VM being ready.",
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 300, 600),
)
VM_CLAIMS = Counter(
    "emberpool_vm_claims_total",
    "Claims that describe their VM, by the path that was chosen; one that is moved on counts again.",
    ["path"],
)
VM_ENDS = Counter(
    "emberpool_vm_ends_total", "VMs given up, by the state they were in and what became of them.", ["was", "became"]
)
CLUSTER_CALLS = Counter(
    "emberpool_cluster_calls_total", "Calls to the cluster, by kind and outcome.", ["call", "outcome"]
)
LOOP_ERRORS = Counter(
    "emberpool_loop_errors_total", "Steps of a worker's loop that failed for a reason nobody expected.", ["loop"]
)
ORPHANS = Counter("emberpool_orphans_total", "Objects with our label that no row knew, and that were removed.")


def configure_logs(*, level: str, form: Literal["console", "json"]) -> None:
    """Sends our events and the libraries' records to standard error, in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = (
        [
            # Without the frames' variables: among them are tokens and URLs with passwords.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
        if form == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
