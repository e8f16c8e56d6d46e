"""On a CUDA device: the training loop, initialising, rules and packed runs by the clock, in units
of the peers that `loop`, `initializers`, `optimizers` and `packed` have on a CPU; and LLaMA-2-7B
whole, with random weights, its memory beside what `loraexp plan` says.

`python -m benchmarks gpu [--quick]`. Every part prints as it goes; one that fails says so and the
others go on. The sizes are RoBERTa-base's and LLaMA-2-7B's; no weights are needed.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import initializers, loop, optimizers, packed
from loraexp import config, models
from loraexp.adapter.adapted import attach
from loraexp.adapter.layer import Factors
from loraexp.config.settings import Settings
from loraexp.machine.device import to_device
from loraexp.models.tokenizer import trained
from loraexp.run import experiment
from loraexp.run.batches import epoch_batches
from loraexp.sweep import estimate, sizes

GIB = 2**30
WIDE = initializers.SUBJECTS["wide"].overrides
PEERS = ("unpadded", "buckets", "plain", "auto", "trainer_dynamic", "trainer_grouped", "bare")
LLAMA_2_7B = config.read_yaml("model", "llama-2-7b")["facts"]["config"]
ROWS, TOKENS = 4, 512
RUNS = ("lora", "lora_one", "cg_lora", "lora_ga")


@contextlib.contextmanager
def silent() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --------------------------------------------------------------------------------------------------
# the training loop


def training(device: torch.device, precision: str, quick: bool) -> dict[str, float]:
    """Samples a second of ours and of the peers, RoBERTa-base's size over CoLA in batches of 32."""
    rounds, steps = (1, 4) if quick else (3, 60)
    found: dict[str, list[loop.Measured]] = {name: [] for name in PEERS}
    with tempfile.TemporaryDirectory() as folder:
        words = (*WIDE, f"precision={precision}")
        bench = loop.prepare(Path(folder), device, 60, words)
        for seed in range(rounds + 1):
            for name in PEERS:
                with silent():
                    made = loop.CONTENDERS[name][1](bench, steps if seed else loop.WARM_UP, seed)
                if seed:
                    found[name].append(made)
    print(f"{precision}: {steps} steps of {loop.BATCH}, median of {rounds} rounds, by the clock")
    figures: dict[str, float] = {}
    for name in PEERS:
        rate = figures[name] = statistics.median(m.by_clock for m in found[name])
        print(f"{loop.CONTENDERS[name][0]:<42} {rate:9.0f} samples/s")
    for mine, peer, _ in loop.RATIOS:
        if mine in PEERS and peer in PEERS:
            pairs = zip(found[mine], found[peer], strict=True)
            ratios = [a.by_clock / b.by_clock for a, b in pairs]
            words_of = f"{loop.CONTENDERS[mine][0]} / {loop.CONTENDERS[peer][0]}"
            spread = f"({min(ratios):.2f} … {max(ratios):.2f})"
            print(f"{words_of:<66} {statistics.median(ratios):6.2f} {spread}")
    outside = statistics.median(m.outside for m in found["buckets"])
    print(f"loop outside forward, backward, optimizer: {outside:.1%}", flush=True)
    return figures


# --------------------------------------------------------------------------------------------------
# a whole LLaMA-2-7B


