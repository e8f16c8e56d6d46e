"""Text tasks: rows of every layout, prompts, labels and masks, splits, losses, exact scores, and
the errors a user meets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loraexp import config, models
from loraexp.data import benchmarks, commonsense
from loraexp.data.layouts import BadRow
from loraexp.data.pairs import Pair
from loraexp.data.rows import Files, find
from loraexp.machine.hub import SourceError
from loraexp.run.batches import count_labels
from loraexp.tasks import recipes
from tests.support.glue import write_glue
from tests.support.helpers import shared_data
from tests.support.text_tasks import ROWS, made, settings_of_kind, toy, write_gsm8k

# ---- files


def rows_of(path: Path) -> list[Any]:
    return [row for _, row in Files((path,))]


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
def test_every_form_gives_the_same_rows_whatever_the_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    from loraexp.data import layouts

    monkeypatch.setattr(layouts, "CHUNK", chunk)
    rows = [{"q": f'a "{i}" \u2028 é, [x] {{y}}\n', "n": [i, {"k": None}]} for i in range(9)]
    (tmp_path / "a.json").write_text(
        "\n [" + ",\n".join(json.dumps(row, indent=2) for row in rows) + " ]\n"
    )
    (tmp_path / "a.jsonl").write_text(
        "\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    )
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert (
        rows_of(tmp_path / "a.json")
        == rows_of(tmp_path / "a.jsonl")
        == rows_of(tmp_path / "a.jsonl.gz")
        == rows
    )
    (tmp_path / "empty.json").write_text("[]")
    assert rows_of(tmp_path / "empty.json") == []


def test_a_broken_array_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": 2')
    with pytest.raises(
        ValueError, match=r"a.json row 2: not JSON .*; repair the file, which cannot be read on"
    ):
        rows_of(path)


def test_several_files_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("MetaMathQA-a.json", "MetaMathQA-b.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(SourceError, match="MetaMathQA-a.json, MetaMathQA-b.json are all there"):
        find(tmp_path, ["MetaMathQA.json", "MetaMathQA*.json"], key="task.data_dir", what="it")


# ---- prompts


def test_recipes_put_rows_as_the_papers_do() -> None:
    row = {
        "type": "GSM_Rephrased",
        "query": "What is 1+1?",
        "response": "1+1=2\n#### 2\nThe answer is: 2",
    }
    assert recipes.METAMATH["lora_ga"].pair(row) == Pair("Q: What is 1+1?\nA: ", "1+1=2\n#### 2")
    assert recipes.METAMATH["lora_da"] == recipes.METAMATH["lora_ga"]
    assert recipes.METAMATH["lora_ga"].pair({**row, "type": "MATH_FOBAR"}) is None
    everything = recipes.METAMATH["lora_one_whole"]
    assert (everything.below, everything.rows) == (512, None)
    assert everything.pair({**row, "type": "MATH_FOBAR"}) == Pair(
        "Q: What is 1+1?\nA: ", "1+1=2\n#### 2"
    )
    asked, said = recipes.METAMATH["lora_sb"].pair({**row, "type": "MATH_FOBAR"})  # type: ignore[misc]
    assert (
        asked.endswith("### Instruction:\nWhat is 1+1?\n\n### Response:")
        and said == row["response"]
    )
    code = {"query": "Write f.", "answer": "Here:\n```python\ndef f(): ...\n```\nIt does.\n```x```"}
    assert (
        recipes.CODE_FEEDBACK["lora_ga"].pair(code).response
        == "Here:\n```python\ndef f(): ...\n```"
    )  # type: ignore[union-attr]
    messages = {
        "messages": [
            {"role": "user", "content": "Write f."},
            {"role": "assistant", "content": code["answer"]},
            {"role": "user", "content": "?"},
        ]
    }
    assert recipes.CODE_FEEDBACK["lora_ga"].pair(messages) == recipes.CODE_FEEDBACK["lora_ga"].pair(
        code
    )
    assert recipes.CODE_FEEDBACK["lora_ga"].pair({"query": "Why?", "answer": "No code."}) is None
    given = recipes.ALPACA["lora_one"].pair({"instruction": "Do", "input": "x", "output": "y"})
    assert "### Input:\nx\n\n### Response:" in given.prompt and given.response == "y"  # type: ignore[union-attr]
    bare = recipes.ALPACA["lora_one"].pair({"instruction": "Do", "input": "", "output": "y"})
    assert "### Input" not in bare.prompt  # type: ignore[union-attr]
    for row in (
        {"instruction": "Do", "input": None, "output": "y"},
        {"instruction": "Do", "output": "y"},
    ):
        assert recipes.ALPACA["lora_one"].pair(row) == bare


# AGI-Edgerunners/LLM-Adapters@8166572:finetune.py:337, CERT-Lab/lora-sb@4feb81c:utils/data_utils.py
TRAINED = {
    "llm_adapters": (
        "Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.  \n\n                ### Instruction:\n                True?\n"
        "                \n                ### Response:\n                "
    ),
    "lora_sb": """Below is an instruction that describes a task. Write a response that \
