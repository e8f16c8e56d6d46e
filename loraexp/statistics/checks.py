"""What is refused, or warned about, before the first calibration batch is run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from torch import nn

from loraexp.adapter.layer import STATISTICS, CurvatureRequest, LeadingRequest
from loraexp.machine.processes import gathered
from loraexp.statistics.calibration import Calibration, mask_source, tokens_in
from loraexp.statistics.sweeps import Sweeper

Request = Mapping[str, LeadingRequest | CurvatureRequest]


def check(
    targets: Mapping[str, nn.Module],
    calibration: Calibration,
    needs: frozenset[str],
    request: Request,
    budget: int | Callable[[int | None], int],
) -> None:
    unknown = needs - set(STATISTICS)
    if unknown:
        raise ValueError(
            f"unknown statistics {sorted(unknown)}: expected some of {', '.join(STATISTICS)}"
        )
    for name, kind in (("leading_gradient", LeadingRequest), ("curvature", CurvatureRequest)):
        if name in needs and not isinstance(request.get(name), kind):
            raise ValueError(
                f"{name} is needed and its request is {request.get(name)!r}: expected a"
                f" {kind.__name__}"
            )
    if calibration.mode not in ("eval", "train"):
        raise ValueError(f"init.mode={calibration.mode!r}: expected eval or train")
    if isinstance(budget, int) and budget < 0:
        raise ValueError(f"init.memory_budget={budget}: expected bytes, 0 or more")
    if not targets:
        raise ValueError("no target layers: expected at least one, set model.targets")


def check_samples(samples: int, tokens: int, needs: frozenset[str], request: Request) -> None:
    """Refuse statistics whose rank the calibration rows cannot reach."""
    if samples == 0 and needs - {"population"}:
        raise ValueError("no calibration batches: expected at least one, set init.samples")
    curvature, leading = request.get("curvature"), request.get("leading_gradient")
    if (
        "curvature" in needs
        and isinstance(curvature, CurvatureRequest)
        and (curvature.m or 0) > samples
    ):
        raise ValueError(
            f"init.samples={samples}: too few for the curvature's {curvature.m} eigenvectors;"
            f" expected at least {curvature.m} samples, raise init.samples or lower rank"
        )
    if "leading_gradient" in needs and isinstance(leading, LeadingRequest) and leading.k > tokens:
        raise ValueError(
            f"init.samples={samples} with {tokens} tokens: too few for the {leading.k} leading"
            f" singular vectors of the gradient; expected at least {leading.k} tokens, raise"
            " init.samples or lower rank"
        )


def tokens_by_layer(sweeper: Sweeper) -> dict[str, int]:
    """The calibration tokens that reach each layer, padding aside: those of the decoder are not
    those of the encoder.
    """
    sources = {
        name: [
            mask_source(name, batch, sweeper.encoder_decoder)
            for batch in sweeper.calibration.batches
        ]
        for name in sweeper.targets
    }
    counted: dict[tuple[str | None, ...], int] = {}
    for which in set(map(tuple, sources.values())):
        pairs = zip(which, sweeper.calibration.batches, strict=True)
        counted[which] = sum(tokens_in(batch, source) for source, batch in pairs)
    own = {name: counted[tuple(which)] for name, which in sources.items()}
    return {
        name: sum(share[name] for share in shares) for shares in [gathered(own)] for name in own
    }


def warn_of_few_tokens(
    tokens: Mapping[str, int], needs: frozenset[str], request: Request, rank: int
) -> None:
    """A gradient is a sum of one outer product a token: with fewer tokens than the rank, what is
    left is rounding.
    """
    if needs.isdisjoint({"gradient", "leading_gradient", "summed_gradient", "curvature"}):
        return
    asked = request.get("leading_gradient")
    directions = (
        max(rank, asked.k)
        if "leading_gradient" in needs and isinstance(asked, LeadingRequest)
        else rank
    )
    for count in sorted({count for count in tokens.values() if count < directions}):
        first, *others = (name for name, own in tokens.items() if own == count)
        also = f" (and {len(others)} more, the last {others[-1]})" if others else ""
        warnings.warn(
            f"layer {first}{also}: the calibration rows bring it {count} tokens, so its gradient"
            f" has at most {count} directions, and rank={rank} takes {directions}: the others are"
            " rounding; raise init.samples or lower rank",
            stacklevel=3,
        )
