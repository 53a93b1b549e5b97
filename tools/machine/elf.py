"""Sections of a cubin, which is an ELF file: the constants that the compiler puts beside a kernel."""

from __future__ import annotations

import struct
from pathlib import Path

BANKS = (2, 3, 4)  # of constants; bank 0 has the parameters


def sections(path: str | Path) -> dict[str, bytes]:
    """Return the contents of every section by name."""
    data = Path(path).read_bytes()
    if data[:5] != b"\x7fELF\x02":
        raise ValueError(f"{path} is no 64-bit ELF file; expected a cubin")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + size * n) for n in range(count)]
    begin = headers[names][4]
    found = {}
    for name, kind, _, _, offset, length in headers:
        text = data[begin + name : data.index(b"\0", begin + name)].decode()
        found[text] = b"" if kind == 8 else data[offset : offset + length]  # 8: no contents in the file
    return found


def constants(path: str | Path, mangled: str) -> dict[int, bytes]:
    """Return the constant banks of a kernel, such as the jump tables of its switch statements."""
    every = sections(path)
    names = {bank: f".nv.constant{bank}.{mangled}" for bank in BANKS}
    return {bank: every[name] for bank, name in names.items() if name in every}
