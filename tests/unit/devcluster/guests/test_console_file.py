"""The console of a guest, read while it is written."""

import asyncio

import pytest

from app.devcluster.guests.console_file import ConsoleFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "console"


async def text_of(pieces):
    return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize(("lines", "text"), [(None, b"a\nb\nc\nd"), (2, b"c\nd"), (0, b""), (9, b"a\nb\nc\nd")])
async def test_the_last_lines_are_read_across_the_file_before(path, lines, text):
    path.with_name("console.1").write_bytes(b"a\nb\n")
    path.write_bytes(b"c\nd")

    assert await text_of(ConsoleFile(path, lambda: False).read(lines=lines, follow=False)) == text


async def test_a_guest_that_has_printed_nothing_yet_has_an_empty_console(path):
    assert await text_of(ConsoleFile(path, lambda: True).read(lines=None, follow=True)) == b""


async def test_what_comes_is_followed_into_the_next_file_until_the_guest_has_ended(path):
    path.write_bytes(b"one ")
    over = False
    pieces = ConsoleFile(path, lambda: over).read(lines=None, follow=True)
    assert await anext(pieces) == b"one "
    rest = asyncio.ensure_future(text_of(pieces))
    with path.open("ab") as file:
        file.write(b"two ")
    path.rename(path.with_name("console.1"))
    path.write_bytes(b"three")
    over = True

    assert await rest == b"two three"
