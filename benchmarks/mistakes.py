"""Wrong settings and wrong files: refused at the start, in a line and with status 2, and nothing is
written elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks import forks
from benchmarks.cases import Case, Reference, polite, words

SETTINGS = (
    "lr=inf",
    "lr=nan",
    "lr=-1",
    "lr=0",
    "lr=abc",
    "lr=[1]",
    "lr=null",
    "lr=1e400",
    "seed=-1",
    "seed=1.5",
    f"seed={2**70}",
    "seed=null",
    "seed=true",
    "rank=0",
    "rank=-1",
    "rank=1.5",
    "rank=1e9",
    "rank=",
    "alpha=0",
    "alpha=nan",
    "alpha=-3",
    "precision=fp8",
    "precision=1",
    "device=quantum",
    "device=cuda:99",
    "device=",
    "lrr=1e-3",
    "train.epoch=1",
    "init.sample=1",
    "model.pth=x",
    "task.protocoll=x",
    "model=roberta-bass",
    "task=colla",
    "init=lora_gaa",
    "optimizer=adamww",
    "experiment=smok",
    "method=nothing",
    "model=../../etc/passwd",
    "init.name=../../evil",
    "init.name=/tmp/evil",
    "model.name=/a/b",
    "model.name=..",
    "task.name=../x",
    "init.name=a/b",
    "train.batch_size=0",
    "train.batch_size=-4",
    "train.batch_size=two",
    "train.max_steps=-1",
    "train.epochs=-1",
    "train.epochs=nan",
    "train.scheduler=square",
    "train.warmup_ratio=2",
    "train.warmup_ratio=nan",
    "train.max_grad_norm=-1",
    "train.weight_decay=inf",
    "train.eval_every=-2",
    "train.checkpoint_every=10parsecs",
    "train.checkpoint_every=-1",
    "train.patience=-1",
    "train.select=worst",
    "train.micro_batches=0",
    "train.gradient_accumulation=0",
    "init.samples=0",
    "init.samples=-3",
    "init.samples=many",
    "init.rows=tail",
    "init.mode=sleep",
    "init.memory_budget=-1",
    "init.weighting=votes",
    "init.batch_size=0",
    "adapter.scaling=cubic",
    "model.path=/no/such/folder",
    "model.kind=decoder",
    "model.targets=[nothing]",
    "model.targets=[]",
    "model.targets=nothing",
    "model.quantise=3bit",
    "model.dtype=int8",
    "task.limit_train=0",
    "task.limit_train=-5",
    "task.max_length=0",
    "task.max_length=-1",
    "task.data_dir=/no/such/folder",
    "wandb.mode=sometimes",
    "evaluate.backend=gpt",
    "train=5",
    "model=null",
    "task=null",
    "init=null",
    "a.b.c=1",
    "=",
    "lr==1",
    "lr=${nothing}",
    "lr=${lr}",
    "lr=${oc.env:NOWHERE}",
    "+lr=1",
    "~seed",
    "hydra.nothing=1",
    "notaverb",
)
HEADER = b"gj04\t1\t\tOur friends won't buy this analysis.\ngj04\t0\t*\tThis sentence no verb.\n"
FILES: dict[str, bytes] = {  # CoLA's train.tsv
    "empty": b"",
    "a line feed": b"\n",
    "not UTF-8": HEADER + b"gj04\t1\t\t\xff\xfe\n",
    "zeros": bytes(1000),
    "one column": b"hello\n" * 9,
    "a label of words": HEADER + b"gj04\tyes\t\tA sentence.\n",
    "a label beyond": HEADER + b"gj04\t7\t\tA sentence.\n",
    "a long number": HEADER + b"gj04\t" + b"9" * 5000 + b"\t\tA sentence.\n",
    "a column too many": HEADER + b"gj04\t1\t\tA\tB\tC\tD\n",
    "no text": HEADER + b"gj04\t1\t\t\n",
    "control characters": HEADER + b"gj04\tx\t\t\x1b[2J\x1b]0;evil\x07\n",
}
LINES: dict[str, bytes] = {  # GSM8K's train.jsonl
    "a list": b"[]\n",
    "null": b"null\n",
    "a number": b"5\n",
    "cut": b'{"question": "a", "ans',
    "a key missing": b'{"question": "a"}\n',
    "a number for text": b'{"question": 5, "answer": "#### 5"}\n',
    "no answer": b'{"question": "a", "answer": "five"}\n',
    "half a surrogate pair": b'{"question": "\\ud800", "answer": "#### 5"}\n',
    "nested deeply": b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "a long number": b'{"question": "a", "answer": ' + b"9" * 5000 + b"}\n",
    "not UTF-8": b'{"question": "\xff", "answer": "#### 5"}\n',
}
BERT = b'{"model_type": "bert"}'
DEEP = b"[" * 100_000 + b"]" * 100_000
MODELS: dict[str, dict[str, bytes]] = {  # files of a model's folder
    "config.json is a list": {"config.json": b"[]"},
    "config.json is empty": {"config.json": b""},
    "config.json is cut": {"config.json": b'{"model_type": "be'},
    "config.json nested deeply": {"config.json": DEEP},
    "an unknown architecture": {"config.json": b'{"model_type": "nothing"}'},
    "no weights": {"config.json": BERT},
    "weights of nonsense": {"config.json": BERT, "model.safetensors": b"\xff" * 100},
    "weights without a header": {"config.json": BERT, "model.safetensors": b""},
    "an index that leaves its folder": {
        "config.json": BERT,
        "model.safetensors.index.json": (
            b'{"weight_map": {"a": "../../../etc/passwd"}, "metadata": {}}'
        ),
    },
    "an index that is a list": {"config.json": BERT, "model.safetensors.index.json": b"[]"},
    "code of its own": {
        "config.json": b'{"model_type": "own", "auto_map": {"AutoModel": "evil.Model"}}',
        "evil.py": b"raise SystemExit(77)",
    },
}


def mistakes(of: Reference, small: bool) -> list[Case]:
    cases = [setting(word) for word in SETTINGS]
    cases += [
        file(f"train.tsv: {name}", {"CoLA/train.tsv": text, "CoLA/dev.tsv": HEADER}, "task=cola")
        for name, text in FILES.items()
    ]
    cases += [
        file(
            f"train.jsonl: {name}",
            {"train.jsonl": text, "test.jsonl": text},
            "task=gsm8k",
            "model=tiny-llama",
            "task.limit_train=null",
        )
        for name, text in LINES.items()
    ]
    cases += [model(name, files) for name, files in MODELS.items()]
    return of.rng.sample(cases, 4) if small else cases


def setting(word: str) -> Case:
    def tried(place: Path) -> str:
        return refused(place, words(place / "out", word))

    return Case(f"setting {word}", tried)


def file(name: str, files: dict[str, bytes], *more: str) -> Case:
    def tried(place: Path) -> str:
        return refused(
            place, words(place / "out", f"task.data_dir={written(place / 'data', files)}", *more)
        )

    return Case(name, tried)


def model(name: str, files: dict[str, bytes]) -> Case:
    def tried(place: Path) -> str:
        folder = written(place / "model", files)
        return refused(
            place,
            words(
                place / "out",
                f"model.path={folder}",
                "model.config=null",
                "model.tokenizer=trained:200",
            ),
        )

    return Case(f"a model: {name}", tried)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refused(place: Path, command: list[str]) -> str:
    """Status 2 (or 1 with a record) and a line; no traceback, no control character, no run folder
    outside the root."""
    home = place / "home"
    home.mkdir()
    before = {path for path in place.iterdir()}
    ended = forks.run(*command, before=lambda: os.chdir(home), seconds=60)
    if reason := polite(ended, 1, 2):
        return reason
    written_there = {path for path in place.iterdir()} - before - {place / "out"} | set(
        home.iterdir()
    )
    if written_there:
        return f"{written_there.pop()} was written"
    if any(character in ended.err for character in "\x1b\x07"):
        return "a control character reaches the terminal"
    said = [line for line in ended.err.splitlines() if line.startswith("loraexp: ")]
    return "" if said else f"no line says what is wrong: {ended.err[-200:]!r}"
