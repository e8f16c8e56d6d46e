"""`loraexp align`: angles, distances of predictions and slices of the loss against plain
computations; the figures made of runs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from loraexp import cli
from loraexp.adapter.formats import load_raw, merge
from loraexp.cli import finished
from loraexp.config import ConfigError
from loraexp.finished import angles as alignment
from loraexp.finished import diagnose
from loraexp.finished.opened import FinishedRun
from loraexp.records import record
from loraexp.sweep import computed, reading
from loraexp.theory import runs
from tests.support.runs import run

FEW = (
    "task.limit_train=64",
    "task.limit_eval=24",
    "train.max_steps=4",
    "train.eval_every=4",
    "train.batch_size=8",
)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its factors at steps 2 and 4."""
    return run(
        *FEW,
        "init=lora",
        "rank=4",
        "lr=1e-2",
        "train.keep_factors_every=2",
        out=tmp_path_factory.mktemp("lora"),
    ).folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(*FEW, "method=full", "lr=1e-3", out=tmp_path_factory.mktemp("full")).folder


def subject(folder: Path) -> FinishedRun:
    return FinishedRun.of(folder, record.read(folder))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------
# angles


def test_sines_of_planes_turned_by_known_angles() -> None:
    X = torch.eye(6, 2, dtype=torch.float64)
    angles = torch.tensor([0.3, 1.1], dtype=torch.float64)
    Y = torch.zeros(6, 2, dtype=torch.float64)
    # each direction turned out of the plane of X by its own angle
    for i, angle in enumerate(angles):
        Y[i, i], Y[i + 2, i] = angle.cos(), angle.sin()
    turn = torch.linalg.qr(
        torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).Q
    expected = angles.sin().flip(0)
    assert torch.allclose(alignment.sines(X, Y @ turn), expected)
    assert torch.allclose(alignment.sines(Y @ turn, X), expected)
    complement = torch.eye(6, dtype=torch.float64) - Y @ Y.T  # the paper's form, ‖Y_⊥ᵀ X‖_op
    assert float(alignment.sines(X, Y)[0]) == pytest.approx(
        float(torch.linalg.matrix_norm(complement @ X, 2))
    )


def test_overlap_is_the_norm_of_the_product_of_projections() -> None:
    generator = torch.Generator().manual_seed(0)
    X, Y = (torch.linalg.qr(torch.randn(20, 4, generator=generator).double())[0] for _ in range(2))
    expected = float(torch.linalg.matrix_norm(X @ X.T @ Y @ Y.T).square()) / 4
    assert alignment.overlap(alignment.sines(X, Y)) == pytest.approx(expected, abs=1e-12)
    assert alignment.overlap(alignment.sines(X, X)) == pytest.approx(1.0)
    half = torch.cat([X[:, :2], torch.linalg.qr(torch.cat([X, Y], dim=1))[0][:, 4:6]], dim=1)
    assert alignment.overlap(alignment.sines(half, X)) == pytest.approx(0.5, abs=1e-9)


def test_a_subspace_that_is_not_there_has_no_angle() -> None:
    assert alignment.leading_subspace(torch.zeros(8, 2), 1) is None
    thin = torch.outer(torch.arange(1.0, 9.0), torch.tensor([1.0, 2.0]))
    assert alignment.leading_subspace(thin, 2) is None
    assert alignment.leading_subspace(thin, 1).shape == (8, 1)  # type: ignore[union-attr]
    assert alignment.mean([None, 0.5, 0.25]) == 0.375 and alignment.mean([None]) is None


def test_the_one_step_gradient_is_that_of_the_mean_loss(lora: Path) -> None:
    """All 64 training rows: the leading triplets of what autograd gives on the pretrained model."""
    looked = subject(lora)
    model = looked.base()
    found = alignment.one_step_gradient(looked, model, rows=64, k=3)
    examples = looked.task.splits["train"]
    weights = {
        name: module.weight.requires_grad_(True) for name, module in looked.targets(model).items()
    }
    loss, count = looked.task.loss_sum(model, looked.task.collate(examples, range(len(examples))))
    gradients = torch.autograd.grad(loss / count, list(weights.values()))
    for name, gradient in zip(weights, gradients, strict=True):
        U, S, Vh = torch.linalg.svd(gradient)
        assert torch.allclose(found[name].S, S[:3], rtol=1e-3)
        assert float(alignment.sines(found[name].Vh[:2].T, Vh[:2].T)[0]) < 1e-2
        assert float(alignment.sines(found[name].U[:, :2], U[:, :2])[0]) < 1e-2


