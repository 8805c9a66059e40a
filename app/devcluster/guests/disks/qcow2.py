"""The one thing that we read from qcow2 files ourselves: whether anything was ever written into one.

The format is in QEMU's docs/interop/qcow2.txt: big-endian numbers, `l1_size` at byte 36 of the header, `l1_table_offset` at 40. An entry
of that table is 0 while no cluster below it was allocated, zeroed or discarded.
"""

import struct
from pathlib import Path

_L1 = struct.Struct(">36xIQ")


def is_pristine(path: Path) -> bool:
    """Whether the file has exactly the data of its backing file. False while a guest has it open is not certain, True neither."""
    with path.open("rb") as file:
        entries, offset = _L1.unpack(file.read(_L1.size))
        file.seek(offset)
        return not any(file.read(entries * 8))
