"""A Slurm cluster of this one machine, for a test: its own munge, controller and node, in a folder
of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here; None where there can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    absent = [name for name in DAEMONS if shutil.which(name, path=path) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge"
        return f"no {', '.join(absent)}: apt-get install {packages}"
    return None if os.geteuid() == 0 else "Slurm's daemons want to be root's"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Within: a cluster takes jobs from whoever has this environment."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host, cpus = socket.gethostname().partition(".")[0], os.cpu_count() or 1
    text = CONFIGURATION.format(folder=folder, host=host, ports=free_ports(2), cpus=cpus)
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin",
    }
    places = {"socket": "munge.socket", "key-file": key.name, "seed-file": "munge.seed"}
    places |= {"pid-file": "munged.pid", "log-file": "munged.log"}
    munge = [f"--{option}={folder / name}" for option, name in places.items()]
    try:
        for command in (
            ["munged", "--force", *munge],
            ["slurmctld", "-c"],
            ["slurmd"],
        ):
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=30)
        until(lambda: "idle" in asked(["sinfo", "-h"], environment), "a node that is idle")
        yield environment
    finally:
        with suppress(subprocess.SubprocessError, OSError):
            asked(["scancel", "--user=root"], environment)
            until(lambda: not asked(["squeue", "-h"], environment), "no job", seconds=20)
        for name in ("slurmd", "slurmctld", "munged"):
            with suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)


def asked(command: list[str], environment: dict[str, str]) -> str:
    """What a command says."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


def until(condition: object, what: str, seconds: float = 60) -> None:
    """Wait for it, but not for ever."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError(f"no sign of {what} in {seconds:.0f} s")
        time.sleep(0.3)
