"""What a worker of Ray does first in tests/sweep/test_ray.py: from then on every model that it
loads is a line of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from loraexp.models import Base


def note() -> None:
    load = Base.load

    def noted(self: Base, **how: Any) -> Any:
        with Path(os.environ["LOADS"]).open("a") as file:
            file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        return load(self, **how)

    Base.load = noted  # type: ignore[method-assign]
