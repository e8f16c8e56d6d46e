"""Text models: tokenizers made on the spot, the tiny models, and every initializer on T5's and
LLaMA's layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from loraexp import cli, config, models
from loraexp.machine.hub import SourceError
from loraexp.models import tokenizer as tokenizers
from tests.support.calls import Calls
from tests.support.checkpoints import settings_of
from tests.support.helpers import shared_data
from tests.support.runs import run
from tests.support.text_tasks import write_gsm8k

TINY = ["tiny-t5", "tiny-llama", "tiny-mistral", "tiny-gemma"]
INITS = [name for name in config.names("init") if name != "full"]


def test_a_trained_tokenizer_is_real_and_the_same_every_time() -> None:
    first = tokenizers.trained("trained:1024", "causal")
    tokenizers.train.cache_clear()
    again = tokenizers.trained("trained:1024", "causal")
    assert (
        first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str() and len(first) == 1024
    )
    text = "Q: 1,234 é漢 \n\tA: "
    ids = first(text)["input_ids"]
    assert ids[0] == first.bos_token_id and first.decode(ids[1:]) == text
    assert len(first("1234", add_special_tokens=False)["input_ids"]) == 4  # digits stand alone
    ended = tokenizers.trained("trained:1024", "seq2seq")("a")["input_ids"]
    assert ended[-1] == 1 and ended[0] not in (1, 3)
    for wrong in ("trained:many", "trained:100"):
        with pytest.raises(SourceError, match="expected trained:<tokens> with 512 tokens or more"):
            tokenizers.trained(wrong, "causal")


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_is_the_same_every_time_and_has_its_targets(name: str) -> None:
    settings = settings_of(name)
    assert models.open(settings).tokenizer.get_vocab()
    one, two = (models.open(settings).load(dtype=torch.float32, head_seed=seed) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    targets = models.target_layers(one, settings.targets, [])
    models.check_rank(targets, 8)
    assert len(targets) == (32 if name == "tiny-t5" else 14)


def test_attention_and_dtype_are_configured() -> None:
    settings = settings_of("tiny-llama", attention="eager", dtype="bfloat16")
    dtype = models.dtype_of(settings, "fp32", full=False)
    assert dtype == models.dtype_of(settings, "bf16", full=True) == torch.bfloat16
    model = models.open(settings).load(dtype=dtype, head_seed=0)
    assert model.config._attn_implementation == "eager"
    assert next(model.parameters()).dtype == torch.bfloat16
    # what asks for float32 gets it
    exact = models.open(settings).load(dtype=torch.float32, head_seed=0)
    assert next(exact.parameters()).dtype == torch.float32
    plain = settings_of("tiny-llama")
    assert (
        models.dtype_of(plain, "bf16", full=False) == torch.bfloat16
        and models.dtype_of(plain, "bf16", full=True) == torch.float32
    )


def test_a_tokenizer_without_a_pad_token_and_one_too_large(tmp_path: Path) -> None:
    tokenizer = tokenizers.trained("trained:1024", "causal")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        SourceError, match="no pad token; name one of its tokens, .*: 'model.pad_token=\"</s>\"'$"
    ):
        _ = models.open(settings_of("tiny-llama", tokenizer=str(tmp_path))).tokenizer
    with pytest.raises(
        SourceError, match="model.pad_token=<none>: not a token of tiny-llama's tokenizer"
    ):
        _ = models.open(
            settings_of("tiny-llama", tokenizer=str(tmp_path), pad_token="<none>")
        ).tokenizer
    assert (
        models.open(
            settings_of("tiny-llama", tokenizer=str(tmp_path), pad_token="</s>")
        ).tokenizer.pad_token_id
        == 1
    )
    larger = settings_of("tiny-llama", tokenizer="trained:2048")
    with pytest.raises(
        SourceError, match="its embedding has 1024 rows and its tokenizer makes ids up to 2047"
    ):
        _ = models.open(larger).tokenizer


@pytest.mark.parametrize(
    ("task", "model"), [("tweets", "tiny-t5"), ("gsm8k", "tiny-bert"), ("cola_t5", "tiny-llama")]
)
def test_a_task_for_another_kind_of_model_is_refused(task: str, model: str) -> None:
    with pytest.raises(
        config.ConfigError,
        match=f"task={task} is for models of kind .*, and model={model} is .*; choose model=",
    ):
        config.check(config.compose([f"task={task}", f"model={model}"]))


def text_run(model: str, data: Path, *overrides: str, out: Path):
    """A short run on GSM8K's layout, without a benchmark's generation."""
    common = [
        f"model={model}",
        "task=gsm8k",
        f"task.data_dir={data}",
        "task.limit_train=48",
        "task.limit_eval=1",
        "task.max_length=256",
    ]
    return run(
        *common,
        "train.batch_size=8",
        "init.samples=24",
        "init.batch_size=8",
        "rank=4",
        *overrides,
        out=out,
    )


@pytest.fixture
def no_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    from loraexp.scoring import harness

    monkeypatch.setattr(harness, "score", lambda *_, **__: {"accuracy": 0.0})


@pytest.mark.parametrize("model", ["tiny-t5", "tiny-llama"])
@pytest.mark.parametrize("init", INITS)
def test_every_initializer_works_on_the_layout(
    init: str, model: str, tmp_path: Path, no_benchmark: None
) -> None:
    """T5: tied embeddings, relative positions, cross-attention; LLaMA: grouped-query attention,
    gate, up, down."""
    outcome = text_run(
        model,
        write_gsm8k(tmp_path),
        f"init={init}",
        "train.max_steps=2",
        "train.eval_every=2",
        out=tmp_path / "out",
    )
    assert outcome.record["status"] == "finished"
    ledger = json.loads((outcome.folder / "init" / "ledger.json").read_text())
    assert len(ledger["layers"]) == (32 if model == "tiny-t5" else 14)
    assert ledger["loss"]["before"] > 0 and torch.isfinite(torch.tensor(ledger["loss"]["after"]))
    if init != "one_step":  # which trains nothing, so nothing is selected
        assert -10 < outcome.record["metrics"]["held_out"]["log_likelihood"] < 0
    assert outcome.record["metrics"]["gsm8k/lora_ga"] == {"accuracy": 0.0}


@pytest.mark.parametrize("model", TINY)
def test_a_saved_adapter_is_the_same_function_on_the_original_base(
    model: str, tmp_path: Path, no_benchmark: None, capsys
) -> None:
    outcome = text_run(
        model, write_gsm8k(tmp_path), "init=cg_lora", "train.max_steps=2", out=tmp_path / "out"
    )
    assert cli.main(["verify", str(outcome.folder)]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.rstrip().endswith("agree")


@pytest.mark.parametrize("model", ["tiny-t5", "tiny-llama"])
def test_a_start_along_the_gradient_descends(
    model: str, tmp_path: Path, no_benchmark: None
) -> None:
    """The loss on the calibration rows falls at step 0: gradients of masked, padded text rows are
    the loss's own."""
    overrides = ("init=lora_one", "init.batch_size=24", "init.mode=eval", "train.max_steps=0")
    outcome = text_run(model, write_gsm8k(tmp_path), *overrides, out=tmp_path / "out")
    loss = json.loads((outcome.folder / "init" / "ledger.json").read_text())["loss"]
    assert loss["after"] < loss["before"]


