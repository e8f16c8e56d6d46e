"""How text is evaluated: by several processes together, within the model's window, again
afterwards, with what was skipped."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, multiprocessing

from loraexp import cli, config, models
from loraexp.machine.device import Runtime
from loraexp.machine.hub import SourceError
from loraexp.machine.processes import Processes
from loraexp.run import components
from loraexp.run.evaluate import evaluate
from loraexp.scoring import protocols
from tests.support.checkpoints import settings_of
from tests.support.glue import write_glue
from tests.support.helpers import shared_data
from tests.support.runs import run
from tests.support.text_data import write_commonsense, write_instructions
from tests.support.text_tasks import made, write_gsm8k

SHORT = ["lora_ga", "lora_ga_released", "cot"]  # greedy, sampled, lm-eval's own


def gsm8k(folder: Path, *overrides: str) -> list[str]:
    return [
        "task=gsm8k",
        "model=tiny-llama",
        f"task.data_dir={folder}",
        f"cache_root={folder / 'cache'}",
        *overrides,
    ]


# ---- several processes


class Some(Processes):
    """`world` processes that never meet."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world, self.averaged = rank, world, []


def evaluated(folder: Path, rank: int, world: int) -> dict[str, dict[str, float]]:
    """All splits, four tokens an answer; `samples.jsonl` in a folder of the world's size."""
    for name in SHORT:
        found = protocols.find("gsm8k", name)
        assert found.decoding is not None
        protocols.PROTOCOLS["gsm8k", name] = replace(
            found, decoding=replace(found.decoding, max_new_tokens=4)
        )
    given = gsm8k(
        folder, f"task.protocol=[{','.join(SHORT)}]", "task.held_out=6", "task.max_length=256"
    )
    settings, _ = config.check(config.compose(given))
    tokenizer = models.open(settings.model).tokenizer
    model = models.open(settings.model).load(dtype=torch.float32, head_seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that its answers are not all one token
    task = components.make_task(settings, tokenizer)
    runtime = Runtime(device=torch.device("cpu"), precision="fp32", processes=Some(rank, world))
    splits, place = ["held_out", *task.reports], folder / f"of{world}"
    return evaluate(model, task, splits, batch_size=2, runtime=runtime, folder=place)


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    Path(folder, f"rank{rank}.json").write_text(json.dumps(evaluated(Path(folder), rank, 2)))
    distributed.destroy_process_group()


def test_two_processes_share_the_questions_and_find_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gsm8k(tmp_path, tests=5)
    again = (tmp_path / "test.jsonl").read_text().splitlines()
    # repeated prompts, sampled anew
    (tmp_path / "test.jsonl").write_text("\n".join([*again, again[0], again[1]]) + "\n")
    for name in SHORT:
        monkeypatch.setitem(protocols.PROTOCOLS, ("gsm8k", name), protocols.find("gsm8k", name))
    alone = evaluated(tmp_path, 0, 1)
    multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    assert [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)] == [
        alone
    ] * 2
    samples = (tmp_path / "of1" / "samples.jsonl").read_text()
    assert (tmp_path / "of2" / "samples.jsonl").read_text() == samples
    sampled = [
        line
        for line in map(json.loads, samples.splitlines())
        if line["protocol"] == "gsm8k/lora_ga_released"
    ]
    assert (
        sampled[0]["prompt"] == sampled[5]["prompt"]
        and sampled[0]["output"] != sampled[5]["output"]
    )


# ---- the window


