"""Runs that share their passes are, to rounding, the runs that they would be alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp import config
from loraexp.adapter.draws import Indivisible
from loraexp.adapter.stacked import StackedModel
from loraexp.machine import locks
from loraexp.machine.signals import Interrupted
from loraexp.records import record
from loraexp.run import experiment, packed, train
from tests.support.runs import metric_lines
from tests.support.together import (
    TWENTY,
    WITHOUT_DROPOUT,
    alone,
    farthest,
    moved,
    runs,
    together,
)

MODELS = ("tiny-bert", "tiny-llama")
# an initializer that trains what the rule needs, and rates at which it moves without diverging; the
# systems of LoRA-Pro and P-LoRA, of a B that has hardly left zero, would make rounding large
RULES = {
    "adamw": ("lora", "1e-3"),
    "gd": ("lora", "1e-1"),
    "lora_fa": ("lora_fa", "1e-3"),
    "lora_plus": ("lora", "1e-3"),
    "lora_pro": ("pissa", "1e-4"),
    "lora_pro_low_memory": ("pissa", "1e-4"),
    "p_lora": ("pissa", "1e-4"),
    "sgd": ("lora", "1e-2"),
}
STARTS = ("cg_lora", "lora_sb", "lora_xs", "pissa", "lora_da", "lora_ga", "lora_one", "milora")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty prompts with their responses."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [f"what is {i} and {'more ' * (i % 4)}?,it is {i * i}" for i in range(40)]
    (folder / "train.csv").write_text("\n".join(["q,a", *rows]) + "\n")
    return folder


def words_of(model: str, texts: Path) -> tuple[str, ...]:
    """A model without dropout, and a task for it."""
    if model in ("tiny-bert", "tiny-roberta"):
        return (f"model={model}", "task=tweets", *TWENTY, *WITHOUT_DROPOUT)
    task = ("task=data", f"task.data_dir={texts}", "task.held_out=8")
    templates = ("task.prompt='{q} A:'", "task.response='{a}'")
    dropout = ("+model.config.dropout_rate=0",) if model == "tiny-t5" else ()
    return (f"model={model}", *task, *templates, *TWENTY, *dropout)


def compared(tmp_path: Path, words: Any, each: Any) -> None:
    """Weights to 1e-5 after twenty steps, and the log, of every run, though they trained."""
    packs = together(tmp_path / "together", words, each)
    for one, other in zip(packs, alone(tmp_path / "alone", words, each), strict=True):
        assert one.record["packed"] == len(each) and "packed" not in other.record
        assert one.record["run_id"] == other.record["run_id"]
        assert farthest(one.folder, other.folder) < 1e-5 < 1e-4 < moved(other.folder)
        lines, theirs = metric_lines(one.folder), metric_lines(other.folder)
        assert [line.keys() for line in lines] == [line.keys() for line in theirs]
        for line, their in zip(lines, theirs, strict=True):
            assert line == pytest.approx(their, rel=1e-4, abs=1e-5), line["step"]


def test_every_rule_is_tried() -> None:
    assert set(RULES) == set(config.names("optimizer"))


@pytest.mark.parametrize("model", MODELS)
def test_every_rule_moves_a_packed_run_as_a_lone_one(
    model: str, texts: Path, tmp_path: Path
) -> None:
    """All of them in one pass, beside another rate, schedule and rank."""
    each = [[f"init={init}", f"optimizer={rule}", f"lr={lr}"] for rule, (init, lr) in RULES.items()]
    each += [["init=lora", "lr=5e-4", "rank=4", "train.scheduler=cosine", "alpha=4"]]
    compared(tmp_path, words_of(model, texts), each)


@pytest.mark.parametrize("model", [*MODELS, "tiny-roberta", "tiny-t5"])
def test_every_start_goes_its_own_way(model: str, texts: Path, tmp_path: Path) -> None:
    """With an offset, with R, with A or B or both trained, from a shifted start, all in one
    pass."""
    each = [[f"init={name}", "lr=1e-3"] for name in STARTS]
    each += [["init=cg_lora", "init.start=shifted"], ["init=lora_fa", "optimizer=lora_fa"]]
    compared(tmp_path, words_of(model, texts), each)


def test_masks_of_dropout_are_those_of_each_run_alone(tmp_path: Path) -> None:
    """BERT's own dropout, in its layers and within attention, and the adapters', which differ."""
    each = [["init=lora"], ["init=pissa", "adapter.dropout=0.2"], ["adapter.dropout=0.1"]]
    compared(tmp_path, ("model=tiny-bert", "task=tweets", *TWENTY), each)


def test_runs_end_select_and_stop_each_by_itself(tmp_path: Path) -> None:
    """Other lengths, evaluations, patience, checkpoints; two micro-batches a step."""
    words = ("model=tiny-bert", "task=tweets", *TWENTY, "train.gradient_accumulation=2")
    each = [
        ["train.max_steps=7", "lr=1e-2"],
        ["train.eval_every=3", "train.patience=1", "lr=3e-2"],
        ["train.checkpoint_every=4", "train.keep_factors_every=5", "train.select=last"],
        ["train.max_steps=15", "train.max_grad_norm=0.1", "train.weight_decay=0.1", "lr=1e-3"],
    ]
    packs = together(tmp_path / "together", (*words, "train.micro_batches=2"), each)
    lone = alone(tmp_path / "alone", (*words, "train.micro_batches=2"), each)
    for one, other in zip(packs, lone, strict=True):
        assert one.record["packed"] == 4 and farthest(one.folder, other.folder) < 1e-5
        assert (one.record["best"] or {}).get("step") == (other.record["best"] or {}).get("step")
        assert one.record["adapter"] == other.record["adapter"]
        assert len(metric_lines(one.folder)) == len(metric_lines(other.folder))
        assert not (one.folder / "checkpoint").exists()
    assert len({one.record["adapter"]["step"] for one in packs}) > 1
    assert len(list((packs[2].folder / "factors").iterdir())) == 4


def test_in_bfloat16_a_packed_run_is_as_near_as_its_products(tmp_path: Path) -> None:
    """To a lone one in the same precision it is nearer than that is to one in float32."""
    words = ("model=tiny-bert", "task=tweets", *TWENTY, *WITHOUT_DROPOUT)
    each = [["init=lora", "lr=1e-3"], ["init=lora", "lr=5e-4", "rank=4"]]
    packs = together(tmp_path / "together", (*words, "precision=bf16"), each)
    lone = alone(tmp_path / "alone", (*words, "precision=bf16"), each)
    exact = alone(tmp_path / "exact", words, each)
    for one, other, whole in zip(packs, lone, exact, strict=True):
        assert one.record["packed"] == 2 and one.record["config"]["precision"] == "bf16"
        assert 0 < farthest(other.folder, whole.folder) < moved(whole.folder)
        assert farthest(one.folder, other.folder) <= farthest(other.folder, whole.folder)


@pytest.mark.parametrize("member", [0, 1])
def test_runs_that_were_told_to_stop_go_on_to_the_same_bits(
    member: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a turn, with dropout: none makes a step by itself that it would have shared,
    and all stop after the same one."""
    words = ("model=tiny-bert", "task=tweets", *TWENTY, "adapter.dropout=0.1")
    each = [["lr=1e-3"], ["init=pissa"], ["lr=1e-2", "rank=4"]]
    whole = together(tmp_path / "whole", words, each)
    prepared = runs(tmp_path / "cut", words, each)
    folders = [config.run_folder(plain) for _, plain in prepared]
    step = train.step

    def telling(run: Any, made: Any, number: int, *rest: Any) -> Any:
        if number == 6 and run.record.folder == folders[member]:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, made, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(train, "step", telling)
        for outcome in packed.run(prepared):
            raise outcome  # type: ignore[misc]
    stopped = [record.read(folder) or {} for folder in folders]
    assert [one["status"] for one in stopped] == ["interrupted"] * 3
    for one, other in zip(together(tmp_path / "cut", words, each), whole, strict=True):
        assert [entry["step"] for entry in one.record["resumed"]] == [7]
        assert farthest(one.folder, other.folder) == 0.0
        assert metric_lines(one.folder) == metric_lines(other.folder)


