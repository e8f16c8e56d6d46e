"""A prompt has the same tokens in training and in generation, for every family of tokenizers and
every protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraexp import config, models
from loraexp.data.pairs import Pair, Reading, encode_pairs
from loraexp.data.rows import Files
from loraexp.models.tokenizer import trained
from loraexp.scoring.prompts import encode_prompts
from loraexp.scoring.protocols import PROTOCOLS
from tests.support.checkpoints import settings_of

FIELDS = {
    name: f"Is it {name}, é or 漢?"
    for name in ("question", "instruction", "prompt", "shots", "A", "B", "C", "D")
}


def prompts() -> list[str]:
    return sorted({protocol.ask(**FIELDS) for protocol in PROTOCOLS.values() if protocol.prompt})


def saved(folder: Path, begin: bool, end: bool, layout: str) -> Path:
    """A tokenizer of a causal model in a folder, as GPT-2 (neither), LLaMA (begin), with
    `add_eos_token` (both) are saved."""
    from tokenizers import processors

    tokenizer = trained("trained:1024", "causal")
    around = (
        f"{'<s> ' * begin}$A{' </s>' * end}",
        f"{'<s> ' * begin}$A{' </s>' * end} {'<s>:1 ' * begin}$B:1{' </s>:1' * end}",
    )
    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    template = processors.TemplateProcessing(
        single=around[0], pair=around[1], special_tokens=special
    )
    whole = [processors.ByteLevel(trim_offsets=False), template]  # LLaMA 3's and Qwen's
    tokenizer.backend_tokenizer.post_processor = (
        processors.Sequence(whole) if layout == "sequence" else template
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", ["template", "sequence"])
@pytest.mark.parametrize(
    ("begin", "end"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_training_and_generation_read_the_same_tokens(
    tmp_path: Path, begin: bool, end: bool, layout: str
) -> None:
    settings = settings_of(
        "tiny-llama", tokenizer=str(saved(tmp_path / "tokenizer", begin, end, layout))
    )
    tokenizer = models.open(settings).tokenizer
    model = models.open(settings).load(dtype=None, head_seed=0)  # type: ignore[arg-type]
    check(tmp_path, tokenizer, model, "causal")
    ids = tokenizer("one two")["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) is begin and ids[-1] != tokenizer.eos_token_id
    assert tokenizer("a", "b")["input_ids"][-1] != tokenizer.eos_token_id


def test_an_encoder_decoder_reads_its_prompt_with_its_end(tmp_path: Path) -> None:
    settings = config.check(config.compose(["model=tiny-t5", "task=cola_t5"]))[0].model
    tokenizer = models.open(settings).tokenizer
    model = models.open(settings).load(dtype=None, head_seed=0)  # type: ignore[arg-type]
    check(tmp_path, tokenizer, model, "seq2seq")
    assert tokenizer("one")["input_ids"][-1] == tokenizer.eos_token_id


def check(folder: Path, tokenizer: Any, model: Any, kind: Any) -> None:
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"p": prompt}) + "\n" for prompt in prompts())
    )
    how = Reading("prompts", 1, lambda row: Pair(row["p"], "yes"), kind, 2048)
    examples = encode_pairs(Files((folder / "rows.jsonl",)), how, tokenizer, cache_root=folder)
    rows = zip(examples.starts.tolist(), examples.prompts.tolist(), strict=True)
    trained_on = [examples.tokens[start : start + length].tolist() for start, length in rows]
    assert trained_on == encode_prompts(model, tokenizer, prompts(), 8) and len(trained_on) >= 8
    first = examples.tokens[: examples.ends[0]].tolist()
    assert (
        first.count(tokenizer.eos_token_id) == (1 if kind == "causal" else 2)
        and first[-1] == tokenizer.eos_token_id
    )
