"""`python -m benchmarks.resolution OUTPUTS`: how much narrower the paired interval of the
likelihood is than that of accuracy, over every pair of settings that share seeds.

The two have different units, so an interval is measured in the difference that it is of: of a pair,
`|difference| / half width` of the likelihood over that of accuracy. Above 1 the likelihood tells
the two settings apart with fewer seeds.
"""

from __future__ import annotations

import statistics
import sys
from itertools import combinations

from loraexp.records.reading import load_records
from loraexp.results.significance import paired

METRICS = ("dev/accuracy", "dev/log_likelihood")
SAME = ["task.name", "model.name", "task.limit_train", "task.limit_eval"]
SETTING = [*SAME, "init.name", "optimizer.name", "lr"]
LEARNS = (
    0.15  # mean accuracy above the least of all settings: what stays at the majority is left out
)
SEEDS = 3


def main(root: str) -> list[float]:
    """Print each pair and the median factor."""
    runs = load_records(root)
    runs = runs[runs["status"] == "finished"].dropna(subset=list(METRICS))
    groups = {
        key: {
            int(row["seed"]): [float(row[name]) for name in METRICS] for _, row in rows.iterrows()
        }
        for key, rows in runs.groupby(SETTING, dropna=False)
    }
    means = {
        key: statistics.fmean(values[0] for values in seeds.values())
        for key, seeds in groups.items()
    }
    factors = []
    for one, two in combinations(groups, 2):
        common = groups[one].keys() & groups[two].keys()
        floor = min(mean for key, mean in means.items() if key[:4] == one[:4]) + LEARNS
        if one[:4] != two[:4] or len(common) < SEEDS or min(means[one], means[two]) < floor:
            continue
        shares = []
        for place in range(len(METRICS)):
            sides = [{seed: groups[key][seed][place] for seed in common} for key in (one, two)]
            found = paired(sides[0], sides[1])
            assert found is not None and found.t is not None
            shares.append(abs(found.difference) / ((found.t[1] - found.t[0]) / 2))
        factors.append(shares[1] / shares[0])
        print(
            f"{one[4:]} − {two[4:]}: difference / half width {shares[0]:.2f} by accuracy,"
            f" {shares[1]:.2f} by likelihood: {factors[-1]:.1f} times"
        )
    if factors:
        print(
            f"{len(factors)} pairs: median {statistics.median(factors):.1f} times"
            f" ({min(factors):.1f} … {max(factors):.1f})"
        )
    return factors


if __name__ == "__main__":
    main(sys.argv[1])
