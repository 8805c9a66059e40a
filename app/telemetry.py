"""Logs and metric names. Labels of metrics are bounded: never an id, a VM's name or a path with one in it."""

import logging
import sys
from typing import Literal

import structlog
from prometheus_client import Counter, Gauge, Histogram

CLAIM_SECONDS = Histogram(
    "emberpool_claim_seconds",
    "Seconds from the arrival of POST /v1/claim to its answer. Outcome: warm, waited, handed-over, pending, replayed, ended, disconnected, or the code of the error.",
    ["outcome"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
REQUESTS = Counter(
    "emberpool_http_requests_total", "HTTP requests, by operation id and status code.", ["operation", "status"]
)
CONNECTIONS = Gauge("emberpool_http_connections", "Open connections of clients, as of the last second.")
BOOT_SECONDS = Histogram(
    "emberpool_boot_seconds",
    "Seconds from asking the cluster for a VM until the VM is ready.",
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 300, 600),
)
VM_CLAIMS = Counter(
    "emberpool_vm_claims_total",
    "Claims that describe their VM, by the path that was chosen. A claim that moves on to another path counts again.",
    ["path"],
)
VM_ENDS = Counter(
    "emberpool_vm_ends_total",
    "VMs that the service gave up, by the state they were in. Became: failed, or lost if the cluster no longer had them.",
    ["was", "became"],
)
CLUSTER_CALLS = Counter(
    "emberpool_cluster_calls_total", "Calls to the cluster. Outcome: ok, or the code of the error.", ["call", "outcome"]
)
HANDOVER_SECONDS = Histogram(
    "emberpool_handover_seconds",
    "Seconds from the moment a claim has its VM until the VM's guest first has what the claim hands over.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
HANDOVER_FAILURES = Counter(
    "emberpool_handover_failures_total",
    "Hand-overs that failed. Reason: hook-failed, hook-timeout, interrupted, conflict or unreadable.",
    ["reason"],
)
GUESTS_WAITING = Gauge("emberpool_guests_waiting", "Guests that wait in this process, as of the last second.")
GUESTS_REFUSED = Counter(
    "emberpool_guests_refused_total", "Requests of guests that were refused, by the code of the error.", ["reason"]
)
EVENT_STREAMS = Gauge("emberpool_event_streams", "Event streams that this process serves now.")
EVENT_STREAMS_REFUSED = Counter(
    "emberpool_event_streams_refused_total",
    "Event streams that were refused because the process served EMBERPOOL_MAX_EVENT_STREAMS already.",
)
CONSOLE_STREAMS = Gauge("emberpool_console_streams", "Console logs that this process reads now.")
CONSOLE_STREAMS_REFUSED = Counter(
    "emberpool_console_streams_refused_total",
    "Console logs that were refused because the process read EMBERPOOL_MAX_CONSOLE_STREAMS already.",
)
BACKGROUND_WAITS = Counter(
    "emberpool_background_waits_total",
    "Attempts of a part in the background that failed because of the database or the cluster. The part tries again.",
    ["part"],
)
LOOP_ERRORS = Counter(
    "emberpool_loop_errors_total",
    "Steps of a loop in the background that failed unexpectedly. It should stay at 0.",
    ["loop"],
)
ORPHANS = Counter(
    "emberpool_orphans_total", "VMs with this installation's label that no row knew, and that were removed."
)
ORPHANS_HELD = Gauge(
    "emberpool_orphans_held",
    "Objects with this installation's label that no row knows, and that are not removed until an operator decides, by kind.",
    ["kind"],
)
FOREIGN_OBJECTS = Gauge(
    "emberpool_foreign_objects",
    "Objects with this installation's label that carry another installation's id, and are left alone, by kind.",
    ["kind"],
)
INSTALLATION_WAITS = Gauge(
    "emberpool_installation_waits",
    "1 while nothing is done in the cluster until an operator has decided whose the VMs are. Told by the leading worker.",
)


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