def test_a_prompt_beyond_the_window_is_cut_from_its_left_and_counted(tmp_path: Path) -> None:
    rows = [
        {"question": f"How many? {'And more? ' * n}", "answer": "One.\n#### 1"} for n in (1, 90, 2)
    ]
    (write_gsm8k(tmp_path) / "test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    small = gsm8k(tmp_path, "model.config.max_position_embeddings=640", "task.max_length=640")
    with pytest.warns(
        UserWarning, match="gsm8k/lora_ga: 1 of 3 prompts cut from the left to 128 tokens"
    ):
        task, _, tokenizer = made(*small, cache=tmp_path)
    assert task.usable == {"gsm8k/lora_ga": [0, 1, 2]}
    asked = [task.question("gsm8k/lora_ga", number).prompt for number in range(3)]
    assert asked[0] == "Q: How many? And more? \nA: " and asked[1].endswith(
        "And more? And more? \nA: "
    )
    assert asked[1].startswith(("And more? ", "more? And")) and "How many?" not in asked[1]
    lengths = [
        len(tokenizer(prompt)["input_ids"]) for prompt in (asked[1], f"And more? {asked[1]}")
    ]
    assert lengths[0] <= 128 < lengths[1]  # as long as it can be
    said = task.describe()["gsm8k"]
    assert (said["rows"], said["skipped"]) == (3, 0)
    assert [said["protocols"]["gsm8k/lora_ga"][name] for name in ("skipped", "cut")] == [0, 1]
    with pytest.raises(
        ValueError,
        match=(
            "task.max_length=641: the model's window is 640 tokens; set task.max_length to 640 or"
            " less"
        ),
    ):
        made(*small, "task.max_length=641", cache=tmp_path)
    narrow = gsm8k(tmp_path, "model.config.max_position_embeddings=512", "task.max_length=512")
    with pytest.raises(
        ValueError,
        match=(
            r"test.jsonl line 1: its last word alone has more than the 0 tokens that the window"
            r" leaves"
        ),
    ):
        made(*narrow, cache=tmp_path)


def test_lm_evals_own_prompts_lose_whole_examples(tmp_path: Path) -> None:
    common = gsm8k(write_gsm8k(tmp_path), "task.recipe=lora_ga", "task.protocol=cot")
    whole, _, _ = made(*common, cache=tmp_path)
    with pytest.warns(
        UserWarning, match="gsm8k/cot: 3 of 3 prompts cut from the left to 768 tokens"
    ):
        task, model, tokenizer = made(
            *common, "model.config.max_position_embeddings=1024", cache=tmp_path
        )
    full, cut = whole.prompts["gsm8k/cot"][0], task.shorter["gsm8k/cot"][0]
    assert full.count("Q: ") == 9 and 2 <= cut.count("Q: ") < 9
    assert full.endswith(cut) and cut.startswith("Q: ") and len(tokenizer(cut)["input_ids"]) <= 768
    runtime = Runtime(device=torch.device("cpu"), precision="fp32", processes=Processes("cpu"))
    task.evaluate(model, tokenizer, "gsm8k/cot", batch_size=3, runtime=runtime, folder=tmp_path)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in samples] == [
        task.shorter["gsm8k/cot"][number] for number in range(3)
    ]


def test_mmlu_keeps_its_header_and_loses_its_first_examples(tmp_path: Path) -> None:
    write_instructions(tmp_path)
    common = [
        "task=alpaca",
        "model=tiny-llama",
        f"task.data_dir={tmp_path}",
        f"cache_root={tmp_path / 'cache'}",
        "task.max_length=200",
    ]
    whole, _, _ = made(*common, cache=tmp_path)
    with pytest.warns(
        UserWarning, match="mmlu/lora_one: 12 of 12 prompts cut from the left to 199 tokens"
    ):
        task, _, _ = made(*common, "model.config.max_position_embeddings=200", cache=tmp_path)
    full, cut = (one.question("mmlu/lora_one", 0).prompt for one in (whole, task))
    header, _, examples = full.partition("\n\n")
    assert (
        cut.startswith(f"{header}\n\nanatomy: which is ")
        and 2 <= cut.count("Answer:") < full.count("Answer:") == 6
    )
    assert examples.endswith(cut.removeprefix(f"{header}\n\n"))


def test_an_average_says_over_how_many(tmp_path: Path) -> None:
    write_commonsense(tmp_path)
    common = ["task=commonsense170k", "model=tiny-llama", f"task.data_dir={tmp_path}"]
    assert made(*common, cache=tmp_path)[0].reports[-1] == "average/llm_adapters"
    for name in ("piqa", "hellaswag", "winogrande", "ARC-Easy", "openbookqa"):
        (tmp_path / "commonsense" / name / "test.json").unlink()
    task, _, _ = made(*common, cache=tmp_path)
    assert task.reports[-1] == "average_of_3/llm_adapters" and len(task.reports) == 4
    task.found = {
        f"{name}/llm_adapters": {"accuracy": value}
        for name, value in zip(task.questions, (0.2, 0.4, 0.9), strict=True)
    }
    assert task.evaluate(
        None,
        None,
        "average_of_3/llm_adapters",
        batch_size=1,
        runtime=None,
        folder=None,
    ) == {"accuracy": pytest.approx(0.5)}


