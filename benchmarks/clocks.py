"""The clock of the parts that run on a card too."""

from __future__ import annotations

import time

import numpy as np
import torch

CPU = torch.device("cpu")


def now(device: torch.device = CPU) -> np.ndarray:
    """Seconds of the processor and of the clock; of a card both are the clock's, when it has done
    what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return np.full(2, time.perf_counter())
    return np.array([time.process_time(), time.perf_counter()])
