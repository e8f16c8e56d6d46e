"""Which devices of a node the workers of a launcher use: each some of its own, `train.gpus_per_run`
of them.

A worker takes its cards before anything asks for a device, and holds them by locks until it ends:
two sweeps on one node share its cards too, and a worker that dies leaves its cards free.
"""

from __future__ import annotations

import ctypes
import getpass
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from loraexp.config import ConfigError
from loraexp.machine.device import VISIBLE
from loraexp.machine.locks import Lock
from loraexp.machine.signals import Interrupted, to_children, watched

AGAIN = 1.0  # seconds between two looks for free cards


def of_node() -> list[str]:
    """The cards that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    if count and all(sliced(name) for name in named):
        return list(dict.fromkeys(named)) or [str(number) for number in range(count)]
    return named[:count]


def sliced(name: str) -> bool:
    """Whether a card is a slice of one (MIG), of which a process sees the first alone, whatever
    number it is given; another process may have the next."""
    return name.startswith("MIG-")


def identities(names: Sequence[str]) -> dict[str, str]:
    """What cards are called wherever they are named, by the names that they have here: the driver's
    UUID, also of one that is a number here and may be another elsewhere.

    CUDA's own order is asked for; NVML counts along the bus, whatever CUDA_DEVICE_ORDER says.
    """
    cards = dict(zip(names, names, strict=True))
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return cards
    number, own = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    if any(sliced(name) for name in names) or driver.cuInit(0):
        return cards
    # drivers before CUDA 11.4 have the first alone; the second differs for slices
    uuid_of = getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid
    for i, name in enumerate(names):
        asked = driver.cuDeviceGet(ctypes.byref(number), i)
        if asked or uuid_of(ctypes.byref(own), number):
            return dict(zip(names, names, strict=True))  # all or none: two must not be one
        cards[name] = f"GPU-{uuid.UUID(bytes=bytes(own))}"
    return cards


def launcher_of(hydra: Sequence[str]) -> str:
    """The launcher that these overrides choose."""
    chosen = [word.partition("=")[2] for word in hydra if word.startswith("hydra/launcher=")]
    return chosen[-1] if chosen else "basic"


def asked(hydra: Sequence[str], cards: Sequence[str], each: int) -> list[str]:
    """The overrides with what the launcher must know of the cards, where they do not say it.

    `each`: cards of one run. Raises: ConfigError for more workers, or more cards a run, than there
    are.
    """
    keys = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in hydra}
    launcher = launcher_of(hydra)
    if launcher == "submitit_slurm":
        node = "hydra.launcher.gpus_per_node"
        return [*hydra, *([f"{node}={each}"] if each > 1 and node not in keys else [])]
    if not cards or launcher == "ray":  # the cluster's cards are not this node's
        return list(hydra)
    if each > 1 and any(sliced(card) for card in cards):
        raise ConfigError(
            f"train.gpus_per_run={each}: {VISIBLE} names slices of cards, of which a process sees"
            " one; expected 1, or whole cards"
        )
    if each > len(cards):
        raise ConfigError(
            f"train.gpus_per_run={each}: this node has {len(cards)}; expected at most that"
        )
    if launcher == "joblib":
        most, key = len(cards) // each, "hydra.launcher.n_jobs"
        if key not in keys:
            return [*hydra, f"{key}={most}"]
        try:
            jobs = int(keys[key])
        except ValueError as error:
            raise ConfigError(f"{key}={keys[key]}: expected a number of workers") from error
        if jobs > most or jobs < 0:
            raise ConfigError(
                f"{key}={jobs}: this node has {len(cards)} devices, {each} a run; expected at most"
                f" {most} workers, or leave it out"
            )
    return list(hydra)


def check_named(hydra: Sequence[str], devices: Iterable[str]) -> None:
    """Raises: ConfigError where runs name a card, and their worker sees its own alone, as the
    first."""
    launcher = launcher_of(hydra)
    for device in devices:
        if launcher in ("joblib", "ray") and device.partition(":")[2] not in ("", "0"):
            raise ConfigError(
                f"device={device}: a worker of hydra/launcher={launcher} has cards of its own;"
                f" expected device=cuda, and {VISIBLE} says which cards there are"
            )


def sharing(hydra: Sequence[str]) -> int:
    """How many workers share the memory that is free where this command runs; 0: their memory is
    elsewhere."""
    launcher = launcher_of(hydra)
    if launcher != "joblib" or of_node():
        return 1 if launcher in ("basic", "joblib") else 0
    words = [word.partition("=")[2] for word in hydra if "hydra.launcher.n_jobs=" in word]
    jobs = int(words[-1]) if words and words[-1].lstrip("-").isdecimal() else -1
    return jobs if jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + jobs)


class Held:
    """The cards of this worker, which keeps them from one run to the next."""

    locks: list[Lock] = []


def take(cards: Mapping[str, str], each: int, place: Path | None = None) -> list[str]:
    """Make `each` of the cards this worker's own, the only ones that it sees; waits until as many
    are free.

    `cards`: by their names here, what they are called everywhere; `place`: where the locks lie;
    None: one folder of this user on this machine.
    """
    if Held.locks:
        return os.environ[VISIBLE].split(",")
    folder = place or Path(tempfile.gettempdir()) / f"loraexp-cards-{getpass.getuser()}"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        own: list[str] = []
        for card, identity in cards.items():
            lock = Lock(folder / identity.replace("/", "_"))
            if len(own) < each and lock.take():
                own.append(card)
                Held.locks.append(lock)
        if len(own) == each:
            os.environ[VISIBLE] = ",".join(own)
            return own
        for lock in Held.locks:  # all or none: nobody waits for what another one holds
            lock.close()
        Held.locks.clear()
        time.sleep(AGAIN)


def shared_run(overrides: Sequence[str], each: int) -> None:
    """One run in `each` processes, under torchrun, on the cards that this process sees; its record
    says what became of it.

    Raises: Interrupted where this process was told to stop; RuntimeError with the command's line.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={each}"]
    command = [sys.executable, *torchrun, "-m", "loraexp", *overrides]
    with watched(pass_on=to_children) as stop:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        _, said = process.communicate()
    if stop.name is not None:
        raise Interrupted(stop.name)
    if process.returncode:
        lines = [line for line in said.splitlines() if line.startswith("loraexp: ")]
        raise RuntimeError(lines[-1] if lines else f"torchrun ended with {process.returncode}")