def test_what_was_skipped_is_in_the_record_by_number(tmp_path: Path) -> None:
    for name, bad in (
        ("train", '{"question": "a"}\n{broken\n'),
        ("test", '{"question": "a", "answer": "none"}\n'),
    ):
        path = (
            write_gsm8k(tmp_path) / f"{name}.jsonl"
            if name == "train"
            else tmp_path / f"{name}.jsonl"
        )
        path.write_text(bad + path.read_text())
    task, _, _ = made(*gsm8k(tmp_path), "task.skip_bad=true", cache=tmp_path)
    said = task.describe()
    assert (said["train"]["skipped"], said["gsm8k"]["skipped"], said["gsm8k"]["rows"]) == (2, 1, 3)
    # a row is called by its place in the file
    assert task.questions["gsm8k"].places[0].endswith("test.jsonl line 2")


# ---- afterwards, elsewhere


@pytest.mark.parametrize(
    "given",
    [("task=tweets", "model=tiny-bert"), ("task=cola_t5", "model=tiny-t5", "task.limit_train=64")],
)
def test_a_run_that_trained_every_weight_is_scored_again(
    given: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its whole model is in `adapter/`, head included."""
    data = [f"task.data_dir={write_glue(tmp_path / 'glue')}"] if "task=cola_t5" in given else []
    common = (
        "method=full",
        "lr=1e-2",
        "train.max_steps=12",
        "train.select=last",
        "task.limit_eval=64",
    )
    outcome = run(*given, *data, *common, out=tmp_path / "out")
    measured = outcome.record["metrics"]["dev"]
    assert cli.main(["eval", str(outcome.folder)]) == 0, capsys.readouterr().err
    record = json.loads((outcome.folder / "record.json").read_text())
    assert record["metrics"]["dev"] == measured
    assert record["evaluations"][0]["metrics"]["dev"] == pytest.approx(measured)
    settings, _ = config.check(config.compose([*given, *data]))
    weights = (
        models.open(settings.model)
        .saved(outcome.folder / "adapter", dtype=torch.float32)
        .state_dict()
    )
    stored = load_file(outcome.folder / "adapter" / "model.safetensors")
    assert len(stored) > 20 and all(torch.equal(weights[name], x) for name, x in stored.items())


def test_vllm_is_refused_with_the_configuration_where_it_is_not_installed(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed")
    assert (
        cli.main(
            [
                *gsm8k(write_gsm8k(tmp_path)),
                "evaluate.backend=vllm",
                f"output_root={tmp_path / 'out'}",
            ]
        )
        == 2
    )
    assert (
        "evaluate.backend=vllm: vllm is not installed" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )


def test_another_gguf_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    pinned = config.read_yaml("model", "smollm2-135m")["sha256"]
    with pytest.raises(
        SourceError,
        match=(
            f"other.gguf has sha256 [0-9a-f]+, expected {pinned}: install the tested version again"
        ),
    ):
        _ = models.open(
            settings_of("tiny-llama", path=str(tmp_path / "other.gguf"), config=None, sha256=pinned)
        ).place


# ---- minutes


@pytest.mark.slow
def test_a_real_model_learns_real_gsm8k_and_is_scored_through_lm_eval(tmp_path: Path) -> None:
    """SmolLM2 on GSM8K's own files, from the gradient's statistics to the benchmark, by one
    command:

        loraexp model=smollm2-135m task=gsm8k task.data_dir=gsm8k init=cg_lora init.samples=16
            init.batch_size=4 lr=5e-4 \
            precision=bf16 train.max_steps=200 train.batch_size=4 train.eval_batch_size=16
                task.max_length=256 task.limit_eval=16
    """
    outcome = run(
        "~experiment",
        "model=smollm2-135m",
        "task=gsm8k",
        f"task.data_dir={shared_data('gsm8k')}",
        "init=cg_lora",
        "init.samples=16",
        "init.batch_size=4",
        "lr=5e-4",
        "precision=bf16",
        "train.max_steps=200",
        "train.batch_size=4",
        "train.eval_batch_size=16",
        "task.max_length=256",
        "task.limit_eval=16",
        out=tmp_path,
    )
    losses = [
        json.loads(line)["loss"]
        for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()
        if '"loss"' in line
    ]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert set(outcome.record["metrics"]["gsm8k/lora_ga"]) == {"accuracy", "answered"}
    # answers end in '#### NUMBER', as trained
    assert outcome.record["metrics"]["gsm8k/lora_ga"]["answered"] > 0.5
    assert len((outcome.folder / "samples.jsonl").read_text().splitlines()) == 16
