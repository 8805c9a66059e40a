import socket

from app.devcluster.guests.qemu.console import Console


def console(tmp_path, **options):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Console(tmp_path / "console", ours, **options), theirs


async def test_what_the_guest_prints_is_in_the_file(tmp_path):
    log, guest = console(tmp_path)
    log.open()
    guest.sendall(b"Linux boots\n")
    log.drain()
    assert log.path.read_bytes() == b"Linux boots\n"
    assert log.tail() == "Linux boots\n"
    guest.close()
    log.close()


async def test_the_file_of_a_guest_that_prints_for_ever_stays_small(tmp_path):
    log, guest = console(tmp_path, largest=1000)
    log.open()
    for number in range(100):
        guest.sendall(f"{number:>99}\n".encode())
        log.drain()
    guest.close()
    log.drain()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["console", "console.1"]
    lines = (tmp_path / "console.1").read_text().split() + (tmp_path / "console").read_text().split()
    assert lines == [str(number) for number in range(80, 100)]


async def test_the_tail_is_that_of_the_present_boot(tmp_path):
    log, guest = console(tmp_path)
    log.open()
    guest.sendall(b"first boot\n")
    log.drain()
    log.begin_boot()
    guest.sendall(b"second boot\n")
    assert log.tail() == "second boot\n"
    assert log.path.read_bytes() == b"first boot\nsecond boot\n"
    guest.close()
    log.close()