def test_angles_of_a_factor_made_of_the_gradient_are_zero(lora: Path) -> None:
    """LoRA-One starts in the gradient's own subspaces; LoRA's B starts at zero and has no angle."""
    looked = subject(lora)
    gradient = alignment.one_step_gradient(looked, looked.base(), rows=64, k=4)
    steps = dict(alignment.kept_factors(looked))
    assert list(steps) == [0, 2, 4]
    at_start = alignment.by_class(alignment.angles(looked, gradient, steps[0], 4))
    assert set(at_start) == {"query", "value", "mean"}
    assert at_start["mean"]["B"] is None and at_start["mean"]["A"] > 0.9  # type: ignore[operator]
    spectral = run(
        *FEW,
        "init=lora_one",
        "init.samples=64",
        "init.mode=eval",
        "rank=4",
        "train.max_steps=0",
        out=lora.parent.parent / "one",
    )
    own = alignment.by_class(
        alignment.angles(
            subject(spectral.folder), gradient, spectral.folder / "init" / alignment.RAW, 1
        )
    )
    assert own["mean"]["A"] < 0.05 and own["mean"]["B"] < 0.05  # type: ignore[operator]


# --------------------------------------------------------------------------------------------------
# predictions, losses


def logits(looked: FinishedRun, model: Any) -> torch.Tensor:
    _, batches = looked.batches(24)
    with torch.no_grad():
        return torch.cat([looked.task.outputs(model, batch) for batch in batches])


def test_prediction_distances_are_those_of_the_three_models(lora: Path, full: Path) -> None:
    looked, against = subject(lora), subject(full)
    found = alignment.prediction_distances(looked, against, rows=24)
    wanted = logits(looked, against.whole())
    trained = merge(load_raw(looked.base(), lora / "adapter" / alignment.RAW))
    start, end = ((logits(looked, model) - wanted).norm() for model in (looked.base(), trained))
    assert found["pretrained_rms"] == pytest.approx(
        float(start) / math.sqrt(wanted.numel()), rel=1e-4
    )
    # LoRA begins as the pretrained model
    assert found["steps"][0]["relative"] == pytest.approx(1, abs=1e-5)
    assert found["steps"][-1]["step"] == 4
    assert found["steps"][-1]["relative"] == pytest.approx(float(end / start), rel=1e-4)


def test_slices_pass_through_the_models_that_they_lie_between(lora: Path, full: Path) -> None:
    looked, against = subject(lora), subject(full)
    found = alignment.slices(looked, against, rows=24, line=13, plane=3)
    _, batches = looked.batches(24)
    models = {
        "pretrained": looked.base(),
        "run": merge(load_raw(looked.base(), lora / "adapter" / alignment.RAW)),
        "full": against.whole(),
    }
    exact = {name: alignment.mean_loss(looked, model, batches) for name, model in models.items()}
    line = dict(zip([round(t, 6) for t in found["line"]["t"]], found["line"]["loss"], strict=True))
    assert line[0.0] == pytest.approx(exact["pretrained"], abs=1e-6) and line[1.0] == pytest.approx(
        exact["run"], abs=1e-5
    )
    adapters = load_raw(looked.base(), lora / "adapter" / alignment.RAW)
    slider = alignment.Slider(
        adapters, alignment.head_of(looked.base(), looked.settings), against.whole()
    )
    slider.move(0.0, 1.0)
    assert alignment.mean_loss(looked, slider.model, batches) == pytest.approx(
        exact["full"], abs=1e-5
    )
    moved = {
        name: {n: p.detach() for n, p in model.named_parameters()} for name, model in models.items()
    }
    to_run, to_full = (
        torch.cat([(moved[k][n] - p).flatten() for n, p in moved["pretrained"].items()])
        for k in ("run", "full")
    )
    along, (x, y) = float(to_run.norm()), found["plane"]["points"]["full"]
    assert found["plane"]["points"]["run"] == pytest.approx([along, 0], rel=1e-4)
    assert x == pytest.approx(float(to_run @ to_full) / along, rel=1e-3, abs=1e-6)
    assert math.hypot(x, y) == pytest.approx(float(to_full.norm()), rel=1e-4)


