"""The filter of system calls, executed here instruction by instruction, for both processors."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from loraexp.scoring import seccomp

HEADERS = {
    "x86_64": [
        Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        Path("/usr/include/asm/unistd_64.h"),
    ],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}
ERRNO, KILL, ALLOW = 0x00050000, 0x80000000, 0x7FFF0000


def verdict(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel's machine returns for a call."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    instructions = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        kind, then, otherwise, value = instructions[at]
        at += 1
        if kind == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif kind == seccomp.RETURN:
            return int(value)
        else:
            true = {
                seccomp.EQUAL: accumulator == value,
                seccomp.AT_LEAST: accumulator >= value,
                seccomp.ANY_BIT: accumulator & value,
            }[kind]
            at += then if true else otherwise


@pytest.mark.parametrize("name", list(seccomp.MACHINES))
def test_the_filter_refuses_and_allows(name: str) -> None:
    code, machine = seccomp.program(name), seccomp.MACHINES[name]
    column, architecture = machine.column, machine.architecture
    refused = [
        numbers[column] for numbers in seccomp.REFUSED.values() if numbers[column] is not None
    ]
    assert {verdict(code, architecture, number) for number in refused} == {ERRNO | errno.EPERM}
    special = {
        numbers[column] for numbers in (seccomp.CLONE, seccomp.CLONE3, seccomp.MMAP, seccomp.SOCKET)
    }
    allowed = [number for number in range(470) if number not in refused and number not in special]
    assert {verdict(code, architecture, number) for number in allowed} == {ALLOW} and len(
        allowed
    ) > 390
    assert verdict(code, architecture, seccomp.CLONE3[column]) == ERRNO | errno.ENOSYS
    clone, mmap, socket = seccomp.CLONE[column], seccomp.MMAP[column], seccomp.SOCKET[column]
    # fork, a thread
    assert (
        verdict(code, architecture, clone, 17)
        == verdict(code, architecture, clone, 0x3D0F00)
        == ALLOW
    )
    for flag in (
        0x00020000,
        0x02000000,
        0x04000000,
        0x08000000,
        0x10000000,
        0x20000000,
        0x40000000,
    ):
        assert verdict(code, architecture, clone, 17 | flag) == ERRNO | errno.EPERM
    assert verdict(code, architecture, mmap, 0, 4096, 3, 0x22) == ALLOW
    assert verdict(code, architecture, mmap, 0, 4096, 3, 0x40022) == ERRNO | errno.EPERM
    families = {family: verdict(code, architecture, socket, family) for family in range(46)}
    assert [family for family, found in families.items() if found == ALLOW] == [1, 16]
    assert {found for family, found in families.items() if family not in (1, 16)} == {
        ERRNO | errno.EAFNOSUPPORT
    }
    assert verdict(code, 0x40000003, 1) == KILL  # i386
    assert len(code) // 8 < 256 * 16


def test_the_other_numbering_of_x86_64_is_refused() -> None:
    code, architecture = seccomp.program("x86_64"), seccomp.MACHINES["x86_64"].architecture
    assert verdict(code, architecture, 0x40000000 + 39) == ERRNO | errno.EPERM


@pytest.mark.parametrize("name", list(seccomp.MACHINES))
def test_the_numbers_are_the_kernels(name: str) -> None:
    header = next((path for path in HEADERS[name] if path.exists()), None)
    if header is None:
        pytest.skip(f"no kernel headers for {name} here")
    known = {
        call: int(number)
        for call, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    }
    column = seccomp.MACHINES[name].column
    special = {
        "clone": seccomp.CLONE,
        "clone3": seccomp.CLONE3,
        "socket": seccomp.SOCKET,
        "mmap": seccomp.MMAP,
        "keyctl": seccomp.KEYCTL,
    }
    mine = {
        call: numbers[column]
        for call, numbers in (seccomp.REFUSED | special).items()
        if numbers[column] is not None
    }
    wrong = {
        call: (number, known[call])
        for call, number in mine.items()
        if call in known and known[call] != number
    }
    assert wrong == {} and len(mine.keys() & known.keys()) > 50


def test_an_unknown_processor_has_no_sandbox() -> None:
    with pytest.raises(
        ValueError, match="no list of system calls for riscv64; expected x86_64 or aarch64"
    ):
        seccomp.program("riscv64")