appropriately completes the request.

            ### Instruction:
            True?

            ### Response:
            """,
    "lora_one": """Below is an instruction that describes a task. Write a response that \
appropriately completes the request.

### Instruction:
True?

### Response:
""",
}


@pytest.mark.parametrize("name", TRAINED)
def test_commonsense_is_put_as_released(name: str) -> None:
    pair = recipes.COMMONSENSE[name].pair(
        {
            "instruction": "True?",
            "input": "",
            "output": "the correct answer is true",
            "answer": "true",
        }
    )
    assert pair is not None and pair.prompt == TRAINED[name]
    assert recipes.COMMONSENSE[name].learn_prompt == (name == "llm_adapters")


@pytest.mark.parametrize(
    ("benchmark", "name"),
    [("gsm8k", "lora_ga"), ("gsm8k", "lora_one"), ("boolq", "llm_adapters"), ("boolq", "lora_one")],
)
def test_a_model_is_asked_as_it_was_trained(benchmark: str, name: str) -> None:
    from loraexp.scoring import protocols

    if benchmark == "gsm8k":
        row, recipe = {"question": "Why?", "answer": "x\n#### 1"}, recipes.GSM8K[name]
    else:
        row, recipe = (
            {"instruction": "Why?", "output": "the correct answer is true"},
            recipes.COMMONSENSE[name],
        )
    trained, asked = recipe.pair(row).prompt, protocols.find(benchmark, name).ask(**row)  # type: ignore[union-attr]
    if name == "llm_adapters":  # its two files differ in spaces
        assert trained.split() == asked.split() and trained != asked
    else:
        assert trained == asked


# ---- tokens and labels


@pytest.mark.parametrize(
    ("kind", "learn"), [("causal", False), ("causal", True), ("seq2seq", False)]
)
def test_labels_are_the_answer_and_its_end(kind: str, learn: bool, tmp_path: Path) -> None:
    task, tokenizer = toy(tmp_path, kind, ROWS, learn_prompt=learn)
    batch = task.collate(task.splits["train"], np.arange(3))
    model = models.open(settings_of_kind(kind)).load(dtype=torch.float32, head_seed=0)
    # the loop divides by what the loss sums
    assert task.loss_sum(model, batch)[1] == count_labels(batch)
    for i, row in enumerate(ROWS):
        labels = batch["labels"][i]
        told = tokenizer.decode(labels[labels != -100])
        assert told == (row["p"] if learn else "") + row["r"] + "</s>"
        ids = batch["input_ids"][i][batch["attention_mask"][i] == 1]
        if kind == "causal":
            assert (
                tokenizer.decode(ids) == "<s>" + row["p"] + row["r"] + "</s>" and labels[0] == -100
            )
            assert (
                ids.tolist()[: len(tokenizer(row["p"])["input_ids"])]
                == tokenizer(row["p"])["input_ids"]
            )
        else:
            assert tokenizer.decode(ids) == row["p"] + "</s>"


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_rows_of_a_batch_do_not_see_each_other(kind: str, tmp_path: Path) -> None:
    """Losses, outputs and gradients of a padded batch are those of its rows alone, summed; and of
    transformers' own loss."""
    task, _ = toy(tmp_path, kind, ROWS)
    model = models.open(settings_of_kind(kind)).load(dtype=torch.float64, head_seed=0)
    examples = task.splits["train"]
    whole, alone = (
        task.collate(examples, np.arange(3)),
        [task.collate(examples, [i]) for i in range(3)],
    )
    loss, count = task.loss_sum(model, whole)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    single = [task.loss_sum(model, batch) for batch in alone]
    summed = torch.autograd.grad(sum(part for part, _ in single), list(model.parameters()))
    assert count == sum(n for _, n in single)
    torch.testing.assert_close(gradients, summed, rtol=1e-8, atol=1e-10)
    own = torch.stack([part / n for part, n in single])
    torch.testing.assert_close(task.sample_losses(model, whole), own)
    torch.testing.assert_close(own[1], model(**alone[1]).loss.double(), rtol=1e-6, atol=0)
    outputs = task.outputs(model, whole)
    for i, batch in enumerate(alone):
        found = task.outputs(model, batch)[0]
        torch.testing.assert_close(outputs[i, : len(found)], found)
        assert not outputs[i, len(found) :].any()


