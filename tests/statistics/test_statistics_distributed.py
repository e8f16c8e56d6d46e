"""Two processes, each with its share of the batches, give the statistics of one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
from torch import distributed

from loraexp.adapter.layer import CurvatureRequest, LeadingRequest
from loraexp.statistics import Calibration, Store, collect
from tests.support.tiny import (
    SPLIT,
    Tiny,
    batches,
    loss_sum,
    outputs,
    rows,
    targets_of,
)

NEEDS = frozenset({"gradient", "input_moment", "output_moment", "leading_gradient", "curvature"})
REQUEST = {
    "curvature": CurvatureRequest(m=3, loss="cross_entropy"),
    "leading_gradient": LeadingRequest(2, 2, 2),
}


def every_statistic(given: list, budget: int, cache: Path | None = None) -> tuple[dict, object]:
    model = Tiny(3)
    calibration = Calibration(given, loss_sum, outputs, 10, mode="train", seed=4)
    made = collect(
        model,
        targets_of(model),
        calibration,
        NEEDS,
        REQUEST,
        budget=budget,
        cache=None if cache is None else Store(cache, "tiny"),
    )
    found = {}
    for layer in made.layers:
        seen, leading = layer.curvature, layer.statistics["leading_gradient"]
        found[layer.name] = {
            "gradient": layer.gradient,
            "input_moment": layer.input_moment,
            "output_moment": layer.output_moment,
            "leading_gradient": (leading.U * leading.S) @ leading.Vh,
            "core": seen.U_T @ seen.core @ seen.U_S.mT,
            "theta": seen.U_T @ seen.theta @ seen.U_T.mT,
            "damping": torch.tensor([seen.damping_S, seen.damping_T]),
        }
    return found, made.report


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    given = batches(rows(classes=3), SPLIT)
    share = given[:1] if rank == 0 else given[1:]
    held = {budget: every_statistic(share, budget)[0] for budget in (0, 10**9)}
    cache = Path(folder) / "cache"
    hits = [every_statistic(share, 10**9, cache)[1].cache_hit for _ in range(2)]
    torch.save((held, hits), f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_statistics_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    alone = {
        budget: every_statistic(batches(rows(classes=3), SPLIT), budget)[0] for budget in (0, 10**9)
    }
    for rank in range(2):
        held, hits = torch.load(tmp_path / f"rank{rank}.pt")
        assert hits == [False, True]
        for budget, expected in alone.items():
            for name, statistics in expected.items():
                for statistic, value in statistics.items():
                    difference = (held[budget][name][statistic] - value).abs().max().item()
                    assert difference <= 1e-6 * value.abs().max().item() + 1e-12, (
                        rank,
                        budget,
                        name,
                        statistic,
                    )