def checkpoint(folder: Path, layers: int, device: torch.device) -> Path:
    """Random weights in bfloat16, drawn on the card, with a tokenizer, as its users save one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    own = AutoConfig.for_model(**LLAMA_2_7B | {"num_hidden_layers": layers}, pad_token_id=0)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(own, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    trained("trained:1024", "causal").save_pretrained(folder)
    return folder


def rows(folder: Path) -> Path:
    """Texts that are longer than any length, so that all are cut to it."""
    lines = [f"say {i},{'and then more of it ' * 200}{i}" for i in range(64)]
    (folder / "train.csv").write_text("\n".join(["q,a", *lines]) + "\n")
    return folder


def words_of(base: Path, data: Path, out: Path, init: str, steps: int) -> list[str]:
    return [
        *("model=llama-2-7b", f"model.path={base}", "model.revision=null", "model.pad_token=null"),
        *("task=data", f"task.data_dir={data}", "task.prompt='{q}:'", "task.response='{a}'"),
        *("task.held_out=4", f"task.max_length={TOKENS}", "precision=bf16", "device=cuda"),
        *(f"init={init}", "init.samples=16", "init.cache=false", f"train.batch_size={ROWS}"),
        *(f"train.eval_batch_size={ROWS}", f"train.max_steps={steps}", "train.log_every=5"),
        *("wandb.mode=disabled", f"output_root={out}", "train.select=last", "force=true"),
    ]


def planned(settings: Settings) -> Any:
    return estimate.counted(sizes.shape_of(settings, length=TOKENS))[0]


def seven_billion(device: torch.device, quick: bool) -> dict[str, float]:
    """Whole runs of the command line's code: what initialising and training take, and the card's
    memory beside the plan's."""
    layers, steps, names = (2, 2, RUNS[:2]) if quick else (32, 10, RUNS)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = rows(folder)
        began = time.perf_counter()
        base = checkpoint(folder / "base", layers, device)
        gc.collect()
        torch.cuda.empty_cache()
        print(f"{layers} layers, written in {time.perf_counter() - began:.0f} s; {ROWS} rows of")
        print(f"{TOKENS} tokens, 16 calibration rows, bf16, rank 8 on all linear layers")
        heads = f"{'':12} {'init s':>7} {'sweeps':>7} {'GiB':>6} {'plan':>6} {'train GiB':>9}"
        print(f"{heads} {'plan':>6} {'tokens/s':>9} {'run s':>6}")
        for init in ("lora", *names):  # the first warms up
            words = words_of(base, data, folder / "out", init, steps)
            settings, plain = config.check(config.compose(words))
            began = time.perf_counter()
            with silent():
                cost = experiment.run(settings, plain).record["cost"]
            whole = time.perf_counter() - began
            memory = planned(settings)
            rate = steps * ROWS * TOKENS / cost["train_seconds"]
            both = [
                (cost[f"{part}_peak_bytes"] / GIB, getattr(memory, part) / GIB)
                for part in ("init", "train")
            ]
            line = f"{init:12} {cost['init_seconds']:7.1f} {cost['init_forward_sweeps']:7.2f}"
            line += f" {both[0][0]:6.1f} {both[0][1]:6.1f} {both[1][0]:9.1f} {both[1][1]:6.1f}"
            print(f"{line} {rate:9.0f} {whole:6.0f}", flush=True)
            for (found, plan), part in zip(both, ("init", "train"), strict=True):
                figures |= {f"{init}/{part}": found, f"{init}/{part}/plan": plan}
            gc.collect()
            torch.cuda.empty_cache()
        bare = bare_llama(base, steps, device)
        print(f"{'bare, PEFT':12} {'':46} {bare:9.0f}", flush=True)
    return figures | {"bare": bare}


def bare_llama(base: Path, steps: int, device: torch.device) -> float:
    """Tokens a second of a dozen lines with PEFT over rows of the same size."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device)
    targets = list(config.read_yaml("model", "llama-2-7b")["targets"])
    model: Any = get_peft_model(made, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    ids = torch.randint(4, 1000, (ROWS, TOKENS), device=device)
    began = 0.0
    for step in range(steps + 2):
        if step == 2:
            torch.cuda.synchronize()
            began = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    return steps * ROWS * TOKENS / (time.perf_counter() - began)


# --------------------------------------------------------------------------------------------------
# runs that share their passes, and torch.compile


def sharing(quick: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    packed.MODELS["wide"] = packed.Base("RoBERTa's size", WIDE, encoder=True)
    for model in ("wide", "six-layers"):
        for shape in packed.SHAPES[: 1 if quick else None]:
            numbers = (2,) if quick else packed.RUNS
            with silent():
                most = packed.automatic(model, shape, "cuda")
                found = packed.ratios(model, shape, numbers, 3, 0.05, "cuda")
            for k in numbers:
                clock = found[k][1]
                figures[f"{model}/{shape}/{k}"] = statistics.median(clock)
                spread = f"({min(clock):.2f} … {max(clock):.2f})"
                said = f"{model:12} {shape!s:8} {k} runs {statistics.median(clock):6.2f} {spread}"
                print(f"{said}; auto packs {most}", flush=True)
    return figures


def encoder(device: torch.device, precision: str) -> tuple[Any, list[Any]]:
    """An adapted encoder, and batches of eight lengths of CoLA."""
    with tempfile.TemporaryDirectory() as folder:
        bench = loop.prepare(Path(folder), device, 60, (*WIDE, f"precision={precision}"))
    model, given = loop.base_model(bench, 0), bench.settings
    with_factors(model, given.model.targets, models.head(model))
    order = epoch_batches(bench.lengths, loop.BATCH, seed=0, epoch=0, length_buckets=True)
    data = bench.task.splits["train"]
    return model, [to_device(bench.task.collate(data, rows), device) for rows in order[:8]]


def llama(device: torch.device, precision: str) -> tuple[Any, list[Any]]:
    """Four adapted layers, 2,048 wide, and batches of four rows of eight lengths."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes_of = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16}
    own = AutoConfig.for_model(**LLAMA_2_7B | sizes_of | heads, use_cache=False)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(own, dtype=torch.bfloat16)
    with_factors(model, list(config.read_yaml("model", "llama-2-7b")["targets"]), ["lm_head"])
    lengths = (512, 480, 416, 384, 320, 256, 192, 128)
    ids = [torch.randint(4, 1000, (ROWS, n), device=device) for n in lengths]
    return model, [{"input_ids": x, "labels": x} for x in ids]