def test_a_plane_is_evaluated_at_its_own_coordinates() -> None:
    """A loss that returns the point itself: x and y of the grid come back from the two directions'
    shares."""
    run_norm, full_norm, inner = 2.0, 3.0, 1.5
    e1, e2 = (
        torch.tensor([run_norm, 0.0]),
        torch.tensor([inner / run_norm, math.sqrt(full_norm**2 - (inner / run_norm) ** 2)]),
    )
    for axis in (0, 1):
        found = alignment.over_plane(
            (run_norm**2, inner, full_norm**2),
            lambda a, b, axis=axis: float((a * e1 + b * e2)[axis]),
            3,
        )
        for i, y in enumerate(found["y"]):
            assert found["loss"][i] == pytest.approx(found["x"] if axis == 0 else [y] * 3, abs=1e-6)
    with pytest.raises(ConfigError, match="there is no plane between them"):
        alignment.over_plane((4.0, 8.0, 16.0), lambda a, b: 0.0, 3)


# --------------------------------------------------------------------------------------------------
# the verb


def test_the_verb_writes_table_numbers_and_picture(lora: Path, full: Path, capsys) -> None:
    options = ["--against", str(full), "--rows", "16", "--held-out", "16", "--points", "2"]
    assert finished.align([str(lora), *options, "device=cpu"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((lora / "align.json").read_text())
    assert [line["step"] for line in found["angles"]["steps"]] == [0, 2, 4]
    assert (
        found["angles"]["rows"] == 16
        and found["loss"]["rows"] == 16
        and found["loss"]["split"] == "dev"
    )
    assert set(found["loss"]["plane"]["points"]) == {"pretrained", "run", "full"}
    overlaps = [line["classes"]["mean"]["A_overlap"] for line in found["angles"]["steps"]]
    assert (
        "overlap ‖P_A P_G‖²" in printed
        and f"{overlaps[-1]:.3f}" in printed
        and all(0 < value < 1 for value in overlaps)
    )
    assert (
        "query A" in printed
        and f"relative {found['predictions']['steps'][-1]['relative']:.3f}" in printed
    )
    assert (lora / "align.png").read_bytes()[:4] == b"\x89PNG"


def test_a_full_run_alone_has_its_line(full: Path, capsys) -> None:
    assert finished.align([str(full), "--held-out", "8", "--points", "2"]) == 0
    found = json.loads((full / "align.json").read_text())
    looked = subject(full)
    exact = alignment.mean_loss(looked, looked.whole(), looked.batches(8)[1])
    assert "angles" not in found and found["loss"]["line"]["loss"][9] == pytest.approx(
        exact, abs=1e-5
    )
    assert "no factors" in capsys.readouterr().out


def test_text_models_are_looked_at_too(tmp_path: Path) -> None:
    """T5 on MRPC: labels of several tokens, classes of six kinds of layers."""
    rows = "\n".join(
        f"{i % 2}\t{i}\t{i + 100}\tthe cat sat on mat {i}\ta cat sat on mat {i}" for i in range(40)
    )
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text(
            f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{rows}\n"
        )
    words = [
        "model=tiny-t5",
        "task=mrpc_t5",
        f"task.data_dir={tmp_path}",
        "task.max_length=32",
        "init.samples=8",
    ]
    words += ["train.max_steps=2", "train.batch_size=4", "task.limit_train=16", "task.limit_eval=8"]
    from loraexp import config
    from loraexp.run import experiment

    folders = []
    for method in (["method=lora", "rank=2"], ["method=full"]):
        settings, plain = config.check(
            config.compose(
                [*words, *method, "wandb.mode=disabled", "device=cpu", f"output_root={tmp_path}"]
            )
        )
        folders.append(experiment.run(settings, plain).folder)
    looked, against = (subject(folder) for folder in folders)
    gradient = alignment.one_step_gradient(looked, looked.base(), rows=8, k=2)
    classes = alignment.by_class(
        alignment.angles(looked, gradient, folders[0] / "adapter" / alignment.RAW, 2)
    )
    assert set(classes) == {"q", "k", "v", "o", "wi", "wo", "mean"}
    assert alignment.prediction_distances(looked, against, rows=4)["steps"][0][
        "relative"
    ] == pytest.approx(1, abs=1e-5)
    assert math.isfinite(
        alignment.slices(looked, against, rows=4, line=3, plane=2)["plane"]["loss"][0][0]
    )


def test_wrong_arguments_are_one_line(lora: Path, full: Path, capsys) -> None:
    cases = {
        "expected a run folder, or the id of one run": ["nowhere"],
        "--directions 9: the run's rank is 4": [str(lora), "--directions", "9"],
        "expected a run with init=full": [str(lora), "--against", str(lora)],
        "leave out --against": [str(full), "--against", str(full)],
        "expected KEY=VALUE of device": [str(lora), "lr=1"],
        "--rows 0: expected a whole number of at least 1": [str(lora), "--rows", "0"],
    }
    for message, arguments in cases.items():
        with pytest.raises(ConfigError, match=message):
            finished.align(arguments)
    assert cli.main(["align", str(lora), "--against", "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_run_of_another_model_is_refused(lora: Path, full: Path) -> None:
    ours, theirs = subject(lora), subject(full)
    other = dataclasses.replace(
        theirs,
        settings=dataclasses.replace(theirs.settings, task=theirs.settings.task | {"name": "sst2"}),
    )
    with pytest.raises(ConfigError, match="task=sst2, and the run has tweets; expected the same"):
        diagnose.check(ours, other, None)


# --------------------------------------------------------------------------------------------------
# figures of runs


def test_spectra_and_ratio_of_known_weights(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    W0, change = (
        torch.diag(torch.tensor([8.0, 4.0, 2.0])).double(),
        torch.diag(torch.tensor([0.5, 1.0, 0.25])).double(),
    )
    monkeypatch.setattr(runs.Runs, "trained", lambda *_: subject(full))
    monkeypatch.setattr(
        runs,
        "weights",
        lambda _: iter([("a.query", W0, W0 + change), ("b.query", W0, W0 + 2 * change)]),
    )
    found = runs.spectra(
        overrides=[], count=2, output_root=Path(), progress=lambda done, total: None
    )
    assert (found.values["ratio/smallest"], found.values["ratio/largest"]) == (4.0, 8.0)
    assert (found.values["decay/median"], found.values["decay_pretrained/median"]) == (0.5, 0.5)
    difference = next(curve for curve in found.curves if curve.panel == "difference")
    assert (difference.low, difference.high) == ([1.0, 0.5], [2.0, 1.0])
    ratio = runs.assumption_ratio(
        overrides=[], output_root=Path(), progress=lambda done, total: None
    )
    assert ratio.values["pretrained/largest"] == 4.0 and ratio.values[
        "fine_tuned/largest"
    ] == pytest.approx(8.5 / 2.25)
    with pytest.raises(ConfigError, match="compute.count=4: layer a.query has 3 singular values"):
        runs.spectra(overrides=[], count=4, output_root=Path(), progress=lambda done, total: None)


@pytest.mark.parametrize("name", ["lora_one_fig1b", "lora_one_fig7", "lora_one_fig8"])
def test_the_smoke_variants_give_what_claims_and_plots_name(name, tmp_path: Path) -> None:
    wanted = reading.load(name, "smoke", [f"output_root={tmp_path}"])
    _, found = computed.load(computed.run(wanted, tmp_path))  # type: ignore[misc]
    for claim in wanted.claims:
        assert {value for value in (claim.value, claim.minus, claim.over) if value} <= set(
            found.values
        )
    panels = {curve.panel for curve in found.curves}
    assert all(set(plot.panels or []) <= panels for plot in wanted.plots)
    assert all(Path(folder, "record.json").is_file() for folder in found.data["runs"])


def test_every_variant_names_real_keys_and_a_run_that_composes() -> None:
    from loraexp import config

    for name in ("lora_one_fig1b", "lora_one_fig7", "lora_one_fig8", "lora_one_fig6"):
        for variant in [None, *reading.load(name).variants]:
            wanted = reading.load(name, variant)
            if wanted.compute is None:
                rows = {row for row, _ in wanted.trained()}
                assert rows == {"lora_one", "lora_one_p"} and len(wanted.grid["lr"]) == (
                    2 if variant == "smoke" else 6
                )
                continue
            computed.check(wanted)
            config.check(config.compose(wanted.compute["overrides"]))


def test_figures_of_the_wrong_kind_of_run_say_so(tmp_path: Path) -> None:
    words = [*FEW, "experiment=smoke", "wandb.mode=disabled", "train.max_steps=0"]
    where = {"output_root": tmp_path, "progress": lambda done, total: None}
    with pytest.raises(ConfigError, match="init=lora; expected method=full"):
        runs.spectra(overrides=[*words, "method=lora", "rank=4"], **where)
    with pytest.raises(ConfigError, match="train.keep_factors_every above 0"):
        runs.angles_during_training(
            overrides=[*words, "method=lora", "rank=4"], seeds=[0], rows=8, **where
        )
