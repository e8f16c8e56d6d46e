"""How statistics are collected within a memory budget: decided before the first batch, by pure
arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loraexp.adapter.layer import CurvatureRequest, LeadingRequest
from loraexp.machine.words import MIB

BLOCK = 2**25  # bytes of a sum on the host that are there on the device, and of what is added


class Size(NamedTuple):
    """What a layer's statistics take room for; `unpooled`: its pooled output gradients cancel
    (attention keys)."""

    d_out: int
    d_in: int
    itemsize: int = 4
    unpooled: bool = False


class Way(NamedTuple):
    """A way to collect one statistic. `sweeps`: forward and backward passes over the samples, a
    backward counted as a forward; `visits`: forward passes alone."""

    name: str
    sweeps: int
    visits: int
    bytes: int
    groups: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Plan:
    """`leading`: whole or sketched; `curvature`: whole, pooled or sketched; None where not needed.
    `groups`: the layers that whole matrices, or with `apart` curvatures, are held for at a time,
    with sweeps of their own (none where no whole matrix is needed). `host`: the matrices are summed
    there, because the device has no room for those of one layer."""

    leading: str | None
    curvature: str | None
    groups: tuple[tuple[str, ...], ...]
    sweeps: int
    visits: int
    bytes: int
    budget: int
    host: bool = False
    apart: bool = False

    def __str__(self) -> str:
        small = {"leading_gradient": self.leading, "curvature": self.curvature}
        ways = [f"{statistic} {way}" for statistic, way in small.items() if way]
        ways += [f"{len(self.groups)} group{'s' * (len(self.groups) != 1)} of layers"]
        ways += ["summed on the host"] if self.host else []
        within = "within" if self.bytes <= self.budget else "the least possible, above"
        return (
            f"{', '.join(ways)}; {self.sweeps:g} forward and backward passes;"
            f" {self.bytes / MIB:.1f} MiB of state, {within} the budget of"
            f" {self.budget / MIB:.1f} MiB"
        )


def choose(ways: Sequence[Way], budget: int) -> Way:
    """The fewest passes among the ways that fit; where none fits, the least memory."""
    fitting = [way for way in ways if way.bytes <= budget]
    if fitting:
        return min(fitting, key=lambda way: (way.sweeps, way.bytes))
    return min(ways, key=lambda way: (way.bytes, way.sweeps))


def plan(
    sizes: Mapping[str, Size],
    needs: frozenset[str],
    request: Mapping[str, LeadingRequest | CurvatureRequest],
    samples: int,
    budget: int,
    host: int | None = None,
) -> Plan:
    """Choose how to collect `needs` from `samples` samples with `budget` bytes of state.

    Whole matrices are held for a group of layers at a time, at least one. Where not even those of
    one layer fit on a device whose `host` has so many bytes for them, they are summed there.
    """
    matrices = needs & {"gradient", "summed_gradient", "input_moment", "output_moment"}
    everything = (tuple(sizes),)
    rest = grouped(sizes, matrices, budget) if matrices else Way("none", 0, 0, 0, everything)
    away = host is not None and rest.bytes > budget
    if away and host is not None:
        rest = grouped(sizes, matrices, host)._replace(bytes=BLOCK)
    ways = [rest]
    if "leading_gradient" in needs:
        asked = request["leading_gradient"]
        assert isinstance(asked, LeadingRequest)
        products, state = 2 + 2 * asked.iterations, max(rest.bytes, sketch_bytes(sizes, asked))
        sketched = Way(
            "sketched", rest.sweeps + 2 * products, rest.visits + products, state, rest.groups
        )
        ways = [grouped(sizes, matrices | {"gradient"}, budget), sketched]
    chosen = choose(ways, budget)
    curvature = Way("none", 0, 0, 0)
    if "curvature" in needs:
        wanted = request["curvature"]
        assert isinstance(wanted, CurvatureRequest)
        alone = needs <= {"curvature", "population"}
        curvature = choose_curvature(sizes, wanted, samples, budget, alone=alone)
        if curvature.groups:
            chosen = chosen._replace(groups=curvature.groups)
    return Plan(
        leading=chosen.name if "leading_gradient" in needs else None,
        curvature=curvature.name if "curvature" in needs else None,
        groups=chosen.groups,
        sweeps=chosen.sweeps + curvature.sweeps,
        visits=chosen.visits + curvature.visits,
        bytes=max(chosen.bytes, curvature.bytes),
        budget=budget,
        apart=bool(curvature.groups),
        host=away and (chosen is rest or chosen.name == "sketched"),
    )


def grouped(sizes: Mapping[str, Size], wanted: frozenset[str], budget: int) -> Way:
    """Whole matrices, of as many layers at a time as the budget holds."""
    backwards = int(not wanted <= {"input_moment"})
    groups = group(sizes, lambda size: matrix_bytes(size, wanted), budget)
    largest = max(
        (sum(matrix_bytes(sizes[name], wanted) for name in names) for names in groups),
        default=0,
    )
    return Way("whole", len(groups) * (1 + backwards), len(groups), largest, groups)


def matrix_bytes(size: Size, wanted: frozenset[str]) -> int:
    numbers = {
        "gradient": size.d_out * size.d_in,
        "summed_gradient": size.d_out * size.d_in,
        "input_moment": size.d_in**2,
        "output_moment": size.d_out,
    }
    return size.itemsize * sum(numbers[statistic] for statistic in wanted)


def group(
    sizes: Mapping[str, Size], cost: Callable[[Size], int], budget: int
) -> tuple[tuple[str, ...], ...]:
    """The layers in their order, as many at a time as the budget holds, at least one."""
    groups: list[list[str]] = []
    held = 0
    for name, size in sizes.items():
        if not groups or held + cost(size) > budget:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += cost(size)
    return tuple(tuple(names) for names in groups)


def sketch_bytes(sizes: Mapping[str, Size], request: LeadingRequest) -> int:
    """The block that is multiplied and the product, for every layer."""
    return sum(
        s.itemsize * (s.d_out + s.d_in) * min(request.k + request.oversample, s.d_out, s.d_in)
        for s in sizes.values()
    )


def choose_curvature(
    sizes: Mapping[str, Size],
    request: CurvatureRequest,
    samples: int,
    budget: int,
    *,
    alone: bool,
) -> Way:
    """The curvature of all layers at once, or, where nothing else is collected and that does not
    fit, a group of layers at a time."""
    ways = curvature_ways(sizes, request, samples)
    fewest = choose([way for way, _ in ways], budget)
    if fewest.bytes <= budget or not alone:
        return fewest
    parts = []
    for way, cost in ways:

        def held(size: Size, cost: Callable[[Size], int] = cost) -> int:
            m = min(request.m or samples, samples, size.d_in)
            return cost(size) + size.itemsize * m * (size.d_out + size.d_in)

        groups = group(sizes, held, budget)
        largest = max(sum(held(sizes[name]) for name in names) for names in groups)
        count = len(groups)
        parts.append(Way(way.name, count * way.sweeps, count * way.visits, largest, groups))
    best = choose(parts, budget)
    return best if best.bytes <= budget else fewest


def curvature_ways(
    sizes: Mapping[str, Size], request: CurvatureRequest, samples: int
) -> list[tuple[Way, Callable[[Size], int]]]:
    """Whole gradient and pooled rows in one sweep; pooled rows, then the gradient in their basis;
    sketches alone. Each with the bytes of a layer."""
    probes = request.probes
    thetas = probes if request.loss == "cross_entropy" else 0

    def rows(size: Size, outputs: int) -> int:
        """The pooled inputs, and the pooled output gradients of `outputs` passes or second moments
        in their place."""
        output = size.itemsize * samples * outputs * size.d_out
        if size.unpooled:
            output = 8 * size.d_out**2 * (2 if outputs > probes else 1)
        return size.itemsize * samples * size.d_in + output

    def sketch(size: Size) -> int:
        m = request.m or 0
        return 8 * 2 * m * (size.d_in + size.d_out) + 8 * 4 * m**2

    def whole(size: Size) -> int:
        return rows(size, probes + thetas) + size.itemsize * size.d_out * size.d_in

    def pooled(size: Size) -> int:
        return rows(size, probes)

    def way(name: str, sweeps: int, visits: int, cost: Callable[[Size], int]) -> Way:
        return Way(name, sweeps, visits, sum(map(cost, sizes.values())))

    ways: list[tuple[Way, Callable[[Size], int]]] = [
        (way("whole", 1 + probes + thetas + 1, 1, whole), whole),
        (way("pooled", (1 + probes) + (1 + thetas + 1), 2, pooled), pooled),
    ]
    if request.bases == "sketched" and request.m is not None:
        sweeps = request.iterations * (1 + probes) + (1 + probes + thetas + 1)
        ways.append((way("sketched", sweeps, request.iterations + 1, sketch), sketch))
    return ways