def with_factors(model: Any, names: Any, head: Any) -> None:
    targets = models.target_layers(model, names, head)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    attach(model, random_factors(targets, 8, torch.Generator().manual_seed(0)), 2.0, [])
    model.train()


def compiled(device: torch.device, make: Any, precision: str, quick: bool) -> float:
    """Forward and backward of an adapted model over batches of eight lengths, compiled once for all
    lengths, in units of the same without; and what compiling takes."""
    model, batches = make(device, precision)
    one: Any = torch.compile(model, dynamic=True)
    work = partial(backward, batches=batches)
    took = timed(partial(work, one))
    ratios = []
    work(model), work(one)
    for _ in range(2 if quick else 9):
        ratios.append(timed(partial(work, model)) / timed(partial(work, one)))
    spread = f"({min(ratios):.2f} … {max(ratios):.2f})"
    middle = statistics.median(ratios)
    print(f"{precision}: {middle:.2f} {spread} times as fast after {took:.0f} s", flush=True)
    torch._dynamo.reset()
    return middle


def backward(model: Any, batches: list[Any]) -> None:
    lower = next(model.parameters()).dtype == torch.bfloat16
    for batch in batches:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=lower):
            loss = model(**batch).loss
        loss.backward()


def random_factors(targets: Any, rank: int, draw: torch.Generator) -> Any:
    return {
        name: Factors(
            A=(torch.randn(rank, x.in_features, generator=draw) / 30).to(x.weight.device),
            B=(torch.randn(x.out_features, rank, generator=draw) / 30).to(x.weight.device),
            start="shifted",
        )
        for name, x in targets.items()
    }


def timed(work: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


# --------------------------------------------------------------------------------------------------


def main(quick: bool = False, only: tuple[str, ...] = ()) -> dict[str, Any]:
    if not torch.cuda.is_available():
        print("there is no CUDA device here")
        return {}
    device = torch.device("cuda", 0)
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}")
    torch.set_num_threads(4)
    parts: dict[str, Callable[[], Any]] = {
        "LLaMA-2-7B": partial(seven_billion, device, quick),
        "training, bf16": partial(training, device, "bf16", quick),
        "initialising": partial(
            initializers.time_of, "wide", quick, device, batches=32, rounds=1 if quick else 3
        ),
        "rules, 24 layers": partial(optimizers.steps_of, 24, 20, device),
        "rules, 224 layers": partial(optimizers.steps_of, 224, 20, device),
        "packed": partial(sharing, quick),
        "compiled LLaMA, bf16": partial(compiled, device, llama, "bf16", quick),
        "training, fp32": partial(training, device, "fp32", quick),
        "compiled encoder, bf16": partial(compiled, device, encoder, "bf16", quick),
        "compiled encoder, fp32": partial(compiled, device, encoder, "fp32", quick),
    }
    figures: dict[str, Any] = {}
    for name, part in parts.items():
        if only and not name.startswith(only):
            continue
        print(f"\n-- {name}", flush=True)
        began = time.perf_counter()
        try:
            figures[name] = part()
        except Exception:
            traceback.print_exc()
        print(f"   ({time.perf_counter() - began:.0f} s)", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    print(json.dumps(figures))
    return figures
