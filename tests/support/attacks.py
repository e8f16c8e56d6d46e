"""What a hostile program may try on the machine that runs it, as a table: each says `tried`, and `REACHED` if it got there.

A program that says neither was not an attack, so a slip of the pen in one of them is found too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loraexp.scoring import seccomp

# Before each: `attempt(f)` is held where f raises, or returns None; `call(n, …)` is a system call of that number.
PRELUDE = """
import ctypes, errno, mmap, os, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attempt(function):
    print("tried", flush=True)
    try:
        found = function()
    except (OSError, MemoryError, ValueError, RuntimeError, AssertionError) as error:
        print("held:", type(error).__name__, error, flush=True)
        return
    if found is not None:
        print("REACHED", repr(found)[:200], flush=True)
def read(path):
    with open(path, "rb") as file:
        return file.read(100000)
def found(path, secret=b"do-not-tell"):
    return True if secret in read(path) else None
"""


@dataclass(frozen=True)
class Attack:
    name: str
    program: str
    limits: dict[str, Any]
    ends: frozenset[str]  # how it may end

    @property
    def whole(self) -> str:
        return PRELUDE + self.program


def _attack(name: str, program: str, *ends: str, **limits: Any) -> Attack:
    return Attack(name, program, limits, frozenset(ends or ("passed",)))


SMALL = {"memory": 192 * 2**20, "tmp_bytes": 32 * 2**20, "seconds": 8.0}

LOOKING = [
    _attack("environ of process 1", "attempt(lambda: found('/proc/1/environ'))"),
    _attack("environ of itself", "attempt(lambda: found('/proc/self/environ'))"),
    _attack("environ of every process", "attempt(lambda: any(found(f'/proc/{p}/environ') for p in os.listdir('/proc') if p.isdigit() and p != '1') or None)"),
    _attack("os.environ", "attempt(lambda: True if 'do-not-tell' in str(dict(os.environ)) else None)"),
    _attack("memory of process 1", "attempt(lambda: open('/proc/1/mem', 'rb'))"),
    _attack("memory of process 1, to write", "attempt(lambda: open('/proc/1/mem', 'r+b', 0))"),
    _attack("map of process 1", "attempt(lambda: read('/proc/1/maps') or None)"),
    _attack("descriptors of process 1", "attempt(lambda: os.listdir('/proc/1/fd'))"),
    _attack("root of process 1", "attempt(lambda: os.listdir('/proc/1/root'))"),
    _attack("folder of process 1", "attempt(lambda: os.readlink('/proc/1/cwd'))"),
    _attack("ptrace of process 1", "attempt(lambda: call({ptrace}, 16, 1, 0, 0))"),
    _attack("ptrace from a child", "if os.fork() == 0:\n    attempt(lambda: call({ptrace}, 16, os.getppid(), 0, 0)); os._exit(0)\nos.wait()"),
    _attack("process_vm_readv of process 1", "attempt(lambda: call({process_vm_readv}, 1, None, 0, None, 0, 0))"),
    _attack("a descriptor of process 1", "attempt(lambda: call({pidfd_getfd}, os.pidfd_open(1), 0, 0))"),
    _attack("keys of the caller", "attempt(lambda: found('/proc/keys', b'loraexp-test-key'))"),
    _attack("a key by its name", "attempt(lambda: call({request_key}, b'user', b'loraexp-test-key', None, -3))"),
    _attack("the session keyring", "attempt(lambda: call({keyctl}, 0, -3, 0))"),
    _attack("a key to leave behind", "attempt(lambda: call({add_key}, b'user', b'left', b'x', 1, -3))"),
    _attack("accounts", "attempt(lambda: read('/etc/passwd') + read('/etc/shadow'))"),
    _attack("home", "for folder in ('/root/.ssh', '/root/.cache', '/root/.netrc', os.environ['HOME'] + '/.netrc'):\n    attempt(lambda: os.stat(folder))"),
    _attack("the machine's /tmp", "attempt(lambda: read('/tmp/loraexp-test'))"),
    _attack("the kernel's messages", "attempt(lambda: read('/dev/kmsg'))"),
    _attack("the kernel's log", "attempt(lambda: call({syslog}, 3, ctypes.create_string_buffer(100), 100))"),
    _attack("memory of the machine", "attempt(lambda: read('/dev/mem') + read('/proc/kcore'))"),
    _attack("disks", "attempt(lambda: [n for n in os.listdir('/dev') if n.startswith(('sd', 'vd', 'nvme', 'loop'))] or None)"),
    _attack("control groups", "attempt(lambda: os.listdir('/sys/fs/cgroup') or None)"),
    _attack("many processes seen", "attempt(lambda: True if len([p for p in os.listdir('/proc') if p.isdigit()]) > 3 else None)"),
]  # fmt: skip

WRITING = [
    _attack("a file anywhere", "for folder in ('/', '/usr', '/etc', '/home', '/home/sandbox', '/dev', '/proc', '/var', '/opt', sys.prefix):\n    attempt(lambda: open(folder + '/x', 'w'))"),
    _attack("the interpreter", "attempt(lambda: open(os.path.realpath(sys.executable), 'r+b'))"),
    _attack("settings of the kernel", "attempt(lambda: open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x'))"),
    _attack("the magic key", "attempt(lambda: open('/proc/sysrq-trigger', 'w').write('b'))"),
    _attack("the host's name", "attempt(lambda: socket.sethostname('evil'))"),
    _attack("a device", "attempt(lambda: os.mknod('/tmp/sda', 0o60666, os.makedev(8, 0)))"),
    _attack("a program of root", "import shutil\nshutil.copy('/bin/true', '/tmp/mine'); os.chmod('/tmp/mine', 0o6755)\nattempt(lambda: os.chown('/tmp/mine', 0, 0))"),
    _attack("another user", "attempt(lambda: os.setuid(0) or True)"),
    _attack("another group", "attempt(lambda: os.setgroups([0]) or True)"),
    _attack("oom score of the machine", "attempt(lambda: open('/proc/1/oom_score_adj', 'w').write('1000') and None or True)"),
    _attack("the clock", "attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, 0) or True)"),
    _attack("keystrokes for the terminal", "import fcntl, termios\nattempt(lambda: fcntl.ioctl(1, termios.TIOCSTI, b'x') or True)"),
    _attack("higher limits", "import resource\nattempt(lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)) or True)"),
    _attack("real-time priority", "attempt(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)) or True)"),
    _attack("a higher priority", "attempt(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5) or True)"),
]  # fmt: skip

LEAVING = [
    _attack("a network by TCP", "attempt(lambda: socket.create_connection(('192.0.2.1', 80), 1))"),
    _attack("the machine by TCP", "attempt(lambda: socket.create_connection(('127.0.0.1', 22), 1))"),
    _attack("UDP", "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53)))"),
    _attack("IPv6", "attempt(lambda: socket.socket(socket.AF_INET6))"),
    _attack("raw packets", "attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))"),
    _attack("the hypervisor", "attempt(lambda: socket.socket(socket.AF_VSOCK))"),
    _attack("an abstract socket of the machine", "with socket.socket(socket.AF_UNIX) as s:\n    attempt(lambda: s.connect(chr(0) + 'loraexp-test') or True)"),
    _attack("another network namespace", "attempt(lambda: call({setns}, os.open('/proc/self/ns/net', 0), 0x40000000))"),
    _attack("a user namespace", "attempt(lambda: call({unshare}, 0x10000000))"),
    _attack("a user namespace by clone", "attempt(lambda: call(seccomp_clone, 0x10000011, 0, 0, 0, 0))"),
    _attack("a user namespace by clone3", "attempt(lambda: call(435, (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17), 88))"),
    _attack("unshare, the program", "attempt(lambda: subprocess.run(['unshare', '-Ur', 'true'], capture_output=True).returncode == 0 or None)"),
    _attack("bubblewrap in bubblewrap", "attempt(lambda: subprocess.run(['bwrap', '--ro-bind', '/', '/', 'true'], capture_output=True).returncode == 0 or None)"),
    _attack("a mount", "attempt(lambda: libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0 or None)"),
    _attack("an unmount", "attempt(lambda: libc.umount2(b'/tmp', 2) == 0 or None)"),
    _attack("chroot", "attempt(lambda: os.chroot('/tmp') or True)"),
    _attack("a file by its handle", "attempt(lambda: call({open_by_handle_at}, 3, None, 0))"),
    _attack("a module", "attempt(lambda: call({init_module}, b'', 0, b''))"),
    _attack("reboot", "attempt(lambda: call({reboot}, 0xfee1dead, 672274793, 0, None))"),
    _attack("32-bit calls", "attempt(lambda: call(0x40000000 + 39))"),
    _attack("bpf", "attempt(lambda: call({bpf}, 0, None, 0))"),
    _attack("counters of the machine", "attempt(lambda: call({perf_event_open}, None, 0, -1, -1, 0))"),
    _attack("userfaultfd", "attempt(lambda: call({userfaultfd}, 1))"),
    _attack("io_uring", "attempt(lambda: call({io_uring_setup}, 1, ctypes.create_string_buffer(200)))"),
]  # fmt: skip

FILLING = [
    _attack("a large array", "attempt(lambda: len(bytearray(10 * 2**30)))"),
    _attack("many processes with memory",
        "print('tried', flush=True)\nfor _ in range(20):\n    if os.fork() == 0:\n        x = bytearray(40 * 2**20); time.sleep(60)\n"
        "time.sleep(4)\nprint('REACHED')", "memory", **SMALL),
    _attack("memory that belongs to a file (memfd)",
        "def fill():\n    number = os.memfd_create('x')\n    for _ in range(40): os.write(number, bytes(10 * 2**20))\n    return number\nattempt(fill)", **SMALL),
    _attack("secret memory", "attempt(lambda: call({memfd_secret}, 0))"),
    _attack("System V memory", "attempt(lambda: call({shmget}, 0, 2**30, 0o1600))"),
    _attack("message queues", "attempt(lambda: call({msgget}, 0, 0o1600)); attempt(lambda: call({mq_open}, b'x', 0o102, 0o600, None))"),
    _attack("a tmpfs in a namespace of its own",
        "attempt(lambda: subprocess.run(['unshare', '-Urm', 'sh', '-c', 'mount -t tmpfs x /tmp'], capture_output=True).returncode == 0 or None)"),
    _attack("huge pages", "attempt(lambda: mmap.mmap(-1, 2**21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))"),
    _attack("files in /tmp", "def fill():\n    for i in range(100): open(f'/tmp/{i}', 'wb').write(bytes(2**20))\n    return True\nattempt(fill)",
        tmp_bytes=8 * 2**20),
    _attack("files in /dev/shm", "def fill():\n    for i in range(100): open(f'/dev/shm/{i}', 'wb').write(bytes(2**20))\n    return True\nattempt(fill)",
        tmp_bytes=8 * 2**20),
    _attack("hundreds of thousands of empty files",
        "print('tried', flush=True)\nfor i in range(400_000): os.close(os.open(f'/tmp/{i}', os.O_CREAT | os.O_WRONLY))\nprint('REACHED')",
        "memory", "failed", **SMALL),
    _attack("buffers of sockets",
        "print('tried', flush=True)\nfor _ in range(12):\n    if os.fork() == 0:\n        kept = [socket.socketpair() for _ in range(50)]\n"
        "        for a, b in kept:\n            a.setblocking(False)\n            try:\n                while True: a.send(bytes(65536))\n            except OSError: pass\n"
        "        time.sleep(60)\ntime.sleep(4)\nprint('REACHED')", "memory", **SMALL),
    _attack("shared memory in many processes",
        "print('tried', flush=True)\nfor _ in range(10):\n    if os.fork() == 0:\n        x = mmap.mmap(-1, 40 * 2**20); x.write(bytes(40 * 2**20)); time.sleep(60)\n"
        "time.sleep(4)\nprint('REACHED')", "memory", **SMALL),
    _attack("a large file", "attempt(lambda: open('/tmp/x', 'wb').write(bytes(2**21)))", file_bytes=2**20),
    _attack("a file without end", "attempt(lambda: os.truncate(os.open('/tmp/x', os.O_CREAT | os.O_RDWR), 2**40) or True)"),
    _attack("descriptors", "attempt(lambda: [os.dup(1) for _ in range(100_000)])"),
    _attack("locked memory", "attempt(lambda: libc.mlockall(3) == 0 or None)"),
]  # fmt: skip

STAYING = [
    _attack("a fork bomb", "print('tried', flush=True)\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timeout", seconds=1.0),
    _attack("a bomb of threads", "attempt(lambda: [threading.Thread(target=time.sleep, args=(9,), daemon=True).start() for _ in range(500)])"),
    _attack("every signal to everybody", "print('tried', flush=True)\nos.kill(-1, signal.SIGKILL); time.sleep(0.2)", "failed", "passed"),
    _attack("signals to process 1", "print('tried', flush=True)\nfor n in (2, 9, 15, 19): os.kill(1, n)\ntime.sleep(0.2)", "failed", "passed"),
    _attack("no signal heard", "print('tried', flush=True)\nsignal.pthread_sigmask(0, range(1, 65)); time.sleep(60)", "timeout", seconds=1.0),
    _attack("a stopped process", "print('tried', flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout", seconds=1.0),
    _attack("pipes closed, then sleep", "print('tried', flush=True)\nos.closerange(0, 100); time.sleep(60)", "timeout", seconds=1.0),
    _attack("output without end", "print('tried', flush=True)\nwhile True: print('x' * 2**16)", "output"),
    _attack("a report without end", "print('tried', flush=True)\nwhile True:\n    for n in range(3, 10):\n        try: os.write(n, bytes(65536))\n        except OSError: pass",
        "output", "timeout", "failed", seconds=2.0),
    _attack("a child that stays", "print('tried', flush=True)\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)"),
]  # fmt: skip

GROUPS = {"looking": LOOKING, "writing": WRITING, "leaving": LEAVING, "filling": FILLING, "staying": STAYING}


def attacks() -> list[Attack]:
    """All of them, with this processor's numbers of system calls in their programs."""
    column = seccomp.machine().column
    numbers = {f"{{{name}}}": str(both[column]) for name, both in seccomp.REFUSED.items()}
    numbers["seccomp_clone"] = str(seccomp.CLONE[column])
    whole = []
    for attack in [attack for group in GROUPS.values() for attack in group]:
        program = attack.program
        for name, number in numbers.items():
            program = program.replace(name, number)
        whole.append(Attack(attack.name, program, attack.limits, attack.ends))
    return whole


def held(attack: Attack, status: str, output: str) -> bool:
    """Was it tried, did it end as it may, and did it get nowhere?"""
    return status in attack.ends and "tried" in output and "REACHED" not in output and "do-not-tell" not in output
