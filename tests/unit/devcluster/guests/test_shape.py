"""How large a guest is, and which networks it has."""

import pytest

from app.devcluster.guests.boot_sectors import Beginning, judge
from app.devcluster.guests.shape import MIB, fit_size, networks_of


def spec(memory="1Gi", **cpu):
    return {"domain": {"memory": {"guest": memory}, "cpu": cpu, "devices": {}}}


@pytest.mark.parametrize(
    ("memory", "given", "notes"),
    [("64Mi", 64, 0), ("128Mi", 128, 0), ("2Gi", 128, 1), ("1Mi", 32, 1)],
)
def test_a_guest_has_at_most_the_memory_that_one_may_have_and_it_is_said(memory, given, notes):
    size = fit_size(spec(memory), 128 * MIB, 4)
    assert (size.memory, len(size.notes)) == (given * MIB, notes)


def test_a_guest_has_at_most_the_processors_of_the_machine_and_it_is_said():
    assert fit_size(spec("64Mi", cores=2, sockets=1, threads=1), 128 * MIB, 4).cpus == 2
    size = fit_size(spec("64Mi", cores=2, sockets=4, threads=1), 128 * MIB, 4)
    assert size.cpus == 4
    assert size.notes == ("The guest has 4 of the 8 CPUs that it asks for: this machine has no more.",)


def test_the_first_network_has_the_ports_that_somebody_will_ask():
    vmi = {"spec": spec()}
    vmi["spec"]["domain"]["devices"]["interfaces"] = [
        {
            "name": "default",
            "macAddress": "02-00-00-AA-bb-01",
            "ports": [{"port": 53, "protocol": "UDP"}, {"port": 80}],
        },
        {"name": "other"},
    ]
    vmi["spec"]["readinessProbe"] = {"httpGet": {"port": 8080}}

    first, second = networks_of(vmi)
    assert (first.mac, first.tcp, first.udp) == ("02:00:00:aa:bb:01", (22, 80, 8080), (53,))
    assert (second.tcp, second.udp) == ((), ())
    assert second.mac.startswith("02:00:00:")


@pytest.mark.parametrize(
    ("place", "mark", "found"),
    [
        (0, b"", Beginning.BLANK),
        (510, b"\x55\xaa", Beginning.BOOTABLE),
        (1080, b"\x53\xef", Beginning.FILE_SYSTEM),
        (0, b"text", Beginning.UNKNOWN),
    ],
)
def test_a_disk_is_judged_by_how_it_begins(place, mark, found):
    assert judge(bytes(place) + mark + bytes(2048 - place - len(mark))) is found