def test_one_run_is_scored_under_several_protocols(
    tmp_path: Path, no_benchmark: None, capsys, monkeypatch
) -> None:
    """`loraexp eval`: the record keeps the run's own numbers and says which protocol made which."""
    outcome = text_run(
        "tiny-llama", write_gsm8k(tmp_path), "train.max_steps=1", out=tmp_path / "out"
    )
    assert cli.main(["eval", str(outcome.folder), "task.protocol=lora_sb,lora_da"]) == 0, (
        capsys.readouterr().err
    )
    record = json.loads((outcome.folder / "record.json").read_text())
    assert record["metrics"] == outcome.record["metrics"] and set(record["metrics"]) == {
        "held_out",
        "gsm8k/lora_ga",
    }
    [again] = record["evaluations"]
    assert set(again["metrics"]) == {"gsm8k/lora_sb", "gsm8k/lora_da"} and again["protocol"] == [
        "lora_da",
        "lora_sb",
    ]
    assert again["overrides"] == ["task.protocol=lora_sb,lora_da"] and again["rows"]["gsm8k"] > 0
    assert "gsm8k/lora_da" in capsys.readouterr().out
    assert cli.main(["eval", str(outcome.folder), "rank=4"]) == 2
    assert "eval: rank=4: expected KEY=VALUE of task.protocol" in capsys.readouterr().err
    assert cli.main(["eval", str(outcome.folder), "task.protocol=best"]) == 2


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_a_run_generates_and_keeps_what_it_saw(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End to end, with the benchmark's own generation; short, because a model that knows nothing
    never ends."""
    from dataclasses import replace

    from loraexp.scoring import protocols

    short = replace(
        protocols.find("gsm8k", "lora_ga"), decoding=protocols.Decoding(max_new_tokens=4)
    )
    monkeypatch.setitem(protocols.PROTOCOLS, ("gsm8k", "lora_ga"), short)
    outcome = text_run(model, write_gsm8k(tmp_path), "train.max_steps=1", out=tmp_path / "out")
    assert outcome.record["metrics"]["gsm8k/lora_ga"] == {"accuracy": 0.0, "answered": 0.0}
    (line,) = (outcome.folder / "samples.jsonl").read_text().splitlines()
    sample = json.loads(line)
    assert (
        sample["prompt"].startswith("Q: test: Ann has")
        and sample["protocol"] == "gsm8k/lora_ga"
        and sample["right"] is False
    )
    assert (
        outcome.record["data"]["gsm8k"]["protocols"]["gsm8k/lora_ga"]["prompt"]
        == "Q: {question}\nA: "
    )


METAMATH = {
    "type": "GSM_Rephrased",
    "query": "What is {i}+1?",
    "response": "It is.\n#### {i}\nThe answer is: {i}",
    "original_question": "?",
}
CODE = {
    "query": "Write f{i}.",
    "answer": "Here:\n```python\ndef f(): return {i}\n```\nDone.",
    "resource": "x",
    "lang": "python",
}
EVERY = {
    "metamath": (
        METAMATH,
        ["task.protocol=lora_sb", "task.benchmarks=[gsm8k,math]"],
        {"gsm8k/lora_sb", "math/lora_sb"},
    ),
    "gsm8k": (
        None,
        ["task.protocol=[lora_ga,lora_one,lora_sb,lora_da,cot]"],
        {f"gsm8k/{p}" for p in ["lora_ga", "lora_one", "lora_sb", "lora_da", "cot"]},
    ),
    "code_feedback": (CODE, ["task.protocol=lora_one"], {"humaneval/lora_one"}),
    "alpaca": (None, [], {"mmlu/lora_one"}),
    "commonsense170k": (
        None,
        ["task.benchmarks=[boolq,hellaswag]"],
        {"boolq/llm_adapters", "hellaswag/llm_adapters", "average_of_2/llm_adapters"},
    ),
}
FOLDERS = {"gsm8k": "gsm8k", "alpaca": "alpaca", "commonsense170k": "commonsense"}


@pytest.mark.parametrize("task", EVERY)
def test_every_task_runs_from_real_rows_to_its_benchmarks(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real rows where they are at hand, rows in the hub's columns else; two tokens an answer,
    because the model knows nothing."""
    from dataclasses import replace

    from loraexp.scoring import protocols, sandbox

    if task == "code_feedback" and sandbox.problem():
        pytest.skip(sandbox.problem() or "")
    rows, overrides, expected = EVERY[task]
    real = shared_data()
    for key, found in list(protocols.PROTOCOLS.items()):
        if found.decoding is not None:
            monkeypatch.setitem(
                protocols.PROTOCOLS,
                key,
                replace(found, decoding=replace(found.decoding, max_new_tokens=2)),
            )
    data = real / FOLDERS[task] if task in FOLDERS else tmp_path
    if rows is not None:
        lines = [
            {key: value.replace("{i}", str(i)) for key, value in rows.items()} for i in range(40)
        ]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folders = (
        f"task.data_dir={data}",
        f"task.eval_data_dir={real}",
        "task.limit_train=16",
        "task.limit_eval=2",
    )
    common = (
        "model=tiny-llama",
        f"task={task}",
        *folders,
        "train.max_steps=1",
        "train.batch_size=4",
        "rank=4",
    )
    outcome = run(*common, *overrides, "task.max_length=1024", out=tmp_path / "out")
    assert set(outcome.record["metrics"]) == {"held_out", *expected}
    kept = [
        json.loads(line) for line in (outcome.folder / "samples.jsonl").read_text().splitlines()
    ]
    assert {sample["protocol"] for sample in kept} == {
        name for name in expected if not name.startswith("average")
    }


@pytest.mark.parametrize("protocol", ["cg_lora", "lora_ga"])
def test_glue_as_text_runs_from_real_rows(protocol: str, tmp_path: Path) -> None:
    common = (
        "task=cola_t5",
        "model=tiny-t5",
        f"task.data_dir={shared_data('glue')}",
        "task.limit_train=32",
        "task.limit_eval=16",
    )
    outcome = run(
        *common,
        f"task.protocol={protocol}",
        "train.max_steps=2",
        "init=cg_lora",
        "init.samples=16",
        "rank=4",
        out=tmp_path,
    )
    assert (
        set(outcome.record["metrics"]) == {"held_out", "dev"}
        and outcome.record["data"]["dev"]["protocol"] == protocol
    )


@pytest.mark.slow
def test_a_gguf_file_is_converted_once(tmp_path: Path) -> None:
    """The packaged model: plain float32 weights without an entry of their quantisation, and a
    tokenizer beside them."""
    from loraexp.machine.hub import resolve
    from loraexp.models.gguf import converted

    path = resolve(config.read_yaml("model", "smollm2-135m")["path"], key="model.path")
    assert isinstance(path, Path)
    folder = converted(path, kind="causal", root=tmp_path)
    said = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in said and said["dtype"] == "float32"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    converted.cache_clear()
    assert converted(path, kind="causal", root=tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    settings = settings_of("tiny-llama", path=str(folder), config=None, tokenizer=None)
    tokenizer, model = (
        models.open(settings).tokenizer,
        models.open(settings).load(dtype=torch.float32, head_seed=0),
    )
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-gemma"])
def test_the_vocabulary_is_multiplied_once_for_a_batch_of_several_rows(
    name: str, dtype: torch.dtype
) -> None:
    model = models.open(settings_of(name)).load(dtype=dtype, head_seed=0).requires_grad_(False)
    ids = torch.arange(3 * 9).view(3, 9) + 5
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        with Calls() as calls:
            kept = model(input_ids=ids, use_cache=False, logits_to_keep=4).logits
    # a product row by row copies the matrix of the vocabulary for each of them
    head = model.get_output_embeddings()
    assert head.weight.shape[0] == kept.shape[-1] and kept.shape[:2] == (3, 4)
    layers, eager = model.config.num_hidden_layers, model.config._attn_implementation == "eager"
    assert calls.names["mm"] + calls.names["addmm"] == 7 * layers + 1
    assert calls.names["bmm"] == (2 * layers if eager else 0)
    assert torch.allclose(kept, whole[:, -4:], rtol=2**-6, atol=2**-6)
