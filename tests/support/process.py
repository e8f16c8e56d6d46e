"""What tests share though they should not: the process that they run in."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from loraexp.config import boundary
from loraexp.machine import progress

# Variables of pytest, and of W&B's service, which is there or gone whatever a test began with.
OTHERS = ("PYTEST_", "WANDB_SERVICE")
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE)


@contextmanager
def put_back(folder: Path) -> Iterator[None]:
    """Afterwards the environment, the folders of imports, the random generators and what libraries
    set for good (W&B the hook of exceptions, Ray what SIGTERM does, others the level of logs) are
    as before, and nothing that was imported from below `folder` is imported any longer. Raises:
    AssertionError for anything of `standing` that is not as before."""
    environment, path, modules = dict(os.environ), list(sys.path), set(sys.modules)
    hook, level, on_term = sys.excepthook, logging.root.level, signal.getsignal(signal.SIGTERM)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before = standing()
    try:
        yield
    finally:
        if getattr(signal.getsignal(signal.SIGTERM), "__module__", "").startswith("ray."):
            signal.signal(signal.SIGTERM, on_term)
        after = standing()
        for name in [*os.environ, *environment]:
            if name.startswith(OTHERS):
                continue
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]
        sys.path[:], sys.excepthook = path, hook
        logging.root.setLevel(level)
        for name in set(sys.modules) - modules:
            place = getattr(sys.modules[name], "__dict__", {}).get("__file__")  # lazy ones stay so
            if isinstance(place, str) and Path(place).is_relative_to(folder):
                del sys.modules[name]
        os.chdir(str(before["the working directory"]))
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
    left = [f"{name}: {before[name]} before, {after[name]} after" for name in before]
    left = [line for name, line in zip(before, left, strict=True) if before[name] != after[name]]
    assert not left, f"left behind in the process: {'; '.join(left)}"


def standing() -> dict[str, object]:
    """What a test leaves as it was, by what a message calls it."""
    own = threading.current_thread() is threading.main_thread()
    hydra = sys.modules.get("hydra.core.global_hydra")
    job = sys.modules.get("hydra.core.hydra_config")
    return {
        "the working directory": os.getcwd(),
        "signal handlers": [signal.getsignal(number) for number in SIGNALS] if own else [],
        "torch's dtype": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic operations": torch.are_deterministic_algorithms_enabled(),
        "cuDNN's benchmark": torch.backends.cudnn.benchmark,
        "a process group": torch.distributed.is_initialized(),
        "collection of garbage": gc.isenabled(),
        "Hydra": hydra is not None and hydra.GlobalHydra.instance().is_initialized(),
        "Hydra's job": job is not None and job.HydraConfig.initialized(),
        "tqdm": vars(tqdm)["__init__"],
        "progress": (progress.enabled, progress.verbose, progress.every),
        "the boundary": vars(boundary.STATE).copy(),
    }
