"""Files damaged in a run's folder: in a stopped run, which then goes on, and in a finished one,
which is used again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks import forks
from benchmarks.cases import Case, Reference, completes, copy, folder_of, polite

Damage = Callable[[Path, random.Random], None]


def flipped(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, len(content))])


def folder_instead(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def text(content: bytes) -> Damage:
    return lambda path, rng: path.write_bytes(content) and None


def longer(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(100))


KINDS: dict[str, Damage] = {
    "a bit flipped": flipped,
    "cut": cut,
    "empty": text(b""),
    "random bytes": lambda path, rng: path.write_bytes(rng.randbytes(5000)) and None,
    "zeros": lambda path, rng: path.write_bytes(bytes(path.stat().st_size)) and None,
    "a folder in its place": folder_instead,
    "bytes at its end": longer,
}
JSON: dict[str, Damage] = {
    "a list": text(b"[]"),
    "an empty object": text(b"{}"),
    "null": text(b"null"),
    "a number": text(b"1e999"),
    "not UTF-8": text(b'{"a": "\xff\xfe"}'),
    "nested deeply": text(b"[" * 100_000 + b"]" * 100_000),
    "a long number": text(b'{"schema": ' + b"9" * 5000 + b"}"),
    "metrics that are a list": lambda path, rng: changed(path, metrics=[1]),
    "metrics that are no numbers": lambda path, rng: changed(
        path, metrics={"dev": {"accuracy": "high"}}
    ),
    "an old schema": lambda path, rng: changed(path, schema=0),
}


def changed(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def stopped(of: Reference, small: bool) -> list[Case]:
    """The same command sets the damaged file aside and ends where an undisturbed run does."""

    def attempt(name: str, kind: str, damage: Damage, seed: int) -> Case:
        def tried(place: Path) -> str:
            out = copy(of.stopped, place / "out")
            damage(folder_of(out) / name, random.Random(seed))
            return completes(out, of.finished, log=name != "metrics.jsonl")

        return Case(f"{name}: {kind}", tried)

    names = (
        "checkpoint/state.pt",
        "checkpoint/factors.pt",
        "metrics.jsonl",
        "record.json",
        "config.yaml",
        "init/ledger.json",
    )
    pairs = [(name, kind, damage) for name in names for kind, damage in KINDS.items()]
    pairs += [
        ("record.json", kind, damage) for kind, damage in JSON.items() if "metrics" not in kind
    ]
    pairs += [(name, f"a bit flipped, again {n}", flipped) for name in names[:2] for n in range(4)]
    chosen = of.rng.sample(pairs, 2) if small else pairs
    return [attempt(name, kind, damage, of.rng.randrange(2**32)) for name, kind, damage in chosen]


def finished(of: Reference, small: bool) -> list[Case]:
    """Commands on a finished run whose files are damaged: a line and a status; a damaged adapter is
    never proved."""

    def attempt(verb: str, name: str, kind: str, damage: Damage, seed: int) -> Case:
        def tried(place: Path) -> str:
            out = copy(of.finished, place / "out")
            folder = folder_of(out)
            damage(folder / name, random.Random(seed))
            if verb == "run":
                return completes(out, of.finished, log=name != "metrics.jsonl")
            more = [f"--to={place}/exported"] if verb == "export" else []
            ended = forks.run(verb, str(folder), *more)
            statuses = (
                (1, 2)
                if verb == "verify" and name.endswith(".safetensors") and kind != "a bit flipped"
                else (0, 1, 2)
            )
            return polite(ended, *statuses)

        return Case(f"{verb} with {name}: {kind}", tried)

    names = (
        "record.json",
        "config.yaml",
        "adapter/adapter_model.safetensors",
        "adapter/factors.safetensors",
        "adapter/adapter_config.json",
        "init/ledger.json",
        "metrics.jsonl",
    )
    triples = [("run", "record.json", kind, damage) for kind, damage in (KINDS | JSON).items()]
    some = {kind: KINDS[kind] for kind in ("cut", "empty", "random bytes", "a folder in its place")}
    triples += [
        (verb, name, kind, damage)
        for verb in ("verify", "eval", "align", "export")
        for name in names
        for kind, damage in some.items()
    ]
    triples += [("verify", "record.json", kind, damage) for kind, damage in JSON.items()]
    chosen = of.rng.sample(triples, 2) if small else triples
    cases = [attempt(*one, of.rng.randrange(2**32)) for one in chosen]
    digits = [digit(of, of.rng.randrange(2**32)) for _ in range(1 if small else 12)]
    return [*cases, *digits]


def digit(of: Reference, seed: int) -> Case:
    """Another digit somewhere in a finished run's record is never taken for what was measured."""

    def tried(place: Path) -> str:
        folder = folder_of(copy(of.finished, place / "out"))
        path, rng = folder / "record.json", random.Random(seed)
        text = path.read_text()
        at = rng.choice([n for n, character in enumerate(text) if character.isdigit()])
        path.write_text(
            text[:at] + str((int(text[at]) + 1 + rng.randrange(9)) % 10) + text[at + 1 :]
        )
        ended = forks.run("verify", str(folder))
        if reason := polite(ended, 0, 1, 2):
            return reason
        noticed = ended.status == 2 or "record.json was changed by hand" in ended.err
        return "" if noticed else f"nothing is said of {text[at - 30 : at + 10]!r}"

    return Case(f"verify with record.json: another digit ({seed})", tried)
