"""The verbs: those of sweeps, each in a module of its own, and `list`, `verify`, `export`, `eval`."""

from __future__ import annotations

import argparse
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from loraexp import config
from loraexp.config import ConfigError
from loraexp.sweep import schema

PLURALS = {"models": "model", "tasks": "task", "inits": "init", "optimizers": "optimizer", "methods": "method"}
# Verbs whose module has `main(arguments) -> exit status`.
MODULES = {
    "sweep": "sweep.launch",
    "plan": "sweep.plan",
    "table": "artifacts.table",
    "plot": "cli.plot",
    "report": "artifacts.page",
    "align": "finished.diagnose",
}


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line of ours, with exit status 2."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog.removeprefix('loraexp ')}: {message}; see {self.prog} --help")


def sweep_options(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """NAME, --variant and what the parser has besides; and the overrides, wherever they stand."""
    parser.add_argument("name", help="a sweep (loraexp list sweeps), or a yaml file of your own")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of every run, after those of the sweep")
    parser.add_argument("--variant", help="the same artifact under other means, such as smoke")
    options = parser.parse_intermixed_args(arguments)
    for word in options.overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word}: expected KEY=VALUE")
    return options, options.overrides


def main(verb: str, arguments: Sequence[str]) -> int:
    if verb in MODULES:
        return importlib.import_module(f"loraexp.{MODULES[verb]}").main(arguments)
    return {"list": list_choices, "verify": verify, "export": export, "eval": evaluate_again}[verb](arguments)


def list_choices(arguments: Sequence[str]) -> int:
    """`loraexp list [models|tasks|inits|optimizers|methods|sweeps]`: name and first comment of every file."""
    parser = Parser("loraexp list", description=list_choices.__doc__)
    choices = [*PLURALS, "sweeps"]
    parser.add_argument("what", nargs="?", help=" | ".join(choices))
    what = parser.parse_args(arguments).what
    if what is not None and what not in choices:
        raise ConfigError(f"list {what}: {config.nearest(what, choices)}")
    for plural in [what] if what else choices:
        if what is None:
            print(f"\n{plural}")
        group = PLURALS.get(plural)
        for name in config.names(group) if group else schema.names():
            print(f"  {name:<35} {config.about(group, name) if group else schema.about(name)}")
    return 0


def find_run(word: str) -> tuple[Path, dict[str, Any]]:
    """A run folder by its path, or by its id anywhere under ./outputs; with its record."""
    from loraexp.records import record

    folder = Path(word)
    if not folder.is_dir():
        found = sorted(Path("outputs").glob(f"*/*-{word}")) if "/" not in word else []
        if len(found) != 1:
            raise ConfigError(f"{word}: expected a run folder, or the id of one run under ./outputs ({len(found)} found)")
        folder = found[0]
    content = record.read(folder)
    if content is None or content["status"] != "finished":
        status = "no record.json" if content is None else f"status {content['status']}"
        raise ConfigError(f"{folder}: expected a finished run, found {status}")
    return folder, content


def load_run(folder: Path, record: dict[str, Any]) -> tuple[Any, Any]:
    """Checked settings of a run, and a function that loads its ORIGINAL base in a given dtype."""
    from omegaconf import DictConfig

    from loraexp.models import load

    settings, _ = config.check(DictConfig(yaml.safe_load((folder / "config.yaml").read_text())))

    def base(dtype: Any) -> Any:
        labels = {k: {int(i): n for i, n in v.items()} if k == "id2label" else v for k, v in record["labels"].items()}
        return load.load_model(settings.model, dtype=dtype, head_seed=settings.seed, **labels)

    return settings, base


