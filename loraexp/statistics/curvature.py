"""CG-LoRA's statistics: the leading eigenvectors of both curvature factors of a layer, and the
gradient in them.

Three ways to the same numbers. "whole": one sweep holds the pooled rows and the whole gradient of
every layer. "pooled": one sweep holds the pooled rows, a second projects the gradient. "sketched":
every sweep holds sketches alone, so memory does not depend on the number of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loraexp.adapter import linalg
from loraexp.adapter.layer import Curvature, CurvatureRequest
from loraexp.adapter.linalg import double
from loraexp.machine.device import numbers
from loraexp.statistics.accumulators import (
    Accumulator,
    Cancellation,
    Outer,
    PooledMoment,
    Rows,
    TokenMoment,
    Vector,
)
from loraexp.statistics.calibration import layer_generator
from loraexp.statistics.probes import LOSS, Pass, probe_passes, theta_passes
from loraexp.statistics.subspaces import (
    Ask,
    Basis,
    Steps,
    matrix_answer,
    rows_answer,
    solve,
    solve_last,
    subspace_steps,
    truncated,
)
from loraexp.statistics.sweeps import Sweeper

CANCELS = "pooled output gradients cancel (as those of attention keys do): T is taken over tokens"

Found = tuple[Basis, Tensor]  # of one curvature factor, and its trace


@dataclass(frozen=True)
class Weight:
    """A layer as the statistics see it: `like` is an empty (d_out, d_in) of its device and
    accumulation dtype."""

    name: str
    like: Tensor
    unpooled: bool = False


class Factor:
    """One curvature factor of a layer, `S` ("input") or `T` ("output"): where it comes from and its
    basis."""

    def __init__(
        self, weight: Weight, vector: Vector, request: CurvatureRequest, seed: int
    ) -> None:
        self.vector, self.like, self.request = vector, weight.like, request
        probes = probe_passes(request)
        # every probe of a batch sees the same inputs
        self.on = probes[:1] if vector == "input" else probes
        self.dimension = weight.like.shape[1] if vector == "input" else weight.like.shape[0]
        self.moment = TokenMoment if vector == "output" and weight.unpooled else PooledMoment
        self.generator = layer_generator(seed, weight.name, f"curvature {vector}")
        self.probes = len(self.on)

    def steps(self) -> Steps:
        assert self.request.m is not None
        return subspace_steps(
            self.dimension, self.request.m, self.request.iterations, self.generator, self.like
        )

    def held(self, samples: int) -> Accumulator:
        """What the ways "whole" and "pooled" hold of the factor: pooled rows, or the moment itself
        over tokens."""
        if self.moment is TokenMoment:
            return TokenMoment(self.on, self.vector, self.like)
        return Rows(self.on, self.vector, self.like, samples)

    def basis(self, held: Accumulator) -> Found:
        """Eigenvectors and trace of what `held` holds; exact ones from an SVD of the rows, which is
        not squared."""
        exact = self.request.bases == "exact" or self.request.m is None
        if isinstance(held, Rows):
            rows = double(held.rows.flatten(0, 1))
            trace = rows.square().sum()
            if exact:
                Vh, singular = (
                    (decomposed := linalg.exact(torch.linalg.svd, rows, full_matrices=False)).Vh,
                    decomposed.S,
                )
                return truncated(Vh.mT, singular.square(), self.request.m), trace
            return solve(self.steps(), lambda ask: rows_answer(rows, ask)), trace
        assert isinstance(held, TokenMoment)
        if exact:
            D, U = linalg.exact(torch.linalg.eigh, held.sum)
            return truncated(U.flip(1), D.flip(0).clamp_min(0), self.request.m), held.trace
        return solve(self.steps(), lambda ask: matrix_answer(held.sum, ask)), held.trace


FEW = 2  # samples that tell whether the pooled δ of a layer cancels


def cancelling(sweeper: Sweeper, likes: Mapping[str, Tensor]) -> frozenset[str]:
    """The layers whose output gradients sum to nothing over each sample's tokens, seen on the first
    few samples.

    A softmax ignores a shift of all keys, so the pooled δ of a key projection is rounding; see
    `Cancellation.cancels`. It is rounding for every sample or for none: two of them tell as much as
    all, at the cost of two.
    """
    sums = sweeper.run(
        lambda: {name: [Cancellation(Pass("probe"), like)] for name, like in likes.items()},
        first_samples=FEW,
    )
    seen = {name: one for name, (one,) in sums.items() if isinstance(one, Cancellation)}
    read = numbers([x for one in seen.values() for x in one.sum])
    pairs = zip(read[::2], read[1::2], strict=True)
    return frozenset(
        name for (name, one), pair in zip(seen.items(), pairs, strict=True) if one.cancels(*pair)
    )


def collect_curvature(
    sweeper: Sweeper,
    likes: Mapping[str, Tensor],
    unpooled: frozenset[str],
    request: CurvatureRequest,
    way: str,
) -> dict[str, Curvature]:
    """Every layer's `Curvature`, in the way that the plan chose."""
    weights = [Weight(name, like, name in unpooled) for name, like in likes.items()]
    collector = {"whole": collect_held, "pooled": collect_held, "sketched": collect_sketched}[way]
    return collector(sweeper, weights, request, way == "whole")


