"""MNIST's files, and the trajectories of full and low-rank fine-tuning from odd to even digits."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from loraexp.config import ConfigError
from loraexp.machine.hub import SourceError
from loraexp.records.curves import Computed
from loraexp.run.train import Diverged
from loraexp.sweep import computed, reading
from loraexp.theory import digits, mnist, network
from loraexp.theory.plane import FULL, Plane, Way, distances
from tests.support.helpers import shared_data

COMMON = ["optimizer=gd", "lr=5e-2", "rank=2", "alpha=2"]
METHODS: dict[str, Any] = {
    "full": {"label": "Full", "overrides": ["method=full", "optimizer=gd"]},
    "lora_one": {
        "label": "LoRA-One",
        "overrides": ["method=lora_one", "optimizer=gd", "init.scale=1", "init.samples=64"],
    },
}
SMALL: dict[str, Any] = {"steps": 6, "every": 2, "odd": 100, "even": 64, "width": 8, "points": 5}


def silent(done: int, total: int) -> None: ...


def made(
    methods: dict[str, Any] = METHODS, overrides: list[str] = COMMON, **changed: Any
) -> Computed:
    return mnist.trajectories(
        methods=methods,
        overrides=overrides,
        **({"seeds": [0], "progress": silent} | SMALL | changed),
    )


def write_idx(path: Path, array: np.ndarray, *, cut: int = 0) -> None:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = head + array.astype(np.uint8).tobytes()
    content = content[: len(content) - cut]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


# --------------------------------------------------------------------------------------------------
# the files


def test_the_package_carries_500_images_of_each_digit() -> None:
    found = digits.read()
    assert np.bincount(found.labels).tolist() == [500] * 10
    assert found.images.shape == (5000, 784) and found.images.min() == 0 and found.images.max() == 1


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_read_back(ending, tmp_path: Path) -> None:
    images, labels = (
        np.random.default_rng(0).integers(0, 256, (6, 28, 28)),
        np.array([3, 1, 4, 1, 5, 9]),
    )
    write_idx(tmp_path / f"train-images-idx3-ubyte{ending}", images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{ending}", labels)
    found = digits.read(str(tmp_path))
    assert found.labels.tolist() == labels.tolist()
    assert np.array_equal(np.rint(found.images * 255), images.reshape(6, 784))


def test_the_original_files_hold_the_known_first_digits() -> None:
    found = digits.read(str(shared_data("mnist")))
    assert found.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert (found.images[0] > 0).sum() == 166  # inked pixels of the first 5


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no train-images-idx3-ubyte"):
        digits.read(str(tmp_path))
    images = tmp_path / "train-images-idx3-ubyte"
    write_idx(images, np.zeros((2, 28, 28)))
    with pytest.raises(SourceError, match="train-labels-idx1-ubyte is not there"):
        digits.read(str(tmp_path))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3))
    with pytest.raises(SourceError, match="with 3 labels; expected"):
        digits.read(str(tmp_path))
    write_idx(images, np.zeros((2, 28, 28)), cut=5)
    with pytest.raises(SourceError, match="cut short or damaged"):
        digits.read(str(tmp_path))
    images.write_bytes(b"<html>not found</html>")
    with pytest.raises(SourceError, match="expected an idx file"):
        digits.read(str(tmp_path))
    images.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(SourceError, match="not a gzip file"):
        digits.read(str(tmp_path))


def test_odd_digits_pretrain_and_even_ones_are_apart() -> None:
    data = network.Data.drawn(digits.read(), odd=10_000, even=1_000, seed=0)
    assert (len(data.odd), len(data.even), len(data.held_out)) == (2_500, 1_000, 1_000)
    assert (
        (data.odd.labels % 2 == 1).all()
        and (data.even.labels % 2 == 0).all()
        and (data.held_out.labels % 2 == 0).all()
    )
    rows = {row.tobytes() for row in data.even.x.numpy()}
    assert not any(row.tobytes() in rows for row in data.held_out.x.numpy())


# --------------------------------------------------------------------------------------------------
# the ways


def start() -> tuple[network.TwoLayer, network.Data]:
    data = network.Data.drawn(digits.read(), odd=100, even=64, seed=0)
    return network.pretrained(data, 8, 0), data


def test_full_fine_tuning_is_gradient_descent() -> None:
    """The weights after three steps, against the update written out."""
    model, data = start()
    weights = [model.hidden.weight.detach().clone(), model.output.weight.detach().clone()]
    before = torch.cat([w.flatten() for w in weights])
    for _ in range(3):
        leaves = [w.requires_grad_(True) for w in weights]
        loss = functional.cross_entropy(
            functional.relu(data.even.x @ leaves[0].T) @ leaves[1].T, data.even.labels
        )
        weights = [
            (w - 5e-2 * g).detach()
            for w, g in zip(leaves, torch.autograd.grad(loss, leaves), strict=True)
        ]
    settings = mnist.settings_of([*COMMON, "method=full", "optimizer=gd"], 0)
    way = mnist.fine_tuned(model, data, settings, 3, 1, lambda: None)
    assert torch.allclose(
        way.moved[-1], torch.cat([w.flatten() for w in weights]) - before, atol=1e-6
    )
    assert way.steps == [0, 1, 2, 3] and way.losses[-1] < way.losses[0]


def test_a_method_starts_where_its_initializer_says() -> None:
    """LoRA starts at the pretrained weights and moves within rank 2; LoRA-One starts a rank-2 step
    of norm 1 away."""
    model, data = start()
    for method, size in (("lora", 0.0), ("lora_one", 1.0)):
        settings = mnist.settings_of(
            [
                *COMMON,
                f"method={method}",
                "optimizer=gd",
                *["init.scale=1"] * (method == "lora_one"),
            ],
            0,
        )
        way = mnist.fine_tuned(model, data, settings, 2, 1, lambda: None)
        first, last = (moved[: 8 * 784].reshape(8, 784) for moved in (way.moved[0], way.moved[-1]))
        assert float(torch.linalg.matrix_norm(first, 2)) == pytest.approx(size, abs=1e-4)
        assert int(torch.linalg.matrix_rank(last, rtol=1e-4)) <= 2 and last.any()


def test_the_plane_holds_both_ends_of_full_fine_tuning_and_the_surface_is_the_loss() -> None:
    model, data = start()
    settings = [mnist.settings_of([*COMMON, *METHODS[name]["overrides"]], 0) for name in METHODS]
    ways = {
        name: mnist.fine_tuned(model, data, s, 4, 1, lambda: None)
        for name, s in zip(METHODS, settings, strict=True)
    }
    plane = Plane.through(model.flat(), ways)
    assert torch.allclose(plane.directions @ plane.directions.T, torch.eye(2), atol=1e-5)
    end = ways[FULL].moved[-1]
    assert plane.share(end) == pytest.approx(1, abs=1e-5)
    corners = torch.stack([torch.zeros(2), plane.directions @ end + torch.tensor([0.0, 1.0])])
    grid = mnist.surface(plane, data.even, corners, 3)
    for i, y in enumerate(grid.y):
        for j, x in enumerate(grid.x):
            flat = model.flat() + x * plane.directions[0] + y * plane.directions[1]
            hidden, output = flat[: 8 * 784].reshape(8, 784), flat[8 * 784 :].reshape(10, 8)
            loss = functional.cross_entropy(
                functional.relu(data.even.x @ hidden.T) @ output.T, data.even.labels
            )
            assert grid.z[i][j] == pytest.approx(float(loss), rel=1e-4)


def test_distances_are_at_the_same_step_in_lengths_of_full() -> None:
    full = Way(steps=[0, 1], moved=[torch.zeros(2), torch.tensor([0.0, 2.0])])
    other = Way(steps=[0, 1], moved=[torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
    assert distances(other, full) == [0.5, 0.5]


def test_the_same_settings_give_the_same_numbers_and_seeds_differ() -> None:
    first, again = made(seeds=[0, 1]), made(seeds=[0])
    for name, value in again.values.items():
        assert first.values[name][0] == value[0]  # type: ignore[index]
    assert first.values["lora_one/final_loss"][0] != first.values["lora_one/final_loss"][1]  # type: ignore[index]
    assert first.data["rows"] == {"odd": 100, "even": 64, "held_out": 1000}


def test_a_diverging_method_is_marked_where_it_did() -> None:
    methods = METHODS | {
        "lora_one": (
            METHODS["lora_one"] | {"overrides": [*METHODS["lora_one"]["overrides"], "lr=1e12"]}
        )
    }
    found = made(methods)
    at = found.values["lora_one/diverged_at"][0]  # type: ignore[index]
    assert 1 <= at <= 6
    assert {curve.diverged_at for curve in found.curves if curve.label == "LoRA-One"} == {at}
    assert {curve.diverged_at for curve in found.curves if curve.label == "Full"} == {None}
    with pytest.raises(Diverged, match="full fine-tuning diverged at step"):
        made(overrides=["optimizer=gd", "lr=1e30", "rank=2", "alpha=2"])


def test_wrong_arguments_are_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"rank=11: layer output is \(10, 12\); expected at most 10"
    ):
        made(overrides=[*COMMON[:2], "rank=11", "alpha=2"], width=12)
    with pytest.raises(ConfigError, match="expected full and at least one other"):
        made({"lora": METHODS["lora_one"]})
    with pytest.raises(ConfigError, match="compute.methods.full: expected label and overrides"):
        made({"full": ["method=full"]})
    with pytest.raises(
        ConfigError, match="method=lora_two: there is no conf/method/lora_two.yaml; nearest"
    ):
        made(METHODS | {"x": {"label": "x", "overrides": ["method=lora_two"]}})
    with pytest.raises(ConfigError, match="compute.even=2500: .* some are held out"):
        made(even=2500)


@pytest.mark.parametrize("name", ["lora_one_fig1c", "lora_da_fig3"])
def test_the_smoke_variants_fill_every_place_and_claim(name, tmp_path: Path) -> None:
    wanted = reading.load(name, "smoke", [f"output_root={tmp_path}"])
    _, found = computed.load(computed.run(wanted, tmp_path))  # type: ignore[misc]
    assert {f"{row}/{column}" for row in wanted.rows for column in wanted.columns} <= set(
        found.values
    )
    for claim in wanted.claims:
        assert {value for value in (claim.value, claim.minus, claim.over) if value} <= set(
            found.values
        )
    panels = {curve.panel for curve in found.curves}
    assert all(set(plot.panels or []) <= panels for plot in wanted.plots)
    assert set(computed.check(reading.load(name)).__kwdefaults__ or {}) <= set(
        reading.load(name).compute or {}
    )
