"""The system calls that a sandboxed program is refused, as a filter for the kernel (classic BPF,
assembled here).

Refused is what makes memory that no limit counts, what opens a way out of the sandbox, and what
looks into another process. All else goes on to the sandbox's other walls.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

# name: numbers on x86_64 and aarch64 (asm/unistd_64.h, asm-generic/unistd.h)
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # memory that belongs to no process, or that limits do not see
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # namespaces and file systems of its own
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # the keys of the user
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # the kernel and the machine
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "syslog": (103, 116),
    "personality": (135, 92),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "uselib": (134, None),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "sysfs": (139, None),
    "ustat": (136, None),
}
CLONE, CLONE3, MMAP, SOCKET, KEYCTL = (56, 220), (435, 435), (9, 222), (41, 198), (250, 219)
NEW_NAMESPACES = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
MAP_HUGETLB = 0x40000
FAMILIES = (1, 16)  # AF_UNIX, and AF_NETLINK, by which a program sees that there is no network

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in the kernel's struct seccomp_data
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
X32 = 0x40000000  # numbers of x86_64's other binary interface begin here


@dataclass(frozen=True)
class Machine:
    column: int  # of the numbers above
    architecture: int  # AUDIT_ARCH_…


MACHINES = {"x86_64": Machine(0, 0xC000003E), "aarch64": Machine(1, 0xC00000B7)}


def machine(name: str | None = None) -> Machine:
    """Raises: ValueError for a processor whose system calls are not listed here."""
    name = name or platform.machine()
    if name not in MACHINES:
        raise ValueError(f"no list of system calls for {name}; expected {' or '.join(MACHINES)}")
    return MACHINES[name]


def keyctl() -> int:
    """The number of the call that joins a new session keyring."""
    return KEYCTL[machine().column]


def program(name: str | None = None) -> bytes:
    """The filter for this processor, as the kernel's array of `struct sock_filter`."""
    of = machine(name)
    refuse = _instruction(RETURN, REFUSE | errno.EPERM)
    code = [
        _instruction(LOAD, ARCHITECTURE),
        _instruction(EQUAL, of.architecture, 1, 0),
        _instruction(RETURN, KILL),  # 32-bit calls have other numbers
        _instruction(LOAD, NUMBER),
    ]
    if of.column == 0:
        code += [_instruction(AT_LEAST, X32, 0, 1), refuse]
    for numbers in REFUSED.values():
        if (number := numbers[of.column]) is not None:
            code += [_instruction(EQUAL, number, 0, 1), refuse]
    # Its flags lie in memory, where a filter cannot look; the C library then takes `clone`.
    code += [
        _instruction(EQUAL, CLONE3[of.column], 0, 1),
        _instruction(RETURN, REFUSE | errno.ENOSYS),
    ]
    code += _on(CLONE[of.column], 0, [_instruction(ANY_BIT, NEW_NAMESPACES, 0, 1), refuse])
    code += _on(MMAP[of.column], 3, [_instruction(ANY_BIT, MAP_HUGETLB, 0, 1), refuse])
    family = [
        _instruction(EQUAL, known, len(FAMILIES) - place, 0) for place, known in enumerate(FAMILIES)
    ]
    code += _on(SOCKET[of.column], 0, [*family, _instruction(RETURN, REFUSE | errno.EAFNOSUPPORT)])
    return b"".join([*code, _instruction(RETURN, ALLOW)])


def _on(number: int, argument: int, checks: list[bytes]) -> list[bytes]:
    """Look at the low half of an argument of one call; what the checks do not end is allowed."""
    inner = [_instruction(LOAD, ARGUMENTS + 8 * argument), *checks, _instruction(RETURN, ALLOW)]
    return [_instruction(EQUAL, number, 0, len(inner)), *inner]


def _instruction(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """One `struct sock_filter`; `then` and `otherwise` are how many instructions a comparison
    skips."""
    return struct.pack("=HBBI", code, then, otherwise, value)
