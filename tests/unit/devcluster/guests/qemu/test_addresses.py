import ipaddress
import socket
import sys

import pytest

from app.devcluster.guests.qemu.addresses import Addresses, host_port
from app.devcluster.guests.qemu.plan import Nic, Port

NICS = (Nic("52:54:00:00:00:01", (Port(22), Port(8080))), Nic("52:54:00:00:00:02", ()))


def test_a_port_is_the_guests_own_where_an_ordinary_user_may_listen_on_it():
    assert [host_port(port, 1024) for port in (22, 80, 443, 8080)] == [2222, 8080, 8443, 8080]
    assert [host_port(port, 0) for port in (22, 80)] == [22, 80]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without configuration")
def test_each_machine_has_a_loopback_address_of_its_own():
    addresses = Addresses(own=True)
    taken = [addresses.take(NICS) for _ in range(300)]
    hosts = {first[0].host for first, _ in taken}
    assert len(hosts) == 300
    assert all(ipaddress.ip_address(host) in ipaddress.ip_network("127.128.0.0/9") for host in hosts)
    assert all({end.host for end in first} == {first[0].host} and second == () for first, second in taken)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without configuration")
def test_an_address_on_which_another_program_listens_is_passed_over():
    addresses = Addresses(own=True)
    first = addresses.take(NICS)[0][1]
    following = str(ipaddress.ip_address(first.host) + 1)
    with socket.create_server((following, first.port)):
        assert addresses.take(NICS)[0][1].host != following


def test_elsewhere_the_ports_are_free_ones_of_the_one_address():
    ends = Addresses(own=False).take(NICS)[0]
    assert {end.host for end in ends} == {"127.0.0.1"}
    assert len({end.port for end in ends}) == 2
