"""What a device has free for statistics: beside the weights and what the passes of a batch need,
measured on one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from loraexp.adapter.adapted import in_pieces
from loraexp.adapter.layer import CurvatureRequest
from loraexp.machine import measure
from loraexp.machine.processes import gathered
from loraexp.statistics.accumulators import Accumulator, Seen, parts
from loraexp.statistics.calibration import Batch
from loraexp.statistics.checks import Request
from loraexp.statistics.hooks import prepared
from loraexp.statistics.probes import LOSS, Pass, probe_passes, theta_passes
from loraexp.statistics.sweeps import Sweeper


class Copies(Accumulator):
    """The copies of a call's tokens that sums are made of, and no sum."""

    def __init__(self, on: Sequence[Pass], like: Tensor) -> None:
        self.on, self.sums, self.dtype = tuple(on), (), like.dtype

    def add(self, seen: Seen) -> None:
        for _ in parts(self.dtype, seen.h, *([] if seen.which is None else [seen.mu])):
            pass


def free_beside_a_batch(
    sweeper: Sweeper, likes: Mapping[str, Tensor], needs: frozenset[str], request: Request
) -> int | None:
    """Bytes that stay free on a GPU while the widest batch is swept; None elsewhere, where it is
    not."""
    return measure.bytes_beside(sweeper.device, widest_sweep(sweeper, likes, needs, request))


def widest_sweep(
    sweeper: Sweeper, likes: Mapping[str, Tensor], needs: frozenset[str], request: Request
) -> Callable[[], None]:
    """The passes of the widest batch, whose sums are none: what they need is beside any."""
    asked = request.get("curvature") if "curvature" in needs else None
    passes: tuple[Pass, ...] = () if needs <= {"input_moment"} else (LOSS,)
    if isinstance(asked, CurvatureRequest):  # every probe needs the same
        passes = (*passes, *probe_passes(asked)[:1], *theta_passes(asked)[:1])

    def sweep() -> None:
        batch = widest(sweeper)
        if batch is None:
            return
        with prepared(sweeper.model, sweeper.calibration.mode):
            copies: dict[str, list[Accumulator]] = {
                name: [Copies(passes, like)] for name, like in likes.items()
            }
            sweeper.batch(copies, sorted(passes), batch, 0, 0, set())

    return sweep


def widest(sweeper: Sweeper) -> Batch | None:
    """The batch with the most padded tokens; of all processes where they hold the weights in
    pieces, and pass together."""
    held = list(sweeper.calibration.batches)
    own = max(held, key=width, default=None)
    if not in_pieces(sweeper.model.parameters()):
        return own
    return max((each for each in gathered(own) if each is not None), key=width, default=None)


def width(batch: Batch) -> int:
    return next(iter(batch.values())).numel()
