"""Statistics against literal per-sample autograd on a tiny transformer in float64, and what must
stay as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from loraexp.adapter.layer import Curvature, CurvatureRequest, Layer, LeadingRequest
from loraexp.statistics import (
    Calibration,
    Collected,
    Size,
    Store,
    collect,
    fingerprint,
    layer_generator,
    plan,
    token_mask,
)
from loraexp.statistics.probes import Pass, probe_sum
from tests.support.tiny import (
    SPLIT,
    Tiny,
    batches,
    loss_sum,
    losses,
    outputs,
    rows,
    targets_of,
)

BIG = 10**9
MATRICES = frozenset({"gradient", "summed_gradient", "input_moment", "output_moment"})


def gather(
    model: nn.Module, given: list[dict[str, Tensor]], needs: set[str], **options: object
) -> dict[str, Layer]:
    return {layer.name: layer for layer in collected(model, given, needs, **options).layers}


def collected(
    model: nn.Module, given: list[dict[str, Tensor]], needs: set[str], **options: object
) -> Collected:
    names = options.pop("targets", None) or targets_of(model)
    call = {"request": {}, "budget": BIG} | options
    calibration = Calibration(
        given,
        call.pop("loss_sum", loss_sum),
        outputs,
        1000,
        call.pop("sample_losses", None),
        call.pop("weighting", "tokens"),
        call.pop("mode", "eval"),
        call.pop("seed", 1),
    )
    return collect(model, names, calibration, frozenset(needs), **call)


def literal(
    model: Tiny, samples: list[tuple[Tensor, Tensor]], of: str = "loss"
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Per layer and sample: inputs (tokens of all calls, d_in) and gradients at outputs; one
    unpadded sample at a time."""
    model.eval()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for ids, label in samples:
        trace: dict[str, list[tuple[Tensor, Tensor]]] = {}
        logits = model(ids[None], torch.ones(1, len(ids), dtype=torch.long), trace)
        scalar = losses(logits, label[None]).sum() if of == "loss" else logits.sum()
        if of == "theta":
            p = torch.sigmoid(logits.detach())
            scalar = ((p * (1 - p)).sqrt() * logits).sum()
        flat = [(name, h, y) for name, calls in trace.items() for h, y in calls]
        gradients = torch.autograd.grad(scalar, [y for _, _, y in flat])
        per_layer: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        for (name, h, _), mu in zip(flat, gradients, strict=True):
            inputs, mus = per_layer.setdefault(f"block.{name}", ([], []))
            inputs.append(h[0].detach())
            mus.append(mu[0])
        for name, (inputs, mus) in per_layer.items():
            seen.setdefault(name, []).append((torch.cat(inputs), torch.cat(mus)))
    return seen


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    scale = b.abs().max().item()
    assert (a - b).abs().max().item() <= tolerance * scale, (
        f"{(a - b).abs().max().item() / scale:.2e}"
    )


@pytest.mark.parametrize("split, padding", [([10], 0), (SPLIT, 0), (SPLIT, 6)])
def test_matrices_are_those_of_literal_loops(split: list[int], padding: int) -> None:
    model, samples = Tiny(), rows()
    layers = gather(model, batches(samples, split, padding), {*MATRICES, "population"})
    assert list(layers) == [f"block.{name}" for name in ("query", "key", "value", "up", "down")]
    for name, seen in literal(model, samples).items():
        h, mu = (torch.cat(part) for part in zip(*seen, strict=True))
        layer = layers[name]
        if name != "block.key":
            close(layer.summed_gradient, mu.mT @ h)
        assert torch.allclose(layer.summed_gradient, mu.mT @ h, atol=1e-12)
        assert torch.allclose(layer.gradient, mu.mT @ h / 10, atol=1e-13)
        close(layer.input_moment, h.mT @ h / len(h))
        close(layer.output_moment, mu.square().mean(0))
        assert layer.population == 1000