def collect_held(
    sweeper: Sweeper, weights: list[Weight], request: CurvatureRequest, whole: bool
) -> dict[str, Curvature]:
    """One sweep for the rows that span the bases; gradient and Θ come along whole, or projected in
    a second sweep."""
    thetas = theta_passes(request)
    factors = {
        w.name: [Factor(w, vector, request, sweeper.seed) for vector in ("input", "output")]
        for w in weights
    }

    def first_sweep() -> dict[str, list[Accumulator]]:
        sums: dict[str, list[Accumulator]] = {}
        for w in weights:
            sums[w.name] = [factor.held(sweeper.samples) for factor in factors[w.name]]
            if whole:
                sums[w.name] += [Outer(LOSS, w.like)]
            if whole and thetas:
                rows = Rows(thetas, "output", w.like, sweeper.samples)
                sums[w.name] += [TokenMoment(thetas, "output", w.like) if w.unpooled else rows]
        return sums

    held = sweeper.run(first_sweep)
    found = {
        w.name: [f.basis(h) for f, h in zip(factors[w.name], held[w.name], strict=False)]
        for w in weights
    }
    if whole:
        cores = {
            name: whole_core(pair, held.pop(name)[2:], sweeper) for name, pair in found.items()
        }
        return assembled(weights, request, found, cores)
    del held

    def second_sweep() -> dict[str, list[Accumulator]]:
        return {
            w.name: projections(w, thetas, found[w.name][0][0].U, found[w.name][1][0].U)
            for w in weights
        }

    projected = sweeper.run(second_sweep)
    cores = {name: projected_core(projected[name], sweeper) for name in found}
    return assembled(weights, request, found, cores)


def collect_sketched(
    sweeper: Sweeper, weights: list[Weight], request: CurvatureRequest, whole: bool = False
) -> dict[str, Curvature]:
    """`q` sweeps of sketches `M Ω`, and one for `Qᵀ M Q` together with `Q_Tᵀ G Q_S`, rotated to
    eigenvectors after it."""
    thetas = theta_passes(request)
    factors = {
        w.name: [Factor(w, vector, request, sweeper.seed) for vector in ("input", "output")]
        for w in weights
    }
    steps = {name: [factor.steps() for factor in pair] for name, pair in factors.items()}
    asks = {name: [next(step) for step in pair] for name, pair in steps.items()}

    def moments(name: str) -> list[Accumulator]:
        return [
            factor.moment(
                factor.on, factor.vector, factor.like, ask.block if ask.project else None, ask.block
            )
            for factor, ask in zip(factors[name], asks[name], strict=True)
        ]

    for _ in range(request.iterations):
        sums = sweeper.run(lambda: {w.name: moments(w.name) for w in weights})
        asks = {
            name: [step.send(moment.sums[0]) for step, moment in zip(pair, sums[name], strict=True)]
            for name, pair in steps.items()
        }

    def last_sweep() -> dict[str, list[Accumulator]]:
        blocks = {name: [ask.block for ask in pair] for name, pair in asks.items()}
        return {w.name: moments(w.name) + projections(w, thetas, *blocks[w.name]) for w in weights}

    sums = sweeper.run(last_sweep)
    found: dict[str, list[Found]] = {}
    cores = {}
    for w in weights:
        answers = [moment.sums for moment in sums[w.name][:2]]
        pairs = zip(steps[w.name], answers, strict=True)
        found[w.name] = [(solve_last(step, small), trace) for step, (small, trace) in pairs]
        core, theta = projected_core(sums[w.name][2:], sweeper)
        S, T = (basis for basis, _ in found[w.name])
        core = T.rotation.mT @ core @ S.rotation
        cores[w.name] = core, None if theta is None else T.rotation.mT @ theta @ T.rotation
    return assembled(weights, request, found, cores)