def test_probes_of_a_row_do_not_depend_on_its_batch(tmp_path: Path) -> None:
    from loraexp.statistics.probes import Pass, draw

    for kind in ("probe", "theta"):
        wide = draw(torch.zeros(3, 9, 33), Pass(kind), 0, 0, normal=kind == "theta")  # type: ignore[arg-type]
        narrow = draw(torch.zeros(2, 4, 33), Pass(kind), 0, 1, normal=kind == "theta")  # type: ignore[arg-type]
        assert torch.equal(wide[1:, :4], narrow)


def test_what_is_too_long_is_cut_or_left_out_and_counted(tmp_path: Path) -> None:
    long = {"p": "Q: a", "r": "x " * 200}
    task, tokenizer = toy(tmp_path, "causal", [*ROWS, long], max_length=32)
    examples = task.splits["train"]
    assert examples.lengths.max() == 32 and examples.notes == ("1 responses cut at 32 tokens",)
    assert examples.tokens[examples.ends[3] - 1] != tokenizer.eos_token_id  # what is cut has no end
    assert task.describe()["train"]["cut"] == 1 and task.describe()["train"]["left_out"] == 0
    task, _ = toy(tmp_path, "causal", [*ROWS, long], below=64)
    assert len(task.splits["train"]) == 3 and task.splits["train"].notes == (
        "1 rows of 64 tokens or more left out",
    )
    task, _ = toy(tmp_path, "causal", ROWS, rows=2)
    assert len(task.splits["train"]) == 2
    far = {"p": "Q: " + "é漢" * 26, "r": "y"}
    task, _ = toy(tmp_path, "causal", [*ROWS, far], max_length=32)
    assert len(task.splits["train"]) == 3
    assert task.splits["train"].notes == (
        "1 rows left out: their prompt leaves no room in 32 tokens",
    )
    assert task.describe()["train"]["left_out"] == 1
    task, tokenizer = toy(
        tmp_path, "causal", [*ROWS, far], max_length=32, long="cut", learn_prompt=True
    )
    examples = task.splits["train"]
    assert examples.lengths[3] == examples.prompts[3] == 32 and examples.notes == (
        "1 prompts cut at 32 tokens",
    )
    whole = tokenizer(far["p"])["input_ids"]
    assert examples.tokens[examples.starts[3] :].tolist() == whole[:32]
    assert task.collate(examples, [3])["labels"][0].tolist() == [-100, *whole[1:32]]
    task, tokenizer = toy(
        tmp_path, "seq2seq", [{"p": "a " * 99, "r": "y"}], max_length=16, long="cut_prompt"
    )
    ids = task.collate(task.splits["train"], [0])["input_ids"][0]
    assert (
        len(ids) == 16
        and ids[-1] == 1
        and task.splits["train"].notes == ("1 prompts cut at 16 tokens",)
    )