def test_gradient_is_that_of_autograd_on_the_weight() -> None:
    model, given = Tiny(), batches(rows(), SPLIT)
    layers = gather(model, given, {"gradient"})
    model.eval()
    total = sum(loss_sum(model, batch)[0] for batch in given) / 10
    for name, module in targets_of(model).items():
        (expected,) = torch.autograd.grad(total, module.weight, retain_graph=True)
        assert torch.allclose(layers[name].gradient, expected, atol=1e-13)


@pytest.mark.parametrize("weighting", ["samples", "tokens"])
def test_the_loss_is_a_mean_over_samples_or_over_label_tokens(weighting: str) -> None:
    model, samples = Tiny(), rows()

    def weighted(m: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        # as many label tokens as the label says, all with the sample's loss
        counts = batch["labels"] + 1
        return (losses(outputs(m, batch), batch["labels"]) * counts).sum(), int(counts.sum())

    def per_sample(m: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return losses(outputs(m, batch), batch["labels"])

    told = {"loss_sum": weighted, "sample_losses": per_sample, "weighting": weighting}
    made = collected(model, batches(samples, SPLIT), {*MATRICES}, **told)
    found = {layer.name: layer for layer in made.layers}
    counts = [int(label) + 1 for _, label in samples]
    own = [1.0 if weighting == "samples" else c * len(samples) / sum(counts) for c in counts]
    seen = [
        (h, w * mu) for (h, mu), w in zip(literal(model, samples)["block.up"], own, strict=True)
    ]
    G = [mu.mT @ h for h, mu in seen]
    close(found["block.up"].gradient, sum(G) / len(samples))
    close(found["block.up"].summed_gradient, sum(G))
    close(found["block.up"].output_moment, torch.cat([mu for _, mu in seen]).square().mean(0))
    assert made.report.forward_sweeps == 2  # one backward pass for all of them


def test_inputs_alone_run_no_backward_pass() -> None:
    model, samples = Tiny(), rows()
    made = collected(model, batches(samples, SPLIT), {"input_moment"})
    layers = {layer.name: layer for layer in made.layers}
    h = torch.cat([h for h, _ in literal(model, samples)["block.down"]])
    close(layers["block.down"].input_moment, h.mT @ h / len(h))
    assert made.report.forward_sweeps == 1


def dense_curvature(
    model: Tiny, samples: list[tuple[Tensor, Tensor]], name: str, of: str
) -> tuple[Tensor, Tensor]:
    """S, and T (or Θ), as dense sums over samples; tokens are not pooled in T of the keys."""
    seen = literal(model, samples, of)[name]
    S = sum(torch.outer(h.sum(0), h.sum(0)) for h, _ in seen)
    T = sum(
        mu.mT @ mu if name == "block.key" else torch.outer(mu.sum(0), mu.sum(0)) for _, mu in seen
    )
    return S, T


WAYS = {"whole": BIG, "pooled": 45_000, "sketched": 0}


@pytest.mark.parametrize(
    "way, bases",
    [(w, b) for w in WAYS for b in ("exact", "sketched") if (w, b) != ("sketched", "exact")],
)
def test_curvature_is_that_of_dense_sums_in_every_way(way: str, bases: str) -> None:
    model, samples = Tiny(classes=1), rows(40, classes=1)
    # 300 iterations: converged, as exact bases are
    request = CurvatureRequest(m=3, iterations=300, bases=bases, loss="cross_entropy")
    made = collected(
        model,
        batches(samples, [16, 16, 8]),
        {"curvature"},
        request={"curvature": request},
        budget=WAYS[way],
    )
    layers = {layer.name: layer for layer in made.layers}
    assert f"curvature {way}" in made.report.way
    assert list(made.report.notes) == ["block.key"]
    for name, layer in layers.items():
        S, T = dense_curvature(model, samples, name, "outputs")
        Theta = dense_curvature(model, samples, name, "theta")[1]
        G = sum(mu.mT @ h for h, mu in literal(model, samples)[name]) / len(samples)
        seen: Curvature = layer.curvature
        for U, D, dense, unit in (
            (seen.U_S, seen.D_S, S, seen.damping_S),
            (seen.U_T, seen.D_T, T, seen.damping_T),
        ):
            eigenvalues, vectors = torch.linalg.eigh(dense)
            close(D, eigenvalues.flip(0)[:3], 1e-6)
            close(U @ U.mT, vectors[:, -3:] @ vectors[:, -3:].mT, 1e-5)
            assert unit == pytest.approx(dense.trace().item() / len(dense))
        close(
            seen.U_T @ seen.core @ seen.U_S.mT,
            seen.U_T @ seen.U_T.mT @ G @ seen.U_S @ seen.U_S.mT,
            1e-8,
        )
        close(seen.theta, seen.U_T.mT @ Theta @ seen.U_T, 1e-8)


@pytest.mark.parametrize("classes, loss, probes", [(3, "squared", 1), (3, "cross_entropy", 2)])
def test_ways_agree_to_rounding_before_convergence(classes: int, loss: str, probes: int) -> None:
    model, given = Tiny(classes, torch.float32), batches(rows(40, classes), [16, 16, 8])
    request = {"curvature": CurvatureRequest(m=3, iterations=1, probes=probes, loss=loss)}
    made = [
        collected(model, given, {"curvature"}, request=request, budget=b)
        for b in (BIG, 20_000 * probes, 0)
    ]
    found = [{layer.name: layer for layer in one.layers} for one in made]
    assert [one.report.way.split()[1].strip(",") for one in made] == ["whole", "pooled", "sketched"]
    for name in found[0]:
        first, *others = (layers[name].curvature for layers in found)
        for other in others:
            close(other.U_S @ other.U_S.mT, first.U_S @ first.U_S.mT, 1e-5)
            close(other.U_T @ other.U_T.mT, first.U_T @ first.U_T.mT, 1e-4)
            close(
                other.U_T @ other.core @ other.U_S.mT, first.U_T @ first.core @ first.U_S.mT, 1e-3
            )
            if loss == "cross_entropy":
                close(
                    other.U_T @ other.theta @ other.U_T.mT,
                    first.U_T @ first.theta @ first.U_T.mT,
                    1e-3,
                )


def test_full_curvature_holds_every_direction_of_the_rows() -> None:
    model, samples = Tiny(classes=1), rows(40, classes=1)
    request = {"curvature": CurvatureRequest(m=None)}
    layer = gather(model, batches(samples, [40]), {"curvature"}, request=request)["block.up"]
    S, T = dense_curvature(model, samples, "block.up", "outputs")
    close(layer.curvature.U_S * layer.curvature.D_S @ layer.curvature.U_S.mT, S)
    close(layer.curvature.U_T * layer.curvature.D_T @ layer.curvature.U_T.mT, T)


@pytest.mark.parametrize(
    "budget, way", [(BIG, "whole"), (1000, "sketched"), (1200, "whole, 5 groups")]
)
def test_leading_gradient_is_that_of_the_whole_gradient(budget: int, way: str) -> None:
    model, given = Tiny(), batches(rows(), SPLIT)
    # so thin that the sketches of five layers take less than the gradient of one
    thin = way == "sketched"
    request = LeadingRequest(k=1 if thin else 3, oversample=0 if thin else 3, iterations=3)
    made = collected(
        model, given, {"leading_gradient"}, request={"leading_gradient": request}, budget=budget
    )
    layers = {layer.name: layer for layer in made.layers}
    assert made.report.way.startswith(f"leading_gradient {way}")
    for name, layer in gather(model, given, {"gradient"}).items():
        expected = layer.leading_gradient(request, layer_generator(1, name))
        got = layers[name].leading_gradient(request, None)
        close((got.U * got.S) @ got.Vh, (expected.U * expected.S) @ expected.Vh, 1e-7)
        assert "gradient" not in layers[name].statistics


def test_statistics_do_not_depend_on_the_split_into_batches() -> None:
    model, samples = Tiny(3, torch.float64), rows(20, 3)
    request = {"curvature": CurvatureRequest(m=3), "leading_gradient": LeadingRequest(3, 3, 2)}
    one, other = (
        gather(
            model,
            batches(samples, split, padding),
            {"curvature", "leading_gradient", "gradient"},
            request=request,
        )
        for split, padding in (([20], 0), ([3, 7, 10], 4))
    )
    for name in one:
        a, b = one[name].curvature, other[name].curvature
        close(b.D_T, a.D_T, 1e-7)
        close(b.U_T @ b.core @ b.U_S.mT, a.U_T @ a.core @ a.U_S.mT, 1e-6)
        assert torch.allclose(one[name].gradient, other[name].gradient, atol=1e-13)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("needs", [MATRICES, {"curvature"}])
def test_gradient_checkpointing_changes_nothing(mode: str, needs: set[str]) -> None:
    given, request = batches(rows(), SPLIT), {"curvature": CurvatureRequest(m=2)}
    plain = gather(Tiny(), given, needs, mode=mode, request=request)
    again = gather(Tiny(checkpointed=True), given, needs, mode=mode, request=request)
    for name in plain:
        if needs == MATRICES:
            assert torch.equal(plain[name].gradient, again[name].gradient)
            assert torch.equal(plain[name].input_moment, again[name].input_moment)
        else:
            assert torch.equal(plain[name].curvature.core, again[name].curvature.core)


def test_tied_weights_and_shared_modules_add_up() -> None:
    model, given = Tiny(), batches(rows(), SPLIT)
    model.block.up.weight = model.block.value.weight  # two modules, one weight
    model.block.query = model.block.key  # one module at two places
    names = {name: getattr(model.block, name) for name in ("query", "value", "up")}
    layers = gather(model, given, {"gradient"}, targets=names)
    total = sum(loss_sum(model.eval(), batch)[0] for batch in given) / 10
    tied, shared = torch.autograd.grad(total, [model.block.up.weight, model.block.key.weight])
    close(layers["value"].gradient + layers["up"].gradient, tied)
    close(layers["query"].gradient, shared)


def test_train_mode_sees_the_same_dropout_in_every_sweep_and_eval_none() -> None:
    model, given = Tiny(), batches(rows(), SPLIT)
    whole = gather(model, given, {"gradient"}, mode="train")
    grouped = gather(model, given, {"gradient"}, mode="train", budget=0)
    other = gather(model, given, {"gradient"}, mode="train", seed=2)
    still = gather(model, given, {"gradient"}, mode="eval")
    for name in whole:
        assert torch.allclose(whole[name].gradient, grouped[name].gradient, atol=1e-15)
        assert not torch.allclose(whole[name].gradient, other[name].gradient, atol=1e-6)
        assert not torch.allclose(whole[name].gradient, still[name].gradient, atol=1e-6)


def test_bf16_weights_are_accumulated_in_float32() -> None:
    """Every sample adds one unit: a bf16 sum would stop growing at 256."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).to(torch.bfloat16)
    given = [{"x": torch.ones(8, 4, dtype=torch.bfloat16)} for _ in range(50)]

    def total(m: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        return m(batch["x"]).sum(), 8

    calibration = Calibration(given, total, lambda m, batch: m(batch["x"]), 1)
    needs = frozenset({"summed_gradient", "input_moment"})
    (layer,) = collect(model, {"0": model[0]}, calibration, needs, {}, budget=BIG).layers
    assert layer.summed_gradient.dtype == torch.float32 and layer.W.dtype == torch.bfloat16
    assert torch.equal(layer.summed_gradient, torch.full((4, 4), 400.0))
    assert torch.equal(layer.input_moment, torch.ones(4, 4))


def test_bf16_transformer_is_close_to_float64_and_finds_its_keys() -> None:
    given, request = batches(rows(40, 1), [20, 20]), {"curvature": CurvatureRequest(m=2)}
    narrow = collected(Tiny(1, torch.bfloat16), given, {"curvature", "gradient"}, request=request)
    layers = {layer.name: layer for layer in narrow.layers}
    assert list(narrow.report.notes) == ["block.key"]
    exact = gather(Tiny(1), given, {"gradient"})
    close(layers["block.value"].gradient.double(), exact["block.value"].gradient, 0.05)


def state_of(model: nn.Module) -> tuple:
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    hooks = [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    ]
    return (
        flags,
        hooks,
        [p.grad is None for p in model.parameters()],
        torch.get_rng_state().tolist(),
    )


@pytest.fixture
def mixed() -> Iterator[Tiny]:
    model = Tiny()
    model.embedding.weight.requires_grad_(False)
    model.train()
    model.block.dropout.eval()
    before, values = state_of(model), fingerprint(model)
    yield model
    assert state_of(model) == before
    assert fingerprint(model) == values


def test_model_and_random_state_are_restored_between_and_after_layers(mixed: Tiny) -> None:
    before = state_of(mixed)
    layers = collected(mixed, batches(rows(), SPLIT), {"gradient"}, budget=0, mode="train").layers
    next(layers)
    assert state_of(mixed) == before
    layers.close()


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_model_and_random_state_are_restored_after_an_exception(mixed: Tiny, where: str) -> None:
    calls = []

    def failing(m: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        loss, count = loss_sum(m, batch)
        calls.append(1)
        if len(calls) == 2:
            if where == "forward":
                raise RuntimeError("batch 2")
            loss.register_hook(lambda _: (_ for _ in ()).throw(RuntimeError("batch 2")))
        return loss, count

    with pytest.raises(RuntimeError, match="batch 2"):
        list(
            collected(
                mixed, batches(rows(), SPLIT), {"gradient"}, mode="train", loss_sum=failing
            ).layers
        )


def test_not_finite_names_batch_and_layer() -> None:
    def broken(m: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        loss, count = loss_sum(m, batch)
        return loss * (math.nan if len(batch["labels"]) == 1 else 1.0), count

    with pytest.raises(
        FloatingPointError, match=r"^batch 1, layer block\.query: a statistic is NaN .*fp32$"
    ):
        list(collected(Tiny(), batches(rows(), SPLIT), {"gradient"}, loss_sum=broken).layers)


def test_one_line_errors() -> None:
    model, given = Tiny(), batches(rows(), SPLIT)
    with pytest.raises(
        ValueError, match=r"init\.samples=10: too few for the curvature's 11 eigenvectors"
    ):
        collected(model, given, {"curvature"}, request={"curvature": CurvatureRequest(m=11)})
    with pytest.raises(ValueError, match="too few for the 500 leading singular vectors"):
        collected(
            model,
            given,
            {"leading_gradient"},
            request={"leading_gradient": LeadingRequest(500, 8, 4)},
        )
    with pytest.raises(ValueError, match="expected a CurvatureRequest"):
        collected(model, given, {"curvature"})
    with pytest.raises(ValueError, match="no calibration batches"):
        collected(model, [], {"gradient"})
    with pytest.raises(ValueError, match="init.mode='test'"):
        collected(model, given, {"gradient"}, mode="test")
    unused = {"embedding_head": nn.Linear(3, 3)} | targets_of(model)
    with pytest.raises(
        ValueError, match="layer embedding_head: no calibration batch passes through it"
    ):
        list(collected(model, given, {"gradient"}, targets=unused).layers)


def test_masks_of_flat_rows_samples_and_decoders() -> None:
    batch = {
        "input_ids": torch.zeros(2, 3),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]),
        "labels": torch.tensor([[5, 6], [7, -100]]),
    }
    source = batch["attention_mask"].bool()
    assert torch.equal(token_mask("x.query", torch.Size([2, 3]), batch), source)
    assert torch.equal(token_mask("x.query", torch.Size([6]), batch), source.flatten())
    assert token_mask("pooler", torch.Size([2]), batch) is None
    assert token_mask("x", torch.Size([2, 9]), {"pixels": torch.zeros(2, 4)}) is None
    decoder = token_mask(
        "decoder.0.SelfAttention.q", torch.Size([2, 2]), batch, encoder_decoder=True
    )
    assert decoder.tolist() == [[True, True], [True, False]]
    assert torch.equal(
        token_mask("decoder.0.EncDecAttention.k", torch.Size([2, 3]), batch, True), source
    )
    assert token_mask("decoder.0.EncDecAttention.q", torch.Size([2, 2]), batch, True).sum() == 3
    # a decoder alone
    assert torch.equal(token_mask("model.decoder.0.q_proj", torch.Size([2, 3]), batch), source)
    with pytest.raises(
        ValueError,
        match=r"layer x: input rows \(2, 4\) fit neither the 2 samples nor attention_mask",
    ):
        token_mask("x", torch.Size([2, 4]), batch)


def moments_of_probes(kind: str, loss: str, logits: Tensor, count: int = 20_000) -> Tensor:
    f = logits.expand(count, -1).clone().requires_grad_()
    (z,) = torch.autograd.grad(probe_sum(f, Pass(kind), loss, 0, 0), f)
    return z.mT @ z / count


def test_probes_have_the_moments_that_the_paper_needs() -> None:
    logits = torch.tensor([[0.5, -1.0, 1.5]])
    p = logits.softmax(-1)[0]
    close(moments_of_probes("probe", "squared", logits), torch.eye(3), 0.03)
    centred = torch.eye(3) - 1 / 3
    close(moments_of_probes("probe", "cross_entropy", logits), centred, 0.03)
    close(
        moments_of_probes("theta", "cross_entropy", logits), torch.diag(p) - torch.outer(p, p), 0.05
    )
    two = moments_of_probes("probe", "cross_entropy", torch.zeros(1, 2), 50)
    close(two, torch.eye(2) - 0.5, 1e-6)  # never zero when C = 2


def test_plan_takes_the_fewest_passes_that_fit() -> None:
    layers = {f"layer{i}": Size(768, 768) for i in range(24)}
    curvature = {"curvature": CurvatureRequest(m=8)}
    chosen = [
        plan(layers, frozenset({"curvature"}), curvature, 512, b << 20) for b in (200, 100, 10, 0)
    ]
    assert [p.curvature for p in chosen] == ["whole", "pooled", "sketched", "sketched"]
    assert [p.sweeps for p in chosen] == [3, 4, 5, 5]
    # not by samples
    assert plan(layers, frozenset({"curvature"}), curvature, 10**6, 0).bytes == chosen[-1].bytes
    exact = {"curvature": CurvatureRequest(m=8, bases="exact")}
    assert plan(layers, frozenset({"curvature"}), exact, 512, 0).curvature == "pooled"

    leading, matrix = {"leading_gradient": LeadingRequest(16, 16, 4)}, 768 * 768 * 4
    wanted = frozenset({"leading_gradient"})
    whole, halves, sketched = (plan(layers, wanted, leading, 8, n * matrix) for n in (24, 12, 2))
    assert (whole.leading, whole.sweeps, len(whole.groups)) == ("whole", 2, 1)
    assert (halves.leading, halves.sweeps, len(halves.groups)) == ("whole", 4, 2)
    assert (sketched.leading, sketched.sweeps, len(sketched.groups)) == ("sketched", 20, 1)

    moments = frozenset({"gradient", "input_moment", "output_moment"})
    tight = plan(layers, moments, {}, 256, 0)
    assert len(tight.groups) == 24 and tight.bytes == 2 * matrix + 768 * 4
    assert [name for group in tight.groups for name in group] == list(layers)
    assert "above the budget" in str(tight) and "within the budget" in str(whole)
    assert plan(layers, frozenset({"input_moment"}), {}, 8, 1 << 30).sweeps == 1
    assert plan(layers, moments, {}, 8, 1 << 30).sweeps == 2


def test_report_counts_passes_samples_and_tokens() -> None:
    samples = rows()
    made = collected(Tiny(), batches(samples, SPLIT), {"gradient"})
    assert made.report.forward_sweeps == 0  # nothing has been asked for yet
    list(made.layers)
    assert made.report.forward_sweeps == 2 and made.report.samples == 10
    assert made.report.tokens == sum(len(ids) for ids, _ in samples)
    assert made.report.peak_bytes > 1 << 20 and made.report.seconds > 0


def test_whole_gradients_are_dropped_before_the_next_group() -> None:
    import weakref

    layers = collected(Tiny(), batches(rows(), SPLIT), {"gradient"}, budget=0).layers
    earlier = []
    for layer in layers:
        assert all(reference() is None for reference in earlier)
        earlier.append(weakref.ref(layer.gradient))
        del layer


def test_generators_are_their_own() -> None:
    first = torch.randn(3, generator=layer_generator(0, "a"))
    assert torch.equal(first, torch.randn(3, generator=layer_generator(0, "a")))
    for other in (
        layer_generator(1, "a"),
        layer_generator(0, "b"),
        layer_generator(0, "a", "probe"),
    ):
        assert not torch.equal(first, torch.randn(3, generator=other))


class Cache:
    def __init__(self, path) -> None:  # type: ignore[no-untyped-def]
        self.path, self.given = path, batches(rows(), SPLIT)
        self.request = {
            "curvature": CurvatureRequest(m=2),
            "leading_gradient": LeadingRequest(2, 2, 1),
        }

    def __call__(self, **options) -> tuple[bool, dict[str, Layer], Collected]:  # type: ignore[no-untyped-def]
        given = options.pop("given", self.given)
        needs = options.pop("needs", {"gradient", "leading_gradient", "curvature"})
        depends, limit = options.pop("depends", "model"), options.pop("limit", 2**31)
        call = {"cache": Store(self.path, depends, limit), "request": self.request} | options
        made = collected(Tiny(), given, needs, **call)
        layers = {layer.name: layer for layer in made.layers}
        return made.report.cache_hit, layers, made

    def files(self) -> list[str]:
        return sorted(str(path) for path in self.path.rglob("*") if path.is_file())


@pytest.fixture
def stored(tmp_path) -> Cache:  # type: ignore[no-untyped-def]
    return Cache(tmp_path / "cache")


def test_cache_gives_the_same_bits_without_a_sweep(stored: Cache) -> None:
    miss, fresh, _ = stored()
    hit, again, made = stored()
    assert (miss, hit) == (False, True) and made.report.forward_sweeps == 0
    assert list(made.report.notes) == ["block.key"]
    for name in fresh:
        assert torch.equal(fresh[name].gradient, again[name].gradient)
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                fresh[name].statistics["leading_gradient"],
                again[name].statistics["leading_gradient"],
                strict=True,
            )
        )
        a, b = fresh[name].curvature, again[name].curvature
        assert torch.equal(a.core, b.core) and torch.equal(a.U_T, b.U_T)
        assert (a.theta, a.damping_S, a.damping_T, a.notes) == (
            b.theta,
            b.damping_S,
            b.damping_T,
            b.notes,
        )


def test_cache_key_covers_everything_that_matters(stored: Cache) -> None:
    stored()
    changed = [dict(batch) for batch in stored.given]
    changed[1]["input_ids"] = changed[1]["input_ids"].flip(1)
    model = Tiny()
    fewer = {name: module for name, module in targets_of(model).items() if name != "block.up"}
    for options in (
        {"seed": 2},
        {"mode": "train"},
        {"depends": "another model"},
        {"given": changed},
        {"given": stored.given[:2]},
        {"needs": {"gradient"}},
        {"request": stored.request | {"curvature": CurvatureRequest(m=3)}},
    ):
        assert stored(**options)[0] is False, options
    made = collected(
        model,
        stored.given,
        {"gradient", "leading_gradient", "curvature"},
        targets=fewer,
        request=stored.request,
        cache=Store(stored.path, "model"),
    )
    list(made.layers)
    assert made.report.cache_hit is False
    stored(needs={"gradient"})
    assert stored(needs={"gradient"}, seed=9)[0] is True  # no randomness in it
    assert stored(budget=0)[0] is True  # the same numbers, however they are collected


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "manifest"])
def test_damaged_cache_is_ignored_and_rebuilt(stored: Cache, damage: str) -> None:
    _, fresh, _ = stored()
    victim = next(path for path in stored.path.rglob("00001.safetensors"))
    content = victim.read_bytes()
    if damage == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        victim.unlink()
    else:
        (victim.parent / "manifest.json").write_text("{")
    hit, again, _ = stored()
    assert not hit and all(torch.equal(fresh[n].gradient, again[n].gradient) for n in fresh)
    assert stored()[0] is True


def test_cache_keeps_to_its_limit_and_leaves_no_half_entry(stored: Cache) -> None:
    _, _, made = stored(limit=100)
    assert (
        "larger than the cache's limit of 100 bytes" in made.report.cache_note
        and stored.files() == []
    )
    made = collected(Tiny(), stored.given, {"gradient"}, cache=Store(stored.path, "k"), budget=0)
    next(made.layers)
    made.layers.close()
    assert stored.files() == []  # given up after one layer
    for seed in range(4):
        stored(mode="train", seed=seed, needs={"gradient"}, limit=20_000)
    held = sum(path.stat().st_size for path in stored.path.rglob("*.safetensors"))
    assert 0 < held <= 20_000
    # the newest stays
    assert stored(mode="train", seed=3, needs={"gradient"}, limit=20_000)[0] is True
    assert stored(mode="train", seed=0, needs={"gradient"}, limit=20_000)[0] is False


def test_fingerprint_sees_every_weight_and_dtype() -> None:
    model = Tiny()
    before = fingerprint(model)
    assert before == fingerprint(Tiny()) != fingerprint(Tiny(dtype=torch.float32))
    with torch.no_grad():
        model.head.bias[0] += 1e-9
    assert fingerprint(model) != before


class Packed(nn.Module):
    """A quantised linear layer: the weight is packed, two to a byte."""

    in_features, out_features = 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)

    def dense(self) -> Tensor:
        packed = self.weight.repeat_interleave(2).float()
        return (packed + torch.tensor([0.0, 0.5]).repeat(6)).reshape(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.dense().mT + 1


def test_quantised_base() -> None:
    model = nn.Sequential(Packed())
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    calibration = Calibration(
        [{"x": x}], lambda m, b: (m(b["x"]).square().sum() / 2, 5), lambda m, b: m(b["x"]), 5
    )
    (layer,) = collect(
        model, {"0": model[0]}, calibration, frozenset({"gradient"}), {}, budget=BIG
    ).layers
    close(layer.W, model[0].dense(), 1e-6)
    close(layer.gradient, model(x).mT @ x / 5, 1e-6)


def test_in_place_activation_after_the_first_target() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(6, 4)
    calibration = Calibration(
        [{"x": x}], lambda m, b: (m(b["x"]).square().sum(), 6), lambda m, b: m(b["x"]), 6
    )
    layers = collect(
        model, {"0": model[0], "2": model[2]}, calibration, frozenset({"gradient"}), {}, budget=BIG
    ).layers
    expected = torch.autograd.grad(model(x).square().sum() / 6, [model[0].weight, model[2].weight])
    for layer, gradient in zip(layers, expected, strict=True):
        close(layer.gradient, gradient, 1e-5)
