"""What the loss of the statistics is a mean over: samples or label tokens, against single rows, in
any cut."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import distributed

from loraexp import config, models
from loraexp.adapter.layer import CurvatureRequest, LeadingRequest
from loraexp.run import components
from loraexp.statistics import Calibration, collect
from tests.reference.weighting import loss_statistics
from tests.support.text_tasks import ROWS, settings_of_kind, toy

STATISTICS = ("gradient", "summed_gradient", "output_moment")
LAYERS = {
    "causal": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"],
    "seq2seq": [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.1.layer.1.EncDecAttention.q",
    ],
}
MORE = [
    *ROWS,
    {"p": "Q: how many?\nA: ", "r": "7"},
    {"p": "Q: and how many of the others?\nA: ", "r": "one, two, three and four"},
]


def subject(kind: str, folder: Path) -> tuple:
    task, _ = toy(folder, kind, MORE)
    return task, models.open(settings_of_kind(kind)).load(dtype=torch.float64, head_seed=0).eval()


def batches_of(task, cut: list[list[int]], padding: int = 0) -> list:
    widths = [None if not padding else 64 + padding for _ in cut]
    return [
        task.collate(task.splits["train"], np.array(part), pad_to=width)
        for part, width in zip(cut, widths, strict=True)
    ]


def collected(
    task, model, names: list[str], batches: list, weighting: str, budget: int = 10**9
) -> dict[str, dict[str, torch.Tensor]]:
    targets = {name: model.get_submodule(name) for name in names}
    calibration = Calibration(
        batches, task.loss_sum, task.outputs, 5, task.sample_losses, weighting
    )
    needs = frozenset({*STATISTICS, "leading_gradient", "curvature"})
    request = {"leading_gradient": LeadingRequest(3, 8, 6), "curvature": CurvatureRequest(m=3)}
    found = {}
    made = collect(model, targets, calibration, needs, request, budget=budget)
    assert made.report.weighting == weighting  # the ledger says it
    for layer in made.layers:
        leading, seen = layer.statistics["leading_gradient"], layer.curvature
        found[layer.name] = {name: layer.statistics[name] for name in STATISTICS} | {
            "leading": (leading.U * leading.S) @ leading.Vh,
            "core": seen.U_T @ seen.core @ seen.U_S.mT,
            "projected": seen.U_T @ seen.U_T.mT @ layer.gradient @ seen.U_S @ seen.U_S.mT,
        }
    return found


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Equal up to a share of the largest entry (LLaMA's rotary angles are float32 in a float64
    model too)."""
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


CUTS = {
    "one batch": [[0, 1, 2, 3, 4]],
    "single rows": [[0], [1], [2], [3], [4]],
    "uneven": [[0, 1, 2], [3, 4]],
}


@pytest.mark.parametrize("weighting", ["samples", "tokens"])
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_statistics_of_a_loss_are_those_of_single_rows(
    kind: str, weighting: str, tmp_path: Path
) -> None:
    task, model = subject(kind, tmp_path)
    names = LAYERS[kind]
    rows = [dict(batch) for batch in batches_of(task, CUTS["single rows"])]
    expected = {
        name: loss_statistics(model, name, rows, weighting, kind == "causal") for name in names
    }
    for cut, padding, budget in [
        ("one batch", 0, 10**9),
        ("single rows", 0, 10**9),
        ("uneven", 0, 0),
        ("uneven", 9, 10**9),
    ]:
        found = collected(
            task,
            model,
            names,
            batches_of(task, CUTS[cut], padding if kind == "causal" else 0),
            weighting,
            budget,
        )
        for name in names:
            for statistic in STATISTICS:
                close(found[name][statistic], expected[name][statistic], 1e-6)
            close(found[name]["core"], found[name]["projected"], 1e-5)
            U, S, Vh = torch.linalg.svd(expected[name]["gradient"])
            close(found[name]["leading"], (U[:, :3] * S[:3]) @ Vh[:3], 1e-4)


