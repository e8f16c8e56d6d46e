"""What W&B has of runs without a network."""

from __future__ import annotations

import time
from pathlib import Path

from loraexp.records import tracking


def copies(out: Path, broken: int = 0) -> dict[str, tracking.Copied]:
    """What the offline folders of W&B hold, by the id of the run: W&B's own process may write the
    end of one a moment after it was told; `broken` of them have none."""
    until = time.monotonic() + 20
    while True:
        found = list(tracking.read(str(out)))
        if sum(one.record is None for one in found) <= broken or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert len({one.run_id for one in found}) == len(found)
    return {one.run_id: one for one in found}