def verify(arguments: Sequence[str]) -> int:
    """`loraexp verify RUN`: prove that a run's saved adapter is the same function on the original base every way.

    Logits of the same tokens through this project's layer (R and offset apart), through PEFT, and merged once in
    float32 agree to 1e-5 of the largest logit. In bf16 the adapter kept apart is compared with edited weights.
    """
    parser = Parser("loraexp verify", description=verify.__doc__)
    parser.add_argument("run", help="run folder or run id")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative to the largest logit (default 1e-5)")
    options = parser.parse_args(arguments)
    folder, record = find_run(options.run)
    settings, base = load_run(folder, record)
    if not (folder / "adapter" / "factors.safetensors").exists():
        raise ConfigError(f"{folder}: init={settings.init['name']} saved a whole model, there is no adapter to verify")
    worst = verify_float32(folder, base)
    verify_bf16(folder, base, settings.model.kind)
    agree = worst <= options.tolerance
    print("agree" if agree else f"DISAGREE: {worst:.1e} is above the tolerance {options.tolerance:g}")
    return 0 if agree else 1


def logits(model: Any) -> Any:
    """Logits of a model on fixed random tokens, half of the rows padded."""
    import torch

    tokens = torch.randint(5, model.config.vocab_size, (8, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[::2, 16:] = 0
    reads = {"decoder_input_ids": tokens[:, :8]} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model.eval()(input_ids=tokens, attention_mask=mask, **reads).logits.float()


def verify_float32(folder: Path, base: Any) -> float:
    """Print how far PEFT and the merged model are from this project's layer; returns the larger of the two."""
    import torch

    from loraexp.adapter.adapted import load_raw, merge

    adapters = load_raw(base(torch.float32), folder / "adapter" / "factors.safetensors")
    results = {"this project": logits(adapters.model), "merged in float32": logits(merge(adapters))}
    try:
        from peft import PeftModel

        results["PEFT"] = logits(PeftModel.from_pretrained(base(torch.float32), folder / "adapter"))
    except ImportError:
        print("PEFT is not installed (pip install 'loraexp[peft]'): its way is not checked")
    expected = results["this project"]
    errors = {name: float((found - expected).abs().max() / expected.abs().max()) for name, found in results.items()}
    for name, error in errors.items():
        print(f"{name:<20} largest difference {error:.1e} of the largest logit")
    return max(errors.values())


def verify_bf16(folder: Path, base: Any, kind: str) -> None:
    """Print what rounding costs on a bf16 base: of an adapter kept apart, and of one edited into the weights.

    Both against the same bf16 weights computed in float32.
    """
    import torch

    from loraexp.adapter.adapted import load_raw, merge
    from loraexp.models import load

    raw = folder / "adapter" / "factors.safetensors"
    exact = load_raw(base(torch.bfloat16).float(), raw).model
    apart = load_raw(base(torch.bfloat16), raw).model
    edited = merge(load_raw(base(torch.bfloat16), raw))
    for name in load.new_modules(edited, kind):
        apart.get_submodule(name).bfloat16()
        edited.get_submodule(name).bfloat16()
    wanted = logits(exact)
    for name, candidate in (("bf16, kept apart", apart), ("bf16, weight edited", edited)):
        error = float((logits(candidate) - wanted).square().mean().sqrt() / wanted.abs().max())
        print(f"{name:<20} rms difference     {error:.1e} of the largest logit")


def export(arguments: Sequence[str]) -> int:
    """`loraexp export RUN --to DIR [--merged]`: a PEFT adapter folder, or the base with the update merged in float32."""
    parser = Parser("loraexp export", description=export.__doc__)
    parser.add_argument("run", help="run folder or run id")
    parser.add_argument("--to", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument("--merged", action="store_true", help="a whole checkpoint instead of an adapter")
    options = parser.parse_args(arguments)
    folder, record = find_run(options.run)
    if options.to.exists() and any(options.to.iterdir()):
        raise ConfigError(f"--to {options.to}: the folder is not empty; give a new one")
    raw = folder / "adapter" / "factors.safetensors"
    options.to.mkdir(parents=True, exist_ok=True)
    if not options.merged or not raw.exists():
        for path in (folder / "adapter").iterdir():
            if path != raw:
                shutil.copy2(path, options.to / path.name)
    else:
        import torch

        from loraexp.adapter.adapted import load_raw, merge
        from loraexp.models import load

        settings, base = load_run(folder, record)
        merge(load_raw(base(torch.float32), raw)).save_pretrained(options.to)  # type: ignore[operator]
        load.load_tokenizer(settings.model).save_pretrained(options.to)
    print(f"{'merged checkpoint' if options.merged else 'adapter'} in {options.to}")
    return 0


# What a finished run may be scored again with: nothing that changes what was trained.
SCORING: tuple[str, ...] = (
    "task.protocol",
    "task.benchmarks",
    "task.eval_data_dir",
    "task.limit_eval",
    "task.skip_bad",
    "train.eval_batch_size",
    "evaluate.backend",
    "evaluate.unsafe_code",
    "device",
    "cache_root",
)


def evaluate_again(arguments: Sequence[str]) -> int:
    """`loraexp eval RUN [task.protocol=a,b] [KEY=VALUE ...]`: score a finished run's adapter under other protocols.

    The metrics are added to the run's record as `SPLIT/PROTOCOL`, beside those of the run, and `evaluated_again` says
    when, and with which keys, each was made.
    """
    parser = Parser("loraexp eval", description=evaluate_again.__doc__)
    parser.add_argument("run", help="run folder or run id")
    parser.add_argument("overrides", nargs="*", help=" | ".join(SCORING))
    options = parser.parse_args(arguments)
    folder, record = find_run(options.run)
    changed = dict(scoring_override(word) for word in options.overrides)
    wanted = changed.pop("task.protocol", None)
    found: dict[str, dict[str, float]] = {}
    for protocol in wanted if wanted is not None else [None]:
        metrics = score_again(folder, record, changed | ({"task.protocol": protocol} if protocol else {}))
        found |= {split if "/" in split or not protocol else f"{split}/{protocol}": values for split, values in metrics.items()}
    keep_metrics(folder, record, found, list(options.overrides))
    for split, values in found.items():
        print(f"{split:<28} " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
    return 0


def scoring_override(word: str) -> tuple[str, Any]:
    """`KEY=VALUE` of a key that only scoring reads; the protocols are a list."""
    key, equals, value = word.partition("=")
    if not equals or key not in SCORING:
        raise ConfigError(f"eval: {word}: expected KEY=VALUE of {', '.join(SCORING)}")
    read = yaml.safe_load(value)
    if key == "task.protocol":
        return key, [name.strip() for name in read.split(",")] if isinstance(read, str) else list(read)
    if key == "task.eval_data_dir" and read is not None:
        return key, str(Path(read).expanduser().absolute())
    return key, read


def score_again(folder: Path, record: dict[str, Any], changed: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of a run's adapter on the reported splits, with some keys of its configuration changed."""
    import torch
    from omegaconf import DictConfig, OmegaConf

    from loraexp.adapter.adapted import load_raw
    from loraexp.machine.processes import Processes
    from loraexp.models import load
    from loraexp.run import experiment
    from loraexp.run.evaluate import evaluate

    cfg = DictConfig(yaml.safe_load((folder / "config.yaml").read_text()))
    trained_by = record["data"].get("train", {}).get("recipe")
    for key, value in changed.items() if not trained_by else (changed | {"task.recipe": trained_by}).items():
        OmegaConf.update(cfg, key, value)
    settings, _ = config.check(cfg)
    raw = folder / "adapter" / "factors.safetensors"
    try:
        task = experiment.make_task(settings, load.load_tokenizer(settings.model))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    device = load.choose_device(settings.device)
    if raw.exists():
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        model = load.load_model(settings.model, dtype=dtype, head_seed=settings.seed, **experiment.labels(task))
        load_raw(model, raw)
    else:  # init=full saved the whole model, in the float32 that it trained in
        model = load.saved_model(settings.model, folder / "adapter", dtype=torch.float32)
    if not settings.model.quantise:
        model.to(device)
    how = {"device": device, "precision": settings.precision, "processes": Processes(settings.device)}
    return evaluate(model, task, task.reports, folder=folder, batch_size=settings.train.eval_batch_size, **how)


def keep_metrics(folder: Path, record: dict[str, Any], found: dict[str, dict[str, float]], said: list[str]) -> None:
    """Add metrics to a run's record, and what made them."""
    from loraexp.records import record as records

    record["metrics"] |= found
    made = {"when": records.now(), "overrides": said}
    record["evaluated_again"] = record.get("evaluated_again", {}) | {split: made for split in found}
    records.write_json(folder / "record.json", record)