@pytest.mark.parametrize(
    ("recipe", "rows", "said"),
    [
        ("llm_adapters", 20, "1 prompts cut at 160 tokens"),
        ("lora_sb", 19, "1 rows left out: their prompt leaves no room in 160 tokens"),
    ],
)
def test_a_commonsense_row_beyond_the_window_does_not_end_the_run(
    recipe: str, rows: int, said: str, tmp_path: Path
) -> None:
    """As a real row of 520 tokens did at a length of 512; the record counts it."""
    short = [
        {
            "instruction": f"Is {i} even?",
            "input": "",
            "output": "the correct answer is true",
            "answer": "true",
        }
        for i in range(20)
    ]
    (tmp_path / "boolq").mkdir()
    for name, content in (
        ("train", [*short[:19], {**short[19], "instruction": "so " * 300}]),
        ("test", short[:2]),
    ):
        (tmp_path / "boolq" / f"{name}.json").write_text(json.dumps(content))
    given = (
        f"task.data_dir={tmp_path}",
        "task.held_out=0",
        "task.max_length=160",
        "task.benchmarks=[boolq]",
        "task.average=false",
    )
    task, _, _ = made(
        "task=commonsense170k", "model=tiny-llama", f"task.recipe={recipe}", *given, cache=tmp_path
    )
    train = task.describe()["train"]
    assert (
        train["rows"] == rows and said in train["notes"] and train["cut"] + train["left_out"] == 1
    )


def test_tokens_are_made_once_and_mapped(tmp_path: Path) -> None:
    first, _ = toy(tmp_path, "causal", ROWS)
    entries = list((tmp_path / "cache" / "tokens").iterdir())
    again, _ = toy(tmp_path, "causal", ROWS)
    assert list((tmp_path / "cache" / "tokens").iterdir()) == entries
    assert not again.splits["train"].tokens.flags.owndata
    assert again.splits["train"].fingerprint == first.splits["train"].fingerprint
    toy(tmp_path, "causal", ROWS, max_length=40)
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2


# ---- errors


@pytest.mark.parametrize("blank", ["", " \n", None])
def test_a_training_row_without_text_is_skipped_and_counted(blank: Any, tmp_path: Path) -> None:
    """Public sets are known to have a few; a benchmark's row without text still stops, whatever it
    is scored by."""
    write_gsm8k(tmp_path)
    train = tmp_path / "train.jsonl"
    train.write_text(train.read_text() + json.dumps({"question": "a", "answer": blank}) + "\n")
    common = ("task=gsm8k", "model=tiny-llama", f"task.data_dir={tmp_path}")
    task, _, _ = made(*common, cache=tmp_path)
    described = task.describe()["train"]
    assert (
        "1 rows without a prompt or an answer skipped" in described["notes"]
        and described["skipped"] == 1
    )
    test = tmp_path / "test.jsonl"
    test.write_text(test.read_text() + json.dumps({"question": "a", "answer": blank}) + "\n")
    with pytest.raises(
        ValueError,
        match=(
            "test.jsonl line .*: column 'answer' is empty, expected text; repair the row, or set"
            " task.skip"
        ),
    ):
        made(*common, cache=tmp_path)


BAD = [
    ({"question": "a"}, "no column 'answer'; its columns are question"),
    ({"question": "a", "answer": "no number"}, "column 'answer' does not end in '#### NUMBER'"),
    ({"question": 3, "answer": "#### 1"}, "column 'question' holds int, expected text"),
    (
        "{broken",
        (
            "not JSON (Expecting property name enclosed in double quotes at column 2), expected one"
            " object a line"
        ),
    ),
]


