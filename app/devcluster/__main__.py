"""`python -m app.devcluster`: serve a dev cluster until SIGTERM or SIGINT."""

import argparse
import asyncio
import json
import secrets
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import structlog

from app.devcluster.apiserver.quantities import is_quantity, whole
from app.devcluster.cluster import DevCluster
from app.devcluster.config import DevClusterConfig
from app.devcluster.durations import DEFAULT_COLD_BOOT_SECONDS, Durations
from app.devcluster.guests.choosing import KINDS, GuestsUnavailable, choose_guests
from app.devcluster.guests.settings import RealGuests
from app.devcluster.nodes.image_cache import IMAGE_CACHE_SLOTS
from app.devcluster.nodes.node_shapes import SHAPE_FIELDS, NodeShape, change_shape, parse_shape


def main(arguments: list[str] | None = None) -> int:
    options, config = parse(arguments)
    # Standard output has lines of JSON only: how far the start has come, then where the cluster listens, or why it cannot.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        asyncio.run(_serve(config, options))
    except GuestsUnavailable as error:
        _say(error=str(error))
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, DevClusterConfig]:
    """The options, and the cluster they describe. Exits with a message where they make no sense."""
    parser = _parser()
    options = parser.parse_args(arguments)
    shape = NodeShape(
        cpu=options.node_cpu,
        memory=options.node_memory,
        hugepages_2mi=options.hugepages_2mi,
        hugepages_1gi=options.hugepages_1gi,
        cpumanager=not options.no_cpumanager,
    )
    try:
        change_shape(shape, {})
        named = dict(parse_shape(text, shape) for text in options.node)
    except ValueError as error:
        parser.error(str(error))
    config = DevClusterConfig(
        host=options.host,
        port=options.port,
        durations=Durations.for_cold_boot(options.cold_boot_seconds, time_scale=options.time_scale),
        nodes=options.nodes,
        node_shape=shape,
        named_nodes=named,
        image_cache_slots=options.image_cache_slots,
        namespaces=("default", *options.namespace),
        images=tuple(options.image),
        state=options.state,
        seed=options.seed,
    )
    return options, config


async def _serve(config: DevClusterConfig, options: argparse.Namespace) -> None:
    kubeconfig_out, ready_file = options.kubeconfig_out, options.ready_file
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    choice = await choose_guests(options.guests, guest_wishes(options), _tell)
    if choice.guests is not None:
        config = replace(config, guests=choice.guests, durations=Durations.for_real_guests())
    async with DevCluster(config) as cluster:
        if kubeconfig_out is not None:
            _write(kubeconfig_out, cluster.kubeconfig_text())
        told = {"guests": choice.name, "note": choice.note or None}
        ready = json.dumps({"url": cluster.url, "kubeconfig": str(kubeconfig_out) if kubeconfig_out else None, **told})
        if ready_file is not None:
            _write(ready_file, ready + "\n")
        sys.stdout.write(ready + "\n")
        sys.stdout.flush()
        await stop.wait()


def guest_wishes(options: argparse.Namespace) -> RealGuests:
    """How guests are run if they are. Their folder lies beside the state, or is one that goes with this process."""
    passing = Path(tempfile.gettempdir()) / f"emberpool-guests-{secrets.token_hex(4)}"
    folder = options.guest_folder or (options.state.with_name("guests") if options.state else passing)
    return RealGuests(
        folder=folder,
        keeps_disks=options.state is not None,
        memory=whole(options.guest_memory),
        images=dict(options.guest_image),
        most=options.guest_limit,
        kernel=options.guest_kernel,
        initrd=options.guest_initrd,
    )


def _tell(line: str) -> None:
    """How far the start has come, for whoever started this and for a person."""
    _say(progress=line)
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _say(**said: object) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, so that nobody who waits for it reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    partial.replace(path)


def _quantity(text: str) -> str:
    if not is_quantity(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a quantity; write one such as 64Gi")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds; write one such as 2.5")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.devcluster", description="Serve a simulated KubeVirt cluster until SIGTERM or SIGINT."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 lets the system choose")
    parser.add_argument(
        "--cold-boot-seconds",
        type=_seconds,
        default=DEFAULT_COLD_BOOT_SECONDS,
        help="time from creating a VM to its being ready, with no image cached; other simulated times follow in proportion",
    )
    parser.add_argument("--time-scale", type=_seconds, default=1.0, help="factor on every simulated duration")
    parser.add_argument("--nodes", type=int, default=3, help="number of nodes: node1, node2, ...")
    parser.add_argument("--node-cpu", type=int, default=32, help="CPUs of each node")
    parser.add_argument("--node-memory", type=_quantity, default="256Gi", help="memory of each node")
    parser.add_argument(
        "--hugepages-2mi", type=_quantity, default="64Gi", help="memory of each node that is reserved as 2 MiB pages"
    )
    parser.add_argument(
        "--hugepages-1gi", type=_quantity, default="16Gi", help="memory of each node that is reserved as 1 GiB pages"
    )
    parser.add_argument("--no-cpumanager", action="store_true", help="nodes cannot pin CPUs")
    parser.add_argument(
        "--image-cache-slots", type=int, default=IMAGE_CACHE_SLOTS, help="number of images that each node can cache"
    )
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="NAME,MEMBER=VALUE,...",
        help="add a node with its own shape, or replace nodeN; repeatable. Members: "
        f"{', '.join(sorted(SHAPE_FIELDS - {'labels'}))} (lists with +), label.KEY",
    )
    parser.add_argument(
        "--namespace", action="append", default=[], help="create this namespace too, besides default; repeatable"
    )
    parser.add_argument(
        "--image", action="append", default=[], help="a container disk image that every node has cached; repeatable"
    )
    parser.add_argument("--state", type=Path, help="SQLite file that keeps the state of the cluster across restarts")
    parser.add_argument("--kubeconfig-out", type=Path, help="write a kubeconfig for this cluster to this file")
    parser.add_argument(
        "--ready-file", type=Path, help="write one line of JSON with the URL to this file once the cluster listens"
    )
    _add_guest_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the jitter and of generated names")
    return parser


def _add_guest_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("guests")
    group.add_argument(
        "--guests",
        choices=KINDS,
        default="simulated",
        help="simulated: VMs run nothing; qemu: they really run; auto: they run where QEMU is found and works",
    )
    group.add_argument(
        "--guest-folder", type=Path, help="where real guests have their disks; by default beside --state"
    )
    group.add_argument("--guest-memory", type=_quantity, default="128Mi", help="memory that a real guest has at most")
    group.add_argument(
        "--guest-image",
        action="append",
        default=[],
        type=_mapping,
        metavar="NAME=PATH_OR_URL",
        help="what the container disk NAME really is: a disk image here, at an http(s) URL, or docker://IMAGE; repeatable. "
        "Every other container disk is the built-in guest",
    )
    group.add_argument("--guest-limit", type=_count, help="number of real guests; by default what this machine holds")
    group.add_argument("--guest-kernel", type=Path, help="a kernel of your own, in place of the built-in guest's")
    group.add_argument("--guest-initrd", type=Path, help="the initramfs that goes with --guest-kernel")


def _mapping(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not NAME=PATH_OR_URL; write one such as fedora=/images/fedora.qcow2"
        )
    return name, value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of guests; write one such as 20")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
