"""What the stand-in hub holds: a tiny model of every family and a few rows of every data set, in
the hub's own layout.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.hub_server import Files, Hub

CONF = Path(__file__).resolve().parents[2] / "conf"
WIDTH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
LLAMA = {"num_key_value_heads": 2, "max_position_embeddings": 2048}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
TOKENS = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": TOKENS | WIDTH | {"max_position_embeddings": 512},
    "roberta": TOKENS | WIDTH | {"max_position_embeddings": 514},
    "t5": TOKENS | T5,
    "llama": TOKENS | WIDTH | LLAMA,
}
KIND = {"bert": "encoder", "roberta": "encoder", "t5": "seq2seq", "llama": "causal"}
# Beside the weights that are read, a real repository has those of other libraries: nobody may fetch
# them.
UNREAD = {
    "README.md": b"---\nlicense: mit\n---\n",
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "pytorch_model.bin": b"pickle" * 100,
    "tf_model.h5": b"tensorflow" * 100,
    "flax_model.msgpack": b"flax" * 100,
    "rust_model.ot": b"rust" * 100,
    "onnx/model.onnx": b"onnx" * 100,
    "onnx/config.json": b"{}",
}
MODELS = {
    "FacebookAI/roberta-base": "roberta",
    "google-t5/t5-base": "t5",
    "meta-llama/Llama-2-7b-hf": "llama",
}


def config(group: str, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return loaded


def model_files(family: str, *, seed: int = 0, shards: bool = False, pickle: bool = False) -> dict[str, bytes]:
    """A checkpoint as the hub has it: weights as safetensors, in one file or in `shards`, or as a
    `pickle` alone.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from loraexp.models.tokenizer import trained

    classes: dict[str, Any] = {
        "encoder": AutoModel,
        "seq2seq": AutoModelForSeq2SeqLM,
        "causal": AutoModelForCausalLM,
    }
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = classes[KIND[family]].from_config(AutoConfig.for_model(family, **SHAPES[family]))
        model.save_pretrained(folder, **({"max_shard_size": "60KB"} if shards else {}))
        tokenizer = trained("trained:512", KIND[family])
        tokenizer.model_max_length = 512 if family != "llama" else 2048
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        if pickle:
            weights = io.BytesIO()
            torch.save(model.state_dict(), weights)
            files = {name: content for name, content in files.items() if not name.endswith(".safetensors")}
            return files | UNREAD | {"pytorch_model.bin": weights.getvalue()}
    return files | UNREAD


def parquet(columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any] | None = None) -> bytes:
    """A parquet file as `push_to_hub` writes it, its features in the schema."""
    import datasets

    content = io.BytesIO()
    datasets.Dataset.from_dict(dict(columns), features=datasets.Features(features) if features else None).to_parquet(content)
    return content.getvalue()


def card(configs: Mapping[str, Mapping[str, str]], **more: Any) -> bytes:
    """A README that says which files are which split of which configuration."""
    listed = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in splits.items()],
        }
        for name, splits in configs.items()
    ]
    return f"---\n{yaml.safe_dump({'configs': listed} | more)}---\n".encode()


def words(number: int) -> str:
    """A short text, another for every number."""
    subjects, verbs, things = (
        ("she", "the boy", "our friend", "nobody"),
        ("sold", "read", "drank", "saw"),
        ("two books", "it", "the pub dry", "48 clips"),
    )
    return f"{subjects[number % 4]} {verbs[number // 4 % 4]} {things[number // 16 % 4]} on day {number}"


# ------------------------------------------------------------------------------------------------
# classification

GLUE: dict[str, tuple[tuple[str, ...], list[str] | None]] = {
    "cola": (("sentence",), ["unacceptable", "acceptable"]),
    "sst2": (("sentence",), ["negative", "positive"]),
    "mrpc": (("sentence1", "sentence2"), ["not_equivalent", "equivalent"]),
    "qqp": (("question1", "question2"), ["not_duplicate", "duplicate"]),
    "stsb": (("sentence1", "sentence2"), None),
    "mnli": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
    "qnli": (("question", "sentence"), ["entailment", "not_entailment"]),
    "rte": (("sentence1", "sentence2"), ["entailment", "not_entailment"]),
}


