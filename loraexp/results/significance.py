"""Whether two rows of a table differ: their paired difference over common seeds, with two
intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
POWER = 0.8  # how often a difference is to be seen that is called visible
RESAMPLES = 10_000
ROUNDING = 1e-9  # of the largest difference: a spread below it is none


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A mean difference over `n` common seeds and its intervals, which need at least two."""

    n: int
    difference: float
    t: tuple[float, float] | None
    bootstrap: tuple[float, float] | None
    # the smallest true difference that the t interval would have kept apart from 0 eight times in
    # ten
    visible: float | None = None

    def includes(self, value: float) -> bool | None:
        """Whether the t interval leaves `value` possible; None where there is no interval to
        tell."""
        return None if self.t is None else self.t[0] <= value <= self.t[1]


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Compared | None:
    """`first − second` over the seeds that both have; None where they have none in common.

    Student's t interval of the mean of paired differences, d̄ ± t_{0.975, n−1} s/√n, and the
    percentile interval of the means of resampled differences (seeded). The bootstrap cannot leave
    the range of the differences, so with few seeds it is too narrow; the t interval decides.
    """
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return None
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Compared(n=1, difference=mean, t=None, bootstrap=None)
    return Compared(
        n=len(differences),
        difference=mean,
        t=t_interval(differences),
        bootstrap=bootstrap_interval(differences),
        visible=visible_difference(differences),
    )


def quantile(freedom: int) -> float:
    """t_{0.975} of Student's distribution."""
    from scipy.special import stdtrit  # stats.t.ppf is this, and takes a second to import

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def half_width(values: Sequence[float]) -> float:
    """Half of Student's t interval of a mean: t_{0.975, n−1} s/√n, of two values or more."""
    return quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def visible_difference(values: Sequence[float]) -> float | None:
    """The smallest true mean that an interval as wide as these values' leaves apart from 0 eight
    times in ten: δ s/√n, where a noncentral t with n − 1 degrees of freedom and centre δ is above
    t_{0.975, n−1} with that probability. None of values without a spread, which tell none."""
    from scipy.special import nctdtrinc

    if statistics.stdev(values) <= ROUNDING * max(map(abs, values)):
        return None
    freedom = len(values) - 1
    centre = float(nctdtrinc(freedom, 1 - POWER, quantile(freedom)))
    return centre * statistics.stdev(values) / math.sqrt(len(values))


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    mean, half = statistics.fmean(values), half_width(values)
    return mean - half, mean + half


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the means of resampled values."""
    import numpy as np

    drawn = np.random.default_rng(seed).choice(np.array(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