@pytest.mark.parametrize(("row", "found"), BAD, ids=[found[:20] for _, found in BAD])
def test_a_bad_row_names_file_row_and_fix(row: Any, found: str, tmp_path: Path) -> None:
    write_gsm8k(tmp_path)
    train = tmp_path / "train.jsonl"
    train.write_text(train.read_text() + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    common = ("task=gsm8k", "model=tiny-llama", f"task.data_dir={tmp_path}")
    with pytest.raises(ValueError) as caught:
        made(*common, cache=tmp_path)
    assert (
        str(caught.value)
        == f"{train} line 65: {found}; repair the row, or set task.skip_bad=true to skip and count"
        " such rows"
    )
    task, _, _ = made(*common, "task.skip_bad=true", cache=tmp_path)
    assert "1 malformed rows skipped" in task.describe()["train"]["notes"]


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"{i}?",
            "input": "",
            "output": "the correct answer is true",
            "answer": "true" if i else "maybe",
        }
        for i in range(20)
    ]
    (tmp_path / "boolq").mkdir()
    for name in ("train", "test"):
        (tmp_path / "boolq" / f"{name}.json").write_text(json.dumps(rows))
    with pytest.raises(
        ValueError,
        match=(
            r"boolq/test.json row 1: column 'answer' holds 'maybe', expected one of true, false,"
            r" solution1"
        ),
    ):
        made(
            "task=commonsense170k", "model=tiny-llama", f"task.data_dir={tmp_path}", cache=tmp_path
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task.protocol=best"],
            (
                "task.protocol=best: nothing is trained by it alone; set task.recipe to one of"
                " lora_ga, lora_one, lora_sb, lora_da"
            ),
        ),
        (["task.protocol=best", "task.recipe=lora_ga"], "task.protocol=best: expected one of cot"),
        (["task.recipe=mine"], "task.recipe=mine: expected one of lora_ga"),
        (
            ["task.benchmarks=[]", "task.protocol=best", "task.recipe=lora_ga"],
            "task.protocol=best: expected one of ",
        ),
        (["task.benchmarks=[arithmetic]"], "benchmark arithmetic: there is none of this name"),
        (
            ["task.data_dir=/nowhere"],
            "task.data_dir=/nowhere: none of train.jsonl, gsm8k/train.jsonl is there",
        ),
    ],
)
def test_a_wrong_name_is_one_line(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        made(
            "task=gsm8k",
            "model=tiny-llama",
            f"task.data_dir={write_gsm8k(tmp_path)}",
            *overrides,
            cache=tmp_path,
        )
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# ---- splits


def test_held_out_rows_leave_train_and_select(tmp_path: Path) -> None:
    common = ("task=gsm8k", "model=tiny-llama", f"task.data_dir={write_gsm8k(tmp_path)}")
    task, _, _ = made(*common, "task.protocol=[lora_ga,lora_sb]", cache=tmp_path)
    assert (len(task.splits["train"]), len(task.splits["held_out"])) == (58, 6)
    assert task.selection == "held_out" and task.reports == ("gsm8k/lora_ga", "gsm8k/lora_sb")
    assert not set(task.splits["train"].digests[:, 0]) & set(task.splits["held_out"].digests[:, 0])
    smaller, _, _ = made(*common, "task.limit_train=10", cache=tmp_path)
    assert set(smaller.splits["train"].digests[:, 0]) < set(task.splits["train"].digests[:, 0])
    paper, _, _ = made(*common, "task.held_out=0", cache=tmp_path)
    assert paper.selection is None and len(paper.splits["train"]) == 64
    described = task.describe()
    assert described["train"]["recipe"] == "lora_ga" and described["gsm8k"]["rows"] == 3
    assert set(described["gsm8k"]["protocols"]) == {"gsm8k/lora_ga", "gsm8k/lora_sb"}


def test_held_out_rows_alone_may_be_scored(tmp_path: Path) -> None:
    common = ("task=gsm8k", "model=tiny-llama", f"task.data_dir={write_gsm8k(tmp_path)}")
    task, _, _ = made(*common, "task.benchmarks=[]", cache=tmp_path)
    assert task.selection == "held_out" and task.reports == ()
    assert set(task.splits) == {"train", "held_out"}


# ---- GLUE as text


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"])
def test_every_glue_task_as_text(name: str, tmp_path: Path) -> None:
    common = (
        f"task={name}_t5",
        "model=tiny-t5",
        f"task.data_dir={write_glue(tmp_path / 'glue')}",
        "task.selection=paper",
    )
    task, model, tokenizer = made(*common, "task.protocol=cg_lora", cache=tmp_path)
    encoder, _ = config.check(
        config.compose([f"task={name}", f"task.data_dir={tmp_path / 'glue'}"])
    )
    labels = task.splits["train"].labels[:3].tolist()
    assert labels == (
        [0.25, 1.25, 2.25] if name == "stsb" else [i % len(task.label_names) for i in range(3)]
    )
    batch = task.collate(task.splits["train"], np.arange(4))
    shown = tokenizer.decode(batch["labels"][1][batch["labels"][1] != -100])
    assert shown == ("1.2" if name == "stsb" else task.label_names[1]) + "</s>"
    assert task.scores(model, batch).shape == (4, 26 if name == "stsb" else len(task.label_names))
    assert encoder.task["metrics"] == list(task.metrics)


def test_class_probabilities_are_those_of_whole_names(tmp_path: Path) -> None:
    common = ("task=cola_t5", "model=tiny-t5", f"task.data_dir={write_glue(tmp_path / 'glue')}")
    task, model, tokenizer = made(*common, "task.protocol=cg_lora", cache=tmp_path)
    batch = task.collate(task.splits["train"], np.arange(5))
    scores = task.scores(model, batch)
    for column, name in enumerate(task.label_names):
        labels = torch.tensor([[*tokenizer(name, add_special_tokens=False)["input_ids"], 1]])
        for row in range(5):
            ids = batch["input_ids"][row : row + 1, : int(batch["attention_mask"][row].sum())]
            total = -model(input_ids=ids, labels=labels).loss * labels.shape[1]
            torch.testing.assert_close(scores[row, column], total, rtol=1e-5, atol=1e-4)
    first, _, _ = made(*common, "task.protocol=lora_ga", cache=tmp_path)
    batch = first.collate(first.splits["train"], np.arange(5))
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=torch.zeros(5, 1, dtype=torch.long),
    ).logits
    ids = [tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in first.label_names]
    torch.testing.assert_close(first.scores(model, batch), logits[:, 0, ids])
    assert tokenizer.decode(batch["input_ids"][0]).startswith(
        "classify the grammaticality of the text: "
    )


