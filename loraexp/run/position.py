"""Where a run stands, written and taken up again: everything that its next step depends on."""

from __future__ import annotations

from torch import Tensor

from loraexp.machine.tensors import read_along
from loraexp.records.record import now
from loraexp.run import snapshot
from loraexp.run.checkpoint import (
    Progress,
    State,
    generators,
    restore_generators,
    seed_generators,
)
from loraexp.run.loop import Loop


def save(run: Loop, state: Progress) -> None:
    """Write everything that the next step depends on, of all processes; the main one writes."""
    assert run.optimizer is not None
    loss = state.loss.detach().cpu() if isinstance(state.loss, Tensor) else state.loss
    ranks = run.runtime.processes.gather({"generators": generators(), "loss": loss})
    weights = snapshot.weights(run.adapters)
    moments, groups = snapshot.moments(run.optimizer)
    state.saved = state.step
    if run.runtime.processes.main:
        run.checkpoint.save(
            State(
                progress=state,
                weights=weights,
                moments=moments,
                groups=groups,
                ranks=ranks,
                history=run.record.mark(),
            )
        )
    else:
        read_along(weights)
        read_along(moments)
    run.runtime.processes.wait()


def begin(run: Loop, total: int) -> Progress:
    """The first step, or that of the checkpoint, which is then in weights, optimizer, generators
    and log."""
    before = run.checkpoint.load()
    if before is None:
        for line in run.checkpoint.damage:
            run.say(line)
        run.record.start_metrics()
        if run.checkpoint.damage:
            note(run, 0, run.checkpoint.damage)
        return Progress()
    assert run.optimizer is not None
    state, processes = before.progress, run.runtime.processes
    run.adapters.load_state(before.weights)
    snapshot.restore(run.optimizer, before.moments, before.groups)
    notes = []
    if len(before.ranks) == processes.world:
        mine = before.ranks[processes.rank]
        restore_generators(mine["generators"])
        state.loss = mine["loss"]
    else:
        seed_generators(run.settings.seed, processes.rank, state.step)
        state.loss = sum(rank["loss"] for rank in before.ranks) / len(before.ranks)
        notes.append(
            f"the checkpoint is of {len(before.ranks)} processes, this run has {processes.world}:"
            " rows, weights and moments go on as they were; dropout draws new masks, from the seed"
            " and the step"
        )
    lost = run.record.start_metrics(before.history, state.step)
    notes += [lost] if lost else []
    run.say(f"resumed at step {state.step} of {total}")
    for line in notes:
        run.say(line)
    note(run, state.step, notes)
    return state


def note(run: Loop, step: int, notes: list[str]) -> None:
    """Into the record: where this attempt began, when, on how many processes, and what of the one
    before is not there."""
    earlier = run.record.before.get("resumed") or []
    entry: dict[str, object] = {
        "step": step,
        "when": now(),
        "processes": run.runtime.processes.world,
        "notes": list(notes),
    }
    if "packed" in run.record.before:
        entry["packed"] = 1  # until others share its passes here too
    run.record.update(resumed=[*earlier, entry])
