"""Paired intervals against scipy and by hand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from loraexp.results.significance import paired, visible_difference


def test_t_interval_against_scipy() -> None:
    """The interval of scipy's paired t test, for any number of common seeds."""
    for n in (2, 3, 5, 11):
        a, b = np.random.default_rng(n).normal(size=(2, n))
        found = paired(dict(enumerate(a)), dict(enumerate(b)))
        wanted = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (
            found is not None
            and found.t == pytest.approx((wanted.low, wanted.high))
            and found.n == n
        )


def test_by_hand() -> None:
    """Differences 1, 2 and 3: mean 2, s = 1, t(0.975, 2) = 4.30265, so 2 ± 4.30265/√3; resampled
    means lie between 1 and 3."""
    found = paired({0: 5.0, 1: 7.0, 2: 9.0}, {0: 4.0, 1: 5.0, 2: 6.0})
    assert found is not None and found.difference == pytest.approx(2.0)
    half = 4.30265 / math.sqrt(3)
    assert found.t == pytest.approx((2 - half, 2 + half), abs=1e-4)
    # the 27 resamples: (1,1,1) and (3,3,3) have 3.7 % each, more than 2.5 %
    assert found.bootstrap == (1.0, 3.0)
    assert found.includes(0.0) is True and found.includes(-1.0) is False


def test_bootstrap_is_seeded_and_agrees_with_scipy() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 12)) + np.array([[1.0], [0.0]])
    first, second = (paired(dict(enumerate(a)), dict(enumerate(b))) for _ in range(2))
    assert first == second and first is not None and first.bootstrap is not None
    theirs = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert first.bootstrap == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_only_common_seeds_count() -> None:
    found = paired({0: 1.0, 1: 2.0, 7: 100.0}, {0: 1.0, 1: 1.0, 5: -100.0})
    assert found is not None and found.n == 2 and found.difference == pytest.approx(0.5)
    one = paired({0: 3.0}, {0: 1.0, 1: 1.0})
    assert one is not None and one.difference == 2.0 and one.t is None and one.includes(0.0) is None
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_what_is_visible_is_seen_eight_times_in_ten() -> None:
    """By drawing: differences of the true mean that is called visible at their true spread."""
    for n in (3, 5, 10):
        unit = visible_difference([-1.0, 1.0] * 50) / (statistics.stdev([-1.0, 1.0] * 50) / 10)
        assert 2.5 < unit < 3  # of 100 values: 1.98 + 0.85
        values = np.linspace(-1, 1, n)
        visible = visible_difference(list(values))
        drawn = np.random.default_rng(n).normal(visible, values.std(ddof=1), size=(20_000, n))
        half = stats.t.ppf(0.975, n - 1) * drawn.std(axis=1, ddof=1) / math.sqrt(n)
        assert np.mean(drawn.mean(axis=1) - half > 0) == pytest.approx(0.8, abs=0.015)
    found = paired({0: 5.0, 1: 7.0, 2: 9.0}, {0: 4.0, 1: 5.0, 2: 6.0})
    assert found is not None and found.visible == pytest.approx(5.6535 / math.sqrt(3), rel=1e-4)
    assert paired({0: 1.0}, {0: 0.0}).visible is None  # type: ignore[union-attr]
    same = paired({0: 0.3, 1: 0.1 + 0.2, 2: 0.3}, {0: 0.1, 1: 0.1, 2: 0.1})
    assert same is not None and same.visible is None  # no spread but rounding