def glue(rows: int = 96, shift: int = 0) -> dict[str, bytes]:
    """GLUE's repository: a folder of parquet files for each task, their splits named in the README."""
    import datasets

    files: dict[str, bytes] = {}
    configs: dict[str, dict[str, str]] = {}
    for task, (texts, names) in GLUE.items():
        splits = [
            "train",
            *(["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]),
        ]
        features = {text: datasets.Value("string") for text in texts}
        features |= {
            "label": datasets.ClassLabel(names=names) if names else datasets.Value("float32"),
            "idx": datasets.Value("int32"),
        }
        configs[task] = {split: f"{task}/{split}-*" for split in splits}
        for at, split in enumerate(splits):
            numbers = range(shift + 1000 * at, shift + 1000 * at + (rows if split == "train" else 24))
            columns: dict[str, list[Any]] = {text: [f"{words(n)} {side}" for n in numbers] for side, text in enumerate(texts)}
            columns["label"] = [n % len(names) if names else n % 26 / 5 for n in numbers]
            files[f"{task}/{split}-00000-of-00001.parquet"] = parquet(columns | {"idx": list(range(len(numbers)))}, features)
    return files | {"README.md": card(configs)}


# ------------------------------------------------------------------------------------------------
# generation


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def gsm8k_row(n: int) -> dict[str, str]:
    return {
        "question": f"{words(n)}. How many in {n} days?",
        "answer": f"It is {n}+{n} = <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}",
    }


def gsm8k() -> Files:
    tables = {split: [gsm8k_row(n) for n in numbers] for split, numbers in {"train": range(60), "test": range(500, 506)}.items()}
    files = {f"main/{split}-00000-of-00001.parquet": parquet(columns(rows)) for split, rows in tables.items()}
    return files | {"README.md": card({"main": {"train": "main/train-*", "test": "main/test-*"}})}


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def metamath() -> Files:
    """One JSON array; a blank `query`, of which the real set has four."""
    rows = [
        {
            "type": ("GSM_Rephrased", "MATH_AnsAug")[n % 3 == 2],
            "query": gsm8k_row(n)["question"],
            "original_question": words(n),
            "response": f"It is {2 * n}.\n#### {2 * n}\nThe answer is: {2 * n}",
        }
        for n in range(60)
    ]
    rows[7]["query"] = " "
    return {
        "MetaMathQA-395K.json": json.dumps(rows).encode(),
        "README.md": b"---\nlicense: mit\n---\n",
    }


def code_feedback() -> Files:
    """JSON lines; one `answer` is empty, as in the real set."""
    rows = [
        {
            "query": f"Write a function for what {words(n)}.",
            "answer": f"Here it is:\n```python\ndef f():\n    return {n}\n```\nIt returns {n}.",
            "resource": "evol",
            "lang": "python",
        }
        for n in range(60)
    ]
    rows[11]["answer"] = ""
    return {
        "CodeFeedback-Filtered-Instruction.jsonl": lines(rows),
        "README.md": b"---\nlicense: apache-2.0\n---\n",
    }


def alpaca() -> Files:
    rows = [
        {
            "instruction": f"Say {words(n)}.",
            "input": ("", words(n + 1))[n % 2],
            "output": words(n + 2),
        }
        for n in range(60)
    ]
    return {
        "alpaca_data_cleaned.json": json.dumps(rows, indent=4).encode(),
        "README.md": b"---\nlicense: cc-by-4.0\n---\n",
    }


def mmlu() -> Files:
    import datasets

    features = {
        "question": datasets.Value("string"),
        "subject": datasets.Value("string"),
        "choices": datasets.Sequence(datasets.Value("string")),
        "answer": datasets.ClassLabel(names=["A", "B", "C", "D"]),
    }
    files = {}
    for split, each in {"test": 3, "validation": 1, "dev": 5, "auxiliary_train": 2}.items():
        rows = [
            {
                "question": f"What did {words(n)} {split}?",
                "subject": subject,
                "choices": [words(n + k) for k in range(4)],
                "answer": n % 4,
            }
            for subject in ("anatomy", "virology")
            for n in range(each)
        ]
        files[f"all/{split}-00000-of-00001.parquet"] = parquet(columns(rows), features)
    return files | {"README.md": card({"all": {split: f"all/{split}-*" for split in ("auxiliary_train", "test", "validation", "dev")}})}


def math500() -> Files:
    rows = [
        {
            "problem": words(n),
            "solution": rf"So $\boxed{{{n}}}$.",
            "answer": str(n),
            "subject": "Algebra",
            "level": 1,
            "unique_id": f"test/{n}",
        }
        for n in range(6)
    ]
    return {"test.jsonl": lines(rows), "README.md": card({"default": {"test": "test.jsonl"}})}


def humaneval() -> Files:
    rows = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f'def f{n}():\n    """Return {n}."""\n',
            "canonical_solution": f"    return {n}\n",
            "test": f"def check(candidate):\n    assert candidate() == {n}\n",
            "entry_point": f"f{n}",
        }
        for n in range(3)
    ]
    path = "openai_humaneval/test-00000-of-00001.parquet"
    return {
        path: parquet(columns(rows)),
        "README.md": card({"openai_humaneval": {"test": "openai_humaneval/test-*"}}),
    }


# ------------------------------------------------------------------------------------------------
# commonsense


def commonsense170k() -> Files:
    ask = "Please answer the following question with true or false, question: did {}?\n\nAnswer format: true/false"
    rows = []
    for n in range(80):
        answer = ("true", "false")[n % 2]
        rows.append(
            {
                "instruction": ask.format(words(n)),
                "input": "",
                "output": f"the correct answer is {answer}",
                "answer": answer,
            }
        )
    return {
        "commonsense_170k.json": json.dumps(rows).encode(),
        "README.md": b"---\nlicense: mit\n---\n",
    }


