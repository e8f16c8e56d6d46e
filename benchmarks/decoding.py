"""CPU seconds to answer GSM8K's questions: our loop beside `transformers.generate` and lm-eval's
`HFLM`, same model and rows.

SmolLM2-135M in float32 on one thread. The contenders take turns on blocks of rows. `drawn`: five
samples a question at T 0.8, ended by the next "Q:", so that lengths differ; transformers pads to
the longest of a batch and repeats the prompt for each sample, as `num_return_sequences` does, and
lm-eval asks each sample by itself. `greedy`: one answer of a fixed number of tokens, so that all
lengths are the same. Compared are new tokens, of those that are part of an answer, for each second
of the process's CPU time: a machine that is busy with other work changes it less than the clock's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import verdict
from loraexp import config, models
from loraexp.scoring import backends, generate, protocols
from loraexp.scoring.decode import Stops
from loraexp.scoring.prompts import end_tokens

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k" / "test.jsonl"
THREADS, ROWS, BLOCKS, BATCH = 1, 64, 4, 32
CASES: dict[str, dict[str, Any]] = {
    "drawn": {
        "max_new_tokens": 128,
        "temperature": 0.8,
        "top_p": 0.95,
        "samples": 5,
        "stop": ["Q:"],
    },
    "greedy": {"max_new_tokens": 32},
}
Answer = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Bench:
    model: Any
    tokenizer: Any
    how: dict[str, Any]

    @property
    def ends(self) -> list[int]:
        """No end token where all answers have the same length."""
        return (
            end_tokens(self.model, self.tokenizer)
            if self.how.get("stop")
            else [self.model.config.vocab_size - 1]
        )

    def ours(self, prompts: Sequence[str]) -> list[str]:
        return [
            text
            for texts in generate.generate(
                self.model, self.tokenizer, prompts, batch_size=BATCH, **self.how
            )
            for text in texts
        ]

    def transformers(self, prompts: Sequence[str]) -> list[str]:
        from transformers import StoppingCriteriaList

        samples, new = self.how.get("samples", 1), self.how["max_new_tokens"]
        drawn = (
            {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "do_sample": True}
            if samples > 1
            else {"do_sample": False}
        )
        self.tokenizer.padding_side = "left"
        found, size = list[str](), max(1, BATCH // samples)
        for start in range(0, len(prompts), size):
            batch = self.tokenizer(
                list(prompts[start : start + size]), return_tensors="pt", padding=True
            )
            before = batch["input_ids"].shape[1]
            # Its own stop strings are matched against the whole vocabulary first, which takes
            # minutes.
            stop = Stops(self.tokenizer, self.how.get("stop", ()))

            def stopped(
                ids: Any, scores: Any, *, before: int = before, stop: Stops = stop, **_: Any
            ) -> Any:
                rows = ids[:, before:].tolist()
                return torch.tensor([stop.in_tokens(row) for row in rows], device=ids.device)

            out = self.model.generate(
                **batch,
                max_new_tokens=new,
                num_return_sequences=samples,
                eos_token_id=self.ends,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([stopped] if self.how.get("stop") else []),
                **drawn,
            )
            texts = self.tokenizer.batch_decode(out[:, before:], skip_special_tokens=True)
            found += [generate.cut(text, self.how.get("stop", ())) for text in texts]
        return found

    def lm_eval(self, prompts: Sequence[str]) -> list[str]:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        settings: dict[str, Any] = {
            "until": list(self.how.get("stop", [])),
            "max_gen_toks": self.how["max_new_tokens"],
            "do_sample": False,
        }
        if self.how.get("samples"):
            settings |= {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
        repeated = [prompt for prompt in prompts for _ in range(self.how.get("samples", 1))]
        requests = [
            Instance("generate_until", {}, (prompt, dict(settings)), index)
            for index, prompt in enumerate(repeated)
        ]
        with backends.quiet():
            live = HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=BATCH)
            return live.generate_until(requests, disable_tqdm=True)


def prepare() -> tuple[Any, Any, list[str]]:
    settings, _ = config.check(config.compose(["model=smollm2-135m", "task=gsm8k"]))
    model, tokenizer = (
        models.open(settings.model).load(dtype=torch.float32, head_seed=0),
        models.open(settings.model).tokenizer,
    )
    if GSM8K.exists():
        rows = [json.loads(line) for line in GSM8K.read_text().splitlines()[:ROWS]]
    else:
        rows = [
            {
                "question": (
                    f"Ann has {i} apples{' and then some more' * (i % 7)}. How many are there?"
                )
            }
            for i in range(ROWS)
        ]
    protocol = protocols.find("gsm8k", "lora_ga")
    return model, tokenizer, [protocol.ask(question=row["question"]) for row in rows]


def main(rows: int = ROWS, blocks: int = BLOCKS, most: int | None = None) -> dict[str, float]:
    """`most`: new tokens, where a machine has no time for what the cases have."""
    torch.set_num_threads(THREADS)
    model, tokenizer, prompts = prepare()
    print(
        f"SmolLM2-135M, {rows} rows of {'GSM8K' if GSM8K.exists() else 'questions'}, batches of"
        f" {BATCH}, load {os.getloadavg()[0]:.1f}"
    )
    figures: dict[str, float] = {}
    for case, how in CASES.items():
        bench = Bench(
            model,
            tokenizer,
            how | ({"max_new_tokens": min(most, how["max_new_tokens"])} if most else {}),
        )
        contenders: dict[str, Answer] = {
            "loraexp": bench.ours,
            "transformers": bench.transformers,
            "lm-eval": bench.lm_eval,
        }
        seconds, tokens = dict.fromkeys(contenders, 0.0), dict.fromkeys(contenders, 0)
        for block in range(blocks):
            part = prompts[:rows][block::blocks]
            for name, answer in contenders.items():
                torch.manual_seed(block)
                began = time.process_time()
                texts = answer(part)
                seconds[name] += time.process_time() - began
                tokens[name] += sum(
                    len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
                )
        rates = {name: tokens[name] / seconds[name] for name in contenders}
        for name in contenders:
            ratio = rates["loraexp"] / rates[name]
            target = 1.5 if how.get("stop") else 1.0
            said = (
                ""
                if name == "loraexp"
                else f"ours {ratio:.2f} ×  {verdict(f'{case}, ours / {name}', ratio, least=target)}"
            )
            print(
                f"{case:<8} {name:<13} {seconds[name]:7.1f} s  {tokens[name]:6d} tokens "
                f" {rates[name]:6.1f} a CPU s  {said}",
                flush=True,
            )
            figures[f"{case}_{name}"] = rates[name]
    return figures