def test_the_two_weightings_differ_where_rows_have_answers_of_different_lengths(
    tmp_path: Path,
) -> None:
    task, model = subject("causal", tmp_path)
    name = LAYERS["causal"][0]
    G = [
        collected(task, model, [name], batches_of(task, CUTS["uneven"]), w)[name]["gradient"]
        for w in ("samples", "tokens")
    ]
    assert (G[0] - G[1]).norm() / G[0].norm() > 0.1


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    task, model = subject("causal", Path(folder) / str(rank))
    cut = CUTS["uneven"][rank : rank + 1]
    shares = {
        w: collected(task, model, LAYERS["causal"], batches_of(task, cut), w)
        for w in ("samples", "tokens")
    }
    torch.save(shares, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_with_shares_of_different_sizes_give_the_same(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    task, model = subject("causal", tmp_path)
    for weighting in ("samples", "tokens"):
        alone = collected(
            task, model, LAYERS["causal"], batches_of(task, CUTS["one batch"]), weighting
        )
        for rank in range(2):
            shared = torch.load(tmp_path / f"rank{rank}.pt")[weighting]
            for name, statistics in alone.items():
                for statistic in (*STATISTICS, "leading", "core"):
                    close(shared[name][statistic], statistics[statistic], 1e-5)


@pytest.mark.parametrize(
    ("rows", "rank", "told"), [([0], 8, True), ([0, 1, 2, 3, 4], 8, False), ([0], 1, False)]
)
def test_a_decoder_that_sees_fewer_label_tokens_than_the_rank_is_noticed(
    rows: list[int], rank: int, told: bool, tmp_path: Path
) -> None:
    task, model = subject("seq2seq", tmp_path)
    batch = batches_of(task, [rows])
    count = int((batch[0]["labels"] != -100).sum())
    targets = {
        name: model.get_submodule(name)
        for name in [*LAYERS["seq2seq"], "decoder.block.0.layer.1.EncDecAttention.k"]
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = collect(
            model,
            targets,
            Calibration(batch, task.loss_sum, task.outputs, 5),
            frozenset({"gradient"}),
            {},
            budget=0,
            rank=rank,
        )
        gradients = {layer.name: layer.gradient for layer in made.layers}
    said = [str(w.message) for w in caught]
    decoder, encoder = LAYERS["seq2seq"][1], LAYERS["seq2seq"][0]
    assert len(said) == told and int((batch[0]["attention_mask"] != 0).sum()) >= rank
    if told:  # the decoder's own layer alone: the keys of cross-attention read the encoder
        assert said[0].startswith(f"layer {decoder}: the calibration rows bring it {count} tokens")
        assert f"rank={rank} takes 8" in said[0]
        held = {name: int(torch.linalg.matrix_rank(G, rtol=1e-9)) for name, G in gradients.items()}
        assert held[decoder] == count < rank <= held[encoder]


# LoRA-DA, Algorithm 1 line 1; the released codes of LoRA-One and LoRA-GA; LoRA-SB, equation 7;
# CG-LoRA: the training loss
OWN = {
    "lora_da": "samples",
    "lora_da_fa": "samples",
    "lora_one": "samples",
    "lora_ga": "samples",
    "one_step": "samples",
    "lora_sb": "samples",
    "cg_lora": "tokens",
}


@pytest.mark.parametrize(("init", "weighting"), OWN.items())
def test_each_initializer_has_its_own_weighting_and_the_key_overrides_it(
    init: str, weighting: str
) -> None:
    settings, _ = config.check(config.compose([f"init={init}"]))
    assert settings.calibration.weighting is None
    assert components.make(settings.init).func.weighting == weighting
    other = "tokens" if weighting == "samples" else "samples"
    settings, _ = config.check(config.compose([f"init={init}", f"init.weighting={other}"]))
    assert settings.calibration.weighting == other
    with pytest.raises(config.ConfigError, match=r"init.weighting=rows: expected"):
        config.check(config.compose([f"init={init}", "init.weighting=rows"]))
