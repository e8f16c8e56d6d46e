"""Commit, versions and hardware: what a reader needs to judge a number, and nothing of the user's
secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from loraexp import __version__
from loraexp.records.sections import Environment, Hardware

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "evaluate",
    "hydra-core",
    "accelerate",
    "lm-eval",
    "scikit-learn",
    "numpy",
    "wandb",
)


def environment() -> Environment:
    """The commit of the code, the versions of what it uses, and the machine."""
    import torch

    versions = {"python": platform.python_version(), "loraexp": __version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    hardware: Hardware = {
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }
    hardware["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **commit(),
        "versions": versions,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def commit() -> Environment:
    """The commit of the checkout that this code runs from, and whether files differ from it; null
    from a wheel."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    return {"commit": head.stdout.strip() or None, "dirty": bool(changed.stdout.strip())}
