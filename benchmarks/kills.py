"""Killed with -9: a run, at any moment and several times; two commands that share a sweep."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import forks
from benchmarks.cases import Case, Reference, completes, polite, timeless, words
from benchmarks.forks import Command

SWEEP = """
title: two initializers
paper: none
artifact: campaign
kind: table
base: [experiment=smoke, wandb.mode=disabled, device=cpu, task.limit_train=64,
       task.limit_eval=32, init.samples=16, train.max_steps=8, train.eval_every=4,
       train.log_every=1, train.checkpoint_every=1]
grid: {lr: 1.0e-3, seed: [0, 1]}
rows:
  lora: {label: LoRA, overrides: [init=lora]}
  pissa: {label: PiSSA, overrides: [init=pissa]}
columns:
  tweets: {label: Tweets, overrides: [task=tweets], value: dev/accuracy}
"""


def kills(of: Reference, small: bool) -> list[Case]:
    """A run that is killed once to three times, then left alone."""

    def attempt(moments: list[float]) -> Case:
        def tried(place: Path) -> str:
            for moment in moments:
                command = Command(words(place / "out"))
                time.sleep(moment)
                command.signal(9)
                ended = command.wait()
                if ended.status not in (-9, 0):
                    return polite(ended, -9, 0)
            return completes(place / "out", of.finished)

        return Case(f"killed after {', '.join(f'{moment:.2f}' for moment in moments)} s", tried)

    span = of.seconds * 1.05
    return [
        attempt([of.rng.uniform(0.05, 1.0) * span for _ in range(of.rng.choice((1, 1, 2, 3)))])
        for _ in range(1 if small else 40)
    ]


def sweeps(of: Reference, small: bool) -> list[Case]:
    """Two commands share a sweep of four runs; one or both are killed, once or twice; then two
    finish it."""
    undisturbed: list[Path] = []

    def whole(place: Path) -> Path:
        """The sweep's results without a kill, made once beside the cases."""
        if not undisturbed:
            out = place.parent / "whole-sweep"
            ended = forks.run(*command_of(place, out), seconds=300)
            if ended.status != 0:
                raise RuntimeError(f"the sweep alone fails: {ended.err[-500:]}")
            undisturbed.append(out)
        return undisturbed[0]

    def attempt(rounds: list[tuple[float, int]]) -> Case:
        def tried(place: Path) -> str:
            like, out = whole(place), place / "out"
            finished: dict[Path, bytes] = {}
            for moment, victims in rounds:
                both = [Command(command_of(place, out)) for _ in range(2)]
                time.sleep(moment * of.seconds)
                for one in both[:victims]:
                    one.signal(9)
                for one in both:
                    if reason := polite(one.wait(300), 0, -9):
                        return reason
                finished |= ended_records(out, finished)
            for ended in [
                one.wait(300) for one in [Command(command_of(place, out)) for _ in range(2)]
            ]:
                if reason := polite(ended, 0):
                    return reason
            return equal(out, like) or again(finished)

        said = ", ".join(
            f"{victims} of 2 after {moment * of.seconds:.1f} s" for moment, victims in rounds
        )
        return Case(f"killed: {said}", tried)

    span = 4.0  # runs
    return [
        attempt(
            [
                (of.rng.uniform(0.2, span), of.rng.choice((1, 2, 2)))
                for _ in range(of.rng.choice((1, 2)))
            ]
        )
        for _ in range(1 if small else 8)
    ]


def command_of(place: Path, out: Path) -> list[str]:
    file = place.parent / "campaign.yaml"
    file.write_text(SWEEP)
    return ["sweep", str(file), f"output_root={out}"]


def ended_records(out: Path, known: dict[Path, bytes]) -> dict[Path, bytes]:
    """The records of finished runs, as they are now."""
    found = {path: path.read_bytes() for path in out.glob("*/*/record.json") if path not in known}
    return {path: text for path, text in found.items() if b'"status": "finished"' in text}


def again(finished: dict[Path, bytes]) -> str:
    changed = [path for path, text in finished.items() if path.read_bytes() != text]
    return f"{changed[0].parent.name} was finished and has been run again" if changed else ""


def equal(out: Path, like: Path) -> str:
    """Every run of a sweep has the adapter and the log of the same run of another."""
    folders = sorted(path.parent for path in like.glob("*/*/record.json"))
    for theirs in folders:
        mine = out / theirs.relative_to(like)
        adapter = "adapter/adapter_model.safetensors"
        if (
            not (mine / adapter).exists()
            or (mine / adapter).read_bytes() != (theirs / adapter).read_bytes()
        ):
            return f"{theirs.name}: the adapter differs from that of the undisturbed sweep"
        if timeless(mine) != timeless(theirs):
            return f"{theirs.name}: metrics.jsonl differs from that of the undisturbed sweep"
    return "" if len(folders) == 4 else f"{len(folders)} of 4 runs"
