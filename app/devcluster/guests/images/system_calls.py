"""A program for Linux on x86-64 that makes the system calls it reads from its standard input, and the lists that it reads.

What a clone does to become its own must take one process: under emulation each costs tens of milliseconds. The guests bring no
compiler and no interpreter that could make these calls, so the program is machine code of some 140 bytes, and what it does is data.

A list is records of 64 bytes (number, six arguments, step; all little-endian 64-bit) and the memory their arguments point into, loaded at
`BASE`. A call that fails ends the program: its exit code is the record's step, and the call's result (-errno) is on its standard output.
Step 0 marks a call whose failure does not matter. Numbers of calls: Linux, arch/x86/entry/syscalls/syscall_64.tbl.
"""

import os
import struct
from typing import Final

BASE: Final = 0x1000_0000
LARGEST: Final = 256 * 1024
_CODE_AT: Final = 0x40_0000
_RECORD: Final = struct.Struct("<8q")

OPEN: Final = 2
WRITE: Final = 1
CLOSE: Final = 3
IOCTL: Final = 16
SOCKET: Final = 41
SETHOSTNAME: Final = 170
CLOCK_SETTIME: Final = 227
FINIT_MODULE: Final = 313
_EXIT: Final = 60

FIRST_FREE: Final = 3  # what `open` gives when descriptor 3 is closed; 0, 1 and 2 are the program's own

_CODE: Final = bytes.fromhex(
    f"be {struct.pack('<I', BASE).hex()}"  # mov esi, BASE
    "89 f3"  # mov ebx, esi            the record that is next
    "31 ff"  # read: xor edi, edi
    f"ba {struct.pack('<I', BASE + LARGEST).hex()}"  # mov edx, END
    "29 f2"  # sub edx, esi
    "31 c0"  # xor eax, eax
    "0f 05"  # syscall                 read(0, esi, room)
    "85 c0"  # test eax, eax
    "7e 04"  # jle run
    "01 c6"  # add esi, eax
    "eb ea"  # jmp read
    "48 8b 03"  # run: mov rax, [rbx]
    "48 8b 7b 08"  # mov rdi, [rbx+8]
    "48 8b 73 10"  # mov rsi, [rbx+16]
    "48 8b 53 18"  # mov rdx, [rbx+24]
    "4c 8b 53 20"  # mov r10, [rbx+32]
    "4c 8b 43 28"  # mov r8, [rbx+40]
    "4c 8b 4b 30"  # mov r9, [rbx+48]
    "0f 05"  # syscall
    "48 85 c0"  # test rax, rax
    "79 06"  # jns next
    "83 7b 38 00"  # cmp dword [rbx+56], 0
    "75 06"  # jne fail
    "48 83 c3 40"  # next: add rbx, 64
    "eb d0"  # jmp run
    "48 89 03"  # fail: mov [rbx], rax
    "bf 01 00 00 00"  # mov edi, 1
    "48 89 de"  # mov rsi, rbx
    "ba 08 00 00 00"  # mov edx, 8
    "b8 01 00 00 00"  # mov eax, 1
    "0f 05"  # syscall                 write(1, rbx, 8)
    "8b 7b 38"  # mov edi, [rbx+56]
    "b8 3c 00 00 00"  # mov eax, 60
    "0f 05"  # syscall                 exit(step)
)


def helper() -> bytes:
    """The program, as a static ELF file: one segment of code and one of empty memory at `BASE`."""
    readable, writable, executable = 4, 2, 1
    segments = (
        _segment(readable | executable, 0, _CODE_AT, _HEADERS + len(_CODE), _HEADERS + len(_CODE)),
        _segment(readable | writable, 0, BASE, 0, LARGEST),
    )
    return _elf_header(len(segments)) + b"".join(segments) + _CODE


_HEADERS: Final = 64 + 2 * 56


def _elf_header(segments: int) -> bytes:
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)  # 64-bit, little-endian, version 1
    executable, x86_64, version = 2, 62, 1
    entry, first_segment, no_sections, flags = _CODE_AT + _HEADERS, 64, 0, 0
    sizes = (64, 56, segments, 64, 0, 0)
    numbers = (executable, x86_64, version, entry, first_segment, no_sections, flags)
    return ident + struct.pack("<HHIQQQI6H", *numbers, *sizes)


def _segment(flags: int, offset: int, address: int, in_file: int, in_memory: int) -> bytes:
    load, page = 1, 0x1000
    return struct.pack("<IIQQQQQQ", load, flags, offset, address, address, in_file, in_memory, page)


class CallList:
    """A list of system calls in the making. Arguments are numbers, or bytes whose address is given to the call."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, tuple[int | bytes, ...], int]] = []
        self._steps: list[str] = []

    def step(self, doing: str) -> None:
        """Begin a step; the calls that follow belong to it. `doing` continues "the guest could not"."""
        self._steps.append(doing)

    def call(self, number: int, *arguments: int | bytes) -> None:
        self._calls.append((number, arguments, len(self._steps)))

    def try_call(self, number: int, *arguments: int | bytes) -> None:
        """A call that may fail."""
        self._calls.append((number, arguments, 0))

    def write_file(
        self, path: str, data: bytes, *, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode: int = 0o644
    ) -> None:
        self.try_call(CLOSE, FIRST_FREE)
        self.call(OPEN, path.encode() + b"\0", flags, mode)
        self.call(WRITE, FIRST_FREE, data, len(data))
        self.call(CLOSE, FIRST_FREE)

    def encoded(self) -> bytes:
        """What the program reads. Raises ValueError if it is more than the program holds."""
        calls = [*self._calls, (_EXIT, (0,), 0)]
        memory = bytearray()
        after_records = BASE + len(calls) * _RECORD.size

        def placed(argument: int | bytes) -> int:
            if isinstance(argument, int):
                return argument
            memory.extend(bytes(-len(memory) % 8))
            at = after_records + len(memory)
            memory.extend(argument)
            return at

        records = bytearray()
        for number, arguments, step in calls:
            values = [placed(argument) for argument in arguments]
            records += _RECORD.pack(number, *values, *[0] * (6 - len(values)), step)
        if len(records) + len(memory) > LARGEST:
            raise ValueError(f"the calls take {len(records) + len(memory)} bytes, and the program holds {LARGEST}")
        return bytes(records + memory)

    def failure(self, exit_code: int, output: bytes) -> str:
        """A sentence about a run whose exit code was not 0."""
        if not 1 <= exit_code <= len(self._steps):
            return f"the guest's program of system calls ended with {exit_code}, which is none of its steps"
        reason = os.strerror(-struct.unpack("<q", output)[0]) if len(output) == _ERROR_BYTES else "it did not tell why"
        return f"the guest could not {self._steps[exit_code - 1]}: {reason}"


_ERROR_BYTES: Final = 8
