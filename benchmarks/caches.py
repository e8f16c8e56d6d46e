"""Caches that are damaged, or whose disk is full: they are made again, or left out, and the result
is that of a run that never had one."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks import forks
from benchmarks.cases import Case, Reference, copy, polite, same, words
from benchmarks.damage import JSON, KINDS, Damage
from benchmarks.disks import NotHere, disk

# an initializer that reads statistics, which are cached as the tokens are
WITH_CACHE = ("init=lora_ga", "train.max_steps=2")
FILES = (
    "tokens/*/tokens.npy",
    "tokens/*/labels.npy",
    "tokens/*/sha256.json",
    "statistics/*/manifest.json",
    "statistics/*/00000.safetensors",
)


def caches(of: Reference, small: bool) -> list[Case]:
    made: list[Path] = []

    def like(place: Path) -> Path:
        """An undisturbed run with its cache beside it, made once."""
        if not made:
            whole = place.parent / "undisturbed"
            ended = cached_run(whole / "out", whole / "cache")
            if ended.status != 0:
                raise RuntimeError(f"the run with a cache fails: {ended.err[-500:]}")
            made.append(whole)
        return made[0]

    def damaged(pattern: str, kind: str, damage: Damage, seed: int) -> Case:
        def tried(place: Path) -> str:
            whole = like(place)
            cache = copy(whole / "cache", place / "cache")
            rng = random.Random(seed)
            paths = sorted(cache.glob(pattern))
            if not paths:
                return f"there is no {pattern}"
            damage(rng.choice(paths), rng)
            return same_result(place / "out", cache, whole)

        return Case(f"{pattern}: {kind}", tried)

    def full(size: int) -> Case:
        def tried(place: Path) -> str:
            whole = like(place)
            with disk(place / "disk", size) as there:
                return same_result(place / "out", there / "cache", whole)

        return Case(f"a disk of {size} bytes for the cache", tried)

    pairs = [(pattern, kind, damage) for pattern in FILES for kind, damage in KINDS.items()]
    some = ("a list", "an empty object", "null", "nested deeply", "a long number")
    pairs += [
        (pattern, kind, JSON[kind])
        for pattern in FILES
        if pattern.endswith("json")
        for kind in some
    ]
    cases = [damaged(*pair, of.rng.randrange(2**32)) for pair in pairs]
    try:
        with disk(of.finished.parent / "a-disk", 4096):
            cases += [full(size) for size in (4096, 16384, 65536, 262144)]
    except NotHere:
        pass  # the disks' part says so
    return of.rng.sample(cases, 2) if small else cases


def cached_run(out: Path, cache: Path) -> forks.Ended:
    return forks.run(*words(out, *WITH_CACHE, f"cache_root={cache}"))


def same_result(out: Path, cache: Path, whole: Path) -> str:
    return polite(cached_run(out, cache), 0) or same(out, whole / "out")