def test_one_run_that_fails_leaves_the_others_to_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose initialiser breaks, one that diverges, one that another process has; the locks of
    all that go on are held."""
    words = ("model=tiny-bert", "task=tweets", *TWENTY, "optimizer=gd")
    each = [["lr=1e-2"], ["rank=2"], ["lr=1e30", "train.max_grad_norm=null"], ["lr=2e-2"], ["lr=3"]]
    prepared = runs(tmp_path / "together", words, each)
    folders = [config.run_folder(plain) for _, plain in prepared]
    real, held = experiment.initialize, []

    def broken(*arguments: Any, **keywords: Any) -> Any:
        if keywords["settings"].rank == 2:
            raise ValueError("no such factors")
        return real(*arguments, **keywords)

    def watching(run: Any, *rest: Any) -> Any:
        held.append([locks.held(folder / ".lock") for folder in folders])
        return step(run, *rest)

    step = train.step
    monkeypatch.setattr(experiment, "initialize", broken)
    monkeypatch.setattr(train, "step", watching)
    folders[4].mkdir(parents=True)
    with locks.locked(folders[4] / ".lock"):
        ends = packed.run(prepared)
    assert isinstance(ends[1], ValueError) and isinstance(ends[4], record.Busy)
    assert isinstance(ends[2], FloatingPointError)
    assert held[0] == [True, False, True, True, True] and held[-1][2] is False
    statuses = [(record.read(folder) or {}).get("status") for folder in folders]
    assert statuses == ["finished", "failed", "failed", "finished", None]
    monkeypatch.setattr(experiment, "initialize", real)
    monkeypatch.setattr(train, "step", step)
    for i, other in zip((0, 3), alone(tmp_path / "alone", words, [each[0], each[3]]), strict=True):
        assert farthest(folders[i], other.folder) < 1e-5
        assert record.read(folders[i])["packed"] == 3  # type: ignore[index]


def test_a_pass_that_does_not_fit_is_made_by_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs ran out of memory: two and two go on. A model that draws what is no dropout is
    called by each run alone. Both are said in the log, and nothing is lost."""
    words = ("model=tiny-bert", "task=tweets", *TWENTY, "train.max_steps=6")
    each = [[f"lr={lr}"] for lr in ("1e-3", "2e-3", "3e-3", "4e-3")]
    lone = alone(tmp_path / "alone", words, each)
    real, asked = StackedModel.outputs, []

    def refusing(why: BaseException, most: int) -> Any:
        def outputs(self: Any, *arguments: Any) -> Any:
            asked.append(len(self.views))
            if len(self.views) > most:
                raise why
            return real(self, *arguments)

        return outputs

    starved = torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
    for name, why, most, k in (
        ("memory", starved, 2, 2),
        ("noise", Indivisible("the model draws random numbers"), 0, None),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(StackedModel, "outputs", refusing(why, most))
            packs = together(tmp_path / name, words, each)
        for one, other in zip(packs, lone, strict=True):
            assert one.record.get("packed") == k and farthest(one.folder, other.folder) < 1e-5
        assert "4 runs do not fit one pass" in (packs[0].folder / "run.log").read_text()
    assert asked.count(4) == 2 and set(asked) == {4, 2}
