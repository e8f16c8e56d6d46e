"""What a run leaves behind on disk; W&B gets a copy of it (tracking.py)."""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from loraexp import __version__
from loraexp.machine.files import finite, write_json
from loraexp.records.tracking import Copy

if TYPE_CHECKING:
    from loraexp.config.settings import WandbSettings

SCHEMA = 1
PACKAGES = ("torch", "transformers", "datasets", "evaluate", "hydra-core", "accelerate", "lm-eval", "scikit-learn", "numpy", "wandb")


class Busy(RuntimeError):
    """Another process is running this very run."""


class Finished(RuntimeError):
    """Another process finished this very run between the look at its record and the lock; `record` is what it left."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(record["run_id"])
        self.record = record


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read(folder: Path) -> dict[str, Any] | None:
    """The record of a run folder; None where there is none, or where it cannot be read (it is then written anew)."""
    try:
        return json.loads((folder / "record.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


class Record:
    """The record of one run, kept from its first moment: `with Record(...) as record:` leaves one also when it fails.

    Only the main process of a parallel run writes; for the others every method does nothing.
    """

    def __init__(self, folder: Path, run_id: str, config: dict[str, Any], wandb: WandbSettings, *, main: bool = True) -> None:
        self.folder = folder
        self.config = config
        self.main = main
        self.copy = Copy(wandb, folder, run_id, config)
        self.lock: IO[str] | None = None
        self.metrics: IO[str] | None = None
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            "status": "running",
            "run_id": run_id,
            "config": config,
            "metrics": {},
            "best": None,
            "cost": {},
            "parameters": {},
            "data": {},
            "environment": {},
            "started": now(),
            "ended": None,
        }

    def __enter__(self) -> Record:
        if not self.main:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.lock.close()
            raise Busy(f"{self.folder}: another process is running this run; wait for it, or stop it") from error
        found = read(self.folder)
        if found is not None and found["status"] == "finished" and not self.config.get("force"):
            self.lock.close()
            raise Finished(found)
        self.content["environment"] = environment()
        (self.folder / "error.txt").unlink(missing_ok=True)
        write_yaml(self.folder / "config.yaml", self.config)
        self.write()
        return self

    def start_metrics(self, keep_to_step: int | None = None) -> None:
        """Open metrics.jsonl: anew, or (resuming) with what was logged up to a checkpoint's step."""
        if not self.main:
            return
        path = self.folder / "metrics.jsonl"
        kept = ""
        if keep_to_step is not None and path.exists():
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= keep_to_step)
        path.write_text(kept)
        self.metrics = path.open("a", buffering=1)
        self.copy.start()

    def log(self, step: int, **values: Any) -> None:
        """One line of metrics.jsonl, and the same numbers to W&B."""
        if not self.main:
            return
        line = finite({"step": step, **values})
        assert self.metrics is not None
        self.metrics.write(json.dumps(line) + "\n")
        self.copy.log(step, line)

    def update(self, **sections: Any) -> None:
        """Set sections of the record; a mapping is merged into what is there. Written at once."""
        for name, value in sections.items():
            if isinstance(value, Mapping) and isinstance(self.content.get(name), dict):
                self.content[name] |= value
            else:
                self.content[name] = value
        self.write()

    def finish(self) -> dict[str, Any]:
        self.content |= {"status": "finished", "ended": now()}
        self.write()
        return self.content

    def write(self) -> None:
        if self.copy.error is not None:
            self.content["wandb_error"] = self.copy.error
        if self.main:
            write_json(self.folder / "record.json", self.content)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if not self.main:
            return
        if error is not None:
            frames = traceback.extract_tb(trace)
            ours = [f for f in frames if f"{os.sep}loraexp{os.sep}" in f.filename] or frames
            place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else "?"
            self.content |= {
                "status": "failed",
                "ended": now(),
                "error": {"type": type(error).__name__, "message": str(error), "where": place},
            }
            self.write()
            (self.folder / "error.txt").write_text("".join(traceback.format_exception(error)))
        if self.metrics is not None:
            self.metrics.close()
        if isinstance(error, Exception):
            self.copy.start()  # one that failed before its first step is told to W&B as well
        self.copy.finish(self.content)
        if self.copy.error is not None and "wandb_error" not in self.content:
            self.write()
        if self.lock is not None:
            self.lock.close()


def write_yaml(path: Path, value: Any) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def environment() -> dict[str, Any]:
    """Commit, versions and hardware: what a reader needs to judge a number, and nothing of the user's secrets."""
    import torch

    versions = {"python": platform.python_version(), "loraexp": __version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    hardware: dict[str, Any] = {"machine": platform.machine(), "cpu": cpu_name(), "cores": os.cpu_count()}
    hardware["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {**commit(), "versions": versions, "hardware": hardware, "threads": torch.get_num_threads()}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def commit() -> dict[str, Any]:
    """The commit of the checkout that this code runs from, and whether files differ from it; null from a wheel."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    return {"commit": head.stdout.strip() or None, "dirty": bool(changed.stdout.strip())}


class Stopwatch:
    """Seconds spent in named parts: `with stopwatch("forward"):`; on an accelerator, the time to launch them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.part, self.since = "", 0.0

    def __call__(self, part: str) -> Stopwatch:
        self.part = part
        return self

    def __enter__(self) -> None:
        self.since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.part] = self.seconds.get(self.part, 0.0) + time.perf_counter() - self.since