def lettered(n: int, count: int = 4) -> dict[str, Any]:
    return {
        "text": [words(n + k) for k in range(count)],
        "label": ["A", "B", "C", "D", "E"][:count],
    }


def hellaswag_row(n: int) -> dict[str, Any]:
    context = {
        "ind": n,
        "activity_label": "Pole vault",
        "ctx_a": words(n),
        "ctx_b": "a few women",
        "ctx": f"{words(n)} a few women",
    }
    origin = {
        "source_id": f"activitynet~{n}",
        "split": "val",
        "split_type": "indomain",
        "label": str(n % 4),
    }
    return context | {"endings": [words(n + k) for k in range(4)]} | origin


# id → configuration, split, row
ORIGINALS: dict[str, tuple[str, str, Callable[[int], dict[str, Any]]]] = {
    "google/boolq": ("default", "validation", lambda n: {"question": f"did {words(n)}", "answer": n % 2 == 0, "passage": words(n + 1)}),
    "baber/piqa": ("default", "validation", lambda n: {"goal": words(n), "sol1": words(n + 1), "sol2": words(n + 2), "label": n % 2}),
    "lighteval/siqa": (
        "default", "validation",
        lambda n: {"context": words(n), "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": str(n % 3 + 1)},
    ),
    "Rowan/hellaswag": ("default", "validation", hellaswag_row),
    "allenai/winogrande": (
        "winogrande_xl", "validation",
        lambda n: {"sentence": f"{words(n)}, so _ won.", "option1": "Sarah", "option2": "Maria", "answer": str(n % 2 + 1)},
    ),
    "allenai/openbookqa": (
        "main", "test",
        lambda n: {"id": str(n), "question_stem": words(n), "choices": lettered(n), "answerKey": "ABCD"[n % 4]},
    ),
}  # fmt: skip


def original(config: str, split: str, row: Callable[[int], dict[str, Any]]) -> dict[str, bytes]:
    folder = "data" if config == "default" else config
    content = parquet(columns([row(n) for n in range(5)]))
    return {
        f"{folder}/{split}-00000-of-00001.parquet": content,
        "README.md": card({config: {split: f"{folder}/{split}-*"}}),
    }


def arc() -> Files:
    files, configs = {}, {}
    for name, count in {"ARC-Easy": 4, "ARC-Challenge": 5}.items():
        rows = [
            {
                "id": str(n),
                "question": words(n),
                "choices": lettered(n, count),
                "answerKey": "ABCD"[n % 4],
            }
            for n in range(5)
        ]
        files[f"{name}/test-00000-of-00001.parquet"] = parquet(columns(rows))
        configs[name] = {"test": f"{name}/test-*"}
    return files | {"README.md": card(configs)}


# ------------------------------------------------------------------------------------------------
# the whole hub


def pinned() -> dict[str, str | None]:
    """The commit of every data set that the tasks and benchmarks pin, by its id; None: the newest."""
    from loraexp.data import benchmarks

    tasks = [yaml.safe_load(path.read_text()) for path in (CONF / "task").glob("*.yaml")]
    found = {task["source"]: task["revision"] for task in tasks if task.get("source") and "revision" in task}
    found |= {benchmark.hub[0]: benchmark.hub[3] for benchmark in benchmarks.BENCHMARKS.values()}
    return found | {benchmarks.MMLU_HUB[0]: benchmarks.MMLU_HUB[2]}


def fill(hub: Hub) -> Hub:
    """Every model and data set that a yaml of the project names, under the commit that it pins."""
    for name in ("roberta-base", "t5-base", "llama-2-7b"):
        settings = config("model", name)
        family = MODELS[settings["path"]]
        files = model_files(family, shards=family == "llama")
        hub.repository(settings["path"], gated=family == "llama").add(files, commit=settings["revision"])
    hub.repository("acme/bert").add(model_files("bert"))
    hub.repository("acme/pickled").add(model_files("bert", pickle=True))
    makers: dict[str, Callable[[], Files]] = {
        "nyu-mll/glue": glue, "openai/gsm8k": gsm8k, "meta-math/MetaMathQA": metamath, "yahma/alpaca-cleaned": alpaca, "cais/mmlu": mmlu,
        "m-a-p/CodeFeedback-Filtered-Instruction": code_feedback, "HuggingFaceH4/MATH-500": math500, "openai/openai_humaneval": humaneval,
        "zwhe99/commonsense_170k": commonsense170k, "allenai/ai2_arc": arc,
    }  # fmt: skip
    makers |= {id: lambda made=made: original(*made) for id, made in ORIGINALS.items()}
    commits = pinned()
    for id, make in makers.items():
        hub.repository(id, "datasets").add(make(), commit=commits.get(id))
    return hub
