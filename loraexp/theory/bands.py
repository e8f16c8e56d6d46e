"""Numbers of several seeds as curves with a band, and what is read from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from loraexp.records.curves import Curve
from loraexp.theory.linear import Trace


def band(
    panel: str,
    label: str,
    x: Sequence[float],
    y: Tensor,
    diverged_at: float | None = None,
    kind: str = "line",
) -> Curve:
    """The mean over seeds of y (points, seeds), and the least and largest as its band."""
    return Curve(
        panel=panel,
        label=label,
        x=list(x),
        y=y.mean(-1).tolist(),
        low=y.amin(-1).tolist(),
        high=y.amax(-1).tolist(),
        diverged_at=diverged_at,
        kind=kind,
    )


def first_divergence(trace: Trace, arm: int, arms: int) -> int | None:
    """The earliest step at which an arm diverged in any seed."""
    return min((step for step in trace.diverged_at[arm::arms] if step is not None), default=None)


def smallest_gap(values: Tensor) -> float:
    """The smallest fall of the means over seeds from one arm to the next, (seeds, arms); a diverged
    arm (NaN) counts as infinite.
    """
    means = values.mean(0).nan_to_num(nan=math.inf)
    return float((means[:-1] - means[1:]).amin())