@pytest.mark.parametrize("protocol", ["cg_lora", "lora_ga"])
def test_a_causal_model_scores_names_as_their_own_likelihood(protocol: str, tmp_path: Path) -> None:
    given = (
        "task=cola",
        "model=tiny-llama",
        f"task.data_dir={write_glue(tmp_path / 'glue')}",
        f"task.protocol={protocol}",
    )
    task, model, tokenizer = made(*given, cache=tmp_path)
    batch = task.collate(task.splits["train"], np.arange(5))
    scores = task.scores(model, batch)
    for row in range(5):
        prompt = batch["input_ids"][row][
            (batch["labels"][row] == -100) & (batch["attention_mask"][row] == 1)
        ]
        for column, name in enumerate(task.label_names):
            word = torch.tensor(
                [*tokenizer(name, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            )
            logs = model(input_ids=torch.cat([prompt, word])[None]).logits[0].log_softmax(dim=1)
            each = logs[torch.arange(len(word)) + len(prompt) - 1, word]
            if protocol == "cg_lora":
                torch.testing.assert_close(scores[row, column], each.sum(), rtol=1e-5, atol=1e-4)
            else:
                torch.testing.assert_close(
                    scores[row].log_softmax(0)[column] - scores[row].log_softmax(0)[0],
                    each[0] - logs[len(prompt) - 1, task.names[0, 0]],
                    rtol=1e-5,
                    atol=1e-4,
                )


@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb", "mnli"])
def test_a_glue_task_takes_the_form_of_the_models_kind(name: str, tmp_path: Path) -> None:
    folder = f"task.data_dir={write_glue(tmp_path / 'glue')}"
    task, model, _ = made(
        f"task={name}", "model=tiny-t5", folder, "task.protocol=paper", cache=tmp_path
    )
    known, _, _ = made(
        f"task={name}_t5", "model=tiny-t5", folder, "task.selection=paper", cache=tmp_path
    )
    assert (
        task.selection == task.reports[0] == known.selection
        and task.label_names == known.label_names
    )
    assert task.splits["train"].fingerprint == known.splits["train"].fingerprint
    assert task.scoring == known.scoring and task.num_labels is None
    batch = task.collate(task.splits["train"], np.arange(3))
    torch.testing.assert_close(task.scores(model, batch), known.scores(model, batch))
    encoder, _, _ = made(
        f"task={name}", "model=tiny-bert", folder, "task.protocol=paper", cache=tmp_path
    )
    assert encoder.num_labels == len(encoder.label_names)


def test_a_papers_prompt_needs_a_model_of_text(tmp_path: Path) -> None:
    folder = f"task.data_dir={write_glue(tmp_path / 'glue')}"
    with pytest.raises(ValueError, match="^task.protocol=cg_lora: expected held_out or paper$"):
        made("task=cola", "model=tiny-bert", folder, "task.protocol=cg_lora", cache=tmp_path)


@pytest.mark.parametrize(
    ("name", "protocol", "scoring"),
    [
        ("cola", "lora_ga", "first_token"),
        ("mrpc", "lora_one", "first_token"),
        ("mnli", "lora_ga", "exact"),
        ("qnli", "lora_ga", "exact"),
        ("cola", "exact", "exact"),
        ("sst2", "restricted", "first_token"),
        ("sst2", "lora_one", "exact"),
        ("sst2", "cg_lora", "class_probability"),
    ],
)
def test_glue_by_text_is_scored_as_its_paper_does(
    name: str, protocol: str, scoring: str, tmp_path: Path
) -> None:
    common = (
        f"task={name}_t5",
        "model=tiny-t5",
        f"task.data_dir={write_glue(tmp_path / 'glue')}",
        "task.selection=paper",
    )
    task, _, _ = made(*common, f"task.protocol={protocol}", cache=tmp_path)
    said = next(iter(task.describe().values()))
    assert (task.scoring, said["protocol"], said["scoring"]) == (scoring, protocol, scoring)


@pytest.mark.parametrize("kind", ["tiny-t5", "tiny-llama"])
def test_an_exact_match_is_what_the_model_would_write(kind: str, tmp_path: Path) -> None:
    """A model half way to its task writes names, and other texts, which are wrong; restricted to
    the names it writes none of these."""
    from loraexp.scoring.generate import generate

    common = ("task=cola", f"model={kind}", f"task.data_dir={write_glue(tmp_path / 'glue')}")
    task, model, tokenizer = made(*common, "task.protocol=exact", cache=tmp_path)
    examples, rows = task.splits["dev"], np.arange(12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    written: list[str] = []
    for _ in range(30):
        for _ in range(3):
            loss, _ = task.loss_sum(model, task.collate(task.splits["train"], np.arange(8)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        starts, lengths = examples.starts[rows], examples.prompts[rows]
        prompts = [
            tokenizer.decode(examples.tokens[a : a + n], skip_special_tokens=True)
            for a, n in zip(starts, lengths, strict=True)
        ]
        written = [
            texts[0]
            for texts in generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=12)
        ]
        if any(text in task.label_names for text in written):
            break
    scores = task.scores(model.eval(), task.collate(examples, rows)).detach().numpy()
    found = task.compute_metrics(scores, examples.labels[rows])
    truth = [task.label_names[int(label)] for label in examples.labels[rows]]
    assert any(text in task.label_names for text in written)
    assert found["accuracy"] == pytest.approx(
        np.mean([a == b for a, b in zip(written, truth, strict=True)])
    )
    assert [
        task.label_names[k] if row.any() else None
        for k, row in zip(scores[:, 2:].argmax(1), scores[:, 2:], strict=True)
    ] == [text if text in task.label_names else None for text in written]


def test_names_with_one_first_token_need_whole_names(tmp_path: Path) -> None:
    message = (
        "begin with the same token, so the first token cannot tell them apart; set"
        " task.protocol=cg_lora"
    )
    with pytest.raises(ValueError, match=message):
        made(
            "task=stsb_t5",
            "model=tiny-t5",
            f"task.data_dir={write_glue(tmp_path / 'glue')}",
            "task.protocol=restricted",
            cache=tmp_path,
        )
    with pytest.raises(ValueError, match="a score has no exact match; set task.protocol=cg_lora"):
        made(
            "task=stsb_t5",
            "model=tiny-t5",
            f"task.data_dir={tmp_path / 'glue'}",
            "task.protocol=lora_ga",
            cache=tmp_path,
        )


# ---- real files


def test_real_gsm8k_as_published(tmp_path: Path) -> None:
    task, _, tokenizer = made(
        "task=gsm8k", "model=tiny-llama", f"task.data_dir={shared_data('gsm8k')}", cache=tmp_path
    )
    assert (
        len(task.splits["train"]) + len(task.splits["held_out"]) == 7473
        and len(task.questions["gsm8k"].rows) == 1319
    )
    first = task.splits["train"].tokens[: task.splits["train"].ends[0]]
    assert tokenizer.decode(first).startswith(
        "<s>Q: Natalia sold clips to 48"
    ) and tokenizer.decode(first).endswith("#### 72</s>")


def test_real_test_sets_have_their_published_rows() -> None:
    root = shared_data()
    counts = {
        "boolq": 3270,
        "piqa": 1838,
        "social_i_qa": 1954,
        "hellaswag": 1000,
        "winogrande": 1267,
    }
    counts |= {
        "ARC-Easy": 2376,
        "ARC-Challenge": 1172,
        "openbookqa": 500,
        "gsm8k": 1319,
        "math": 500,
        "humaneval": 164,
        "mmlu": 14042,
    }
    found, notes = benchmarks.read(
        list(counts), directory=str(root), key="task.eval_data_dir", limit=None, skip_bad=False
    )
    assert {
        name: len(questions.rows) for name, questions in found.items()
    } == counts and notes == ()
    assert found["hellaswag"].rows[0]["answer"] == "ending4"
    assert len(found["mmlu"].rows[0]["shots"]) == 5


def test_missing_benchmarks_are_named(tmp_path: Path) -> None:
    write_gsm8k(tmp_path)
    found, notes = benchmarks.read(
        ["gsm8k", "math"], directory=str(tmp_path), key="k", limit=2, skip_bad=False
    )
    assert list(found) == ["gsm8k"] and len(found["gsm8k"].rows) == 2
    assert notes == (f"not reported, because not in {tmp_path}: math",)


def test_a_row_of_hellaswags_own_layout() -> None:
    row = {"activity_label": "Skiing", "ctx": "He", "endings": ["a", "b", "c", "d"], "label": 2}
    made_row = commonsense.hellaswag(row)
    assert made_row["answer"] == "ending3"
    assert made_row["instruction"].endswith(
        "Ending1: a Ending2: b Ending3: c Ending4: d\n\nAnswer format:"
        " ending1/ending2/ending3/ending4"
    )
    with pytest.raises(BadRow, match="expected four texts"):
        commonsense.hellaswag({**row, "endings": ["a"]})