def projections(w: Weight, thetas: tuple[Pass, ...], U_S: Tensor, U_T: Tensor) -> list[Accumulator]:
    """`U_Tᵀ G U_S`, accumulated as `Σ (U_Tᵀ μ)(U_Sᵀ h)ᵀ`, and `U_Tᵀ Θ U_T` where there are probes
    for it."""
    sums: list[Accumulator] = [Outer(LOSS, w.like, left=U_T.to(w.like), right=U_S.to(w.like))]
    if thetas:
        moment = TokenMoment if w.unpooled else PooledMoment
        sums.append(moment(thetas, "output", w.like, left=U_T, right=U_T))
    return sums


def projected_core(sums: list[Accumulator], sweeper: Sweeper) -> tuple[Tensor, Tensor | None]:
    """The core of the mean loss, and Θ, both in float64, from their accumulators."""
    core = double(sums[0].sums[0]) / sweeper.losses
    return core, sums[1].sums[0] if len(sums) > 1 else None


def whole_core(
    found: list[Found], sums: list[Accumulator], sweeper: Sweeper
) -> tuple[Tensor, Tensor | None]:
    """The same from the whole gradient and the rows, or the moment, of Θ."""
    U_S, U_T = (basis.U for basis, _ in found)
    core = U_T.mT @ double(sums[0].sums[0]) @ U_S / sweeper.losses
    if len(sums) == 1:
        return core, None
    ask = Ask(True, U_T)
    if isinstance(sums[1], Rows):
        return core, rows_answer(double(sums[1].rows.flatten(0, 1)), ask)
    return core, matrix_answer(sums[1].sums[0], ask)


def assembled(
    weights: list[Weight],
    request: CurvatureRequest,
    found: Mapping[str, list[Found]],
    cores: Mapping[str, tuple[Tensor, Tensor | None]],
) -> dict[str, Curvature]:
    """Every layer's result; all traces are read at once."""
    traces = iter(numbers([trace for w in weights for _, trace in found[w.name]]))
    return {
        w.name: assemble(
            w, request, [(basis, next(traces)) for basis, _ in found[w.name]], *cores[w.name]
        )
        for w in weights
    }


def assemble(
    w: Weight,
    request: CurvatureRequest,
    found: list[tuple[Basis, float]],
    core: Tensor,
    theta: Tensor | None,
) -> Curvature:
    """The result in the accumulation dtype; T and Θ are means over probes."""
    (S, trace_S), (T, trace_T) = found
    d_out, d_in = w.like.shape

    def out(x: Tensor) -> Tensor:
        return x.to(w.like).contiguous()

    return Curvature(
        U_S=out(S.U),
        D_S=out(S.D),
        U_T=out(T.U),
        D_T=out(T.D / request.probes),
        core=out(core),
        theta=None if theta is None else out(theta / request.probes),
        damping_S=trace_S / d_in,
        damping_T=trace_T / request.probes / d_out,
        notes=(CANCELS,) if w.unpooled else (),
    )
