"""How a number is made: evaluation protocols by name, as data (prompt, decoding, reader of the answer, comparer).

A protocol named like a method follows that paper as meant; with `_released` it follows the authors' code to the letter,
mistakes included. `find("gsm8k", "lora_sb").ask(question=…)` is the prompt. A protocol's version changes when any
number that it makes could change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from string import Formatter
from typing import Any, Literal

from loraexp.scoring.answers import COMMONSENSE_WORDS, COMPARERS, EXTRACTORS

# ---------------------------------------------------------------------------------------------------- templates

QUESTION_ANSWER = "Q: {question}\nA: "
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
STEP_BY_STEP = ALPACA.replace("{instruction}", "{question}") + " Let's think step by step."
# LLM-Adapters' template stands indented in its source, and its first line ends in a space.
LLM_ADAPTERS = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n\n"
    "                ### Instruction:\n                {instruction}\n\n                ### Response:\n                "
)
COMPLETE_CODE = (
    "Below is an instruction that describes a task.\n Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nComplete the following Python code: \n"
    "Notes: respond with the entire complete function definition\n"
    "do not add any comments, be as concise in your code as possible\n"
    "use only built-in libraries, assume no additional imports other than those provided (if any)\n"
    "use `    ` (4 spaces) for each level of indentation\n\n"
    "code:\n```python\n{prompt}\n```\n\n### Response:\n```python\n"
)
MULTIPLE_CHOICE = "{shots}{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:"
LETTERS = ("A", "B", "C", "D")
ALPACA_STOPS = ("Instruction:", "Instruction", "Response:", "Response")


# ---------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How text is generated. Temperature 0 is greedy (or beam search); `samples` answers are drawn where it is above."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """`kind`: generate text and read it | score the `choices` by likelihood | run the code | lm-eval's own task."""

    benchmark: str
    name: str
    version: int = 1
    kind: Literal["generate", "choices", "code", "harness"] = "generate"
    prompt: str = ""
    decoding: Decoding | None = None
    extractor: str = "text"  # reads the answer from what the model wrote
    truth: str = "text"  # reads the truth from the row's own answer
    comparer: str = "exact"
    choices: tuple[str, ...] = ()
    choice_tokens: Literal["continuation", "alone"] = "continuation"  # " A" after the prompt, or the last token of "A" by itself
    shots: int = 0
    edge: str = ""  # what begins each example in lm-eval's own prompt: one that is too long for the window is cut there
    task: str | None = None  # lm-eval's name of it, and the metric that it reports there
    metric: str = "accuracy"
    source: str
    differs: str = ""

    def ask(self, **fields: str) -> str:
        """The prompt of a row. Raises: ValueError naming a field that the template needs and the row lacks."""
        for _, field, _, _ in Formatter().parse(self.prompt):
            if field is not None and not isinstance(fields.get(field), str):
                raise ValueError(
                    f"protocol {self.benchmark}/{self.name}: no text for {{{field}}} (got {sorted(fields)}); give the row that column"
                )
        return self.prompt.format(**fields)

    def read(self, text: str) -> str | None:
        """The answer in what a model wrote."""
        return EXTRACTORS[self.extractor](text)

    def read_truth(self, answer: str) -> str:
        """The truth in a row's answer. Raises: ValueError where there is none to be read."""
        truth = EXTRACTORS[self.truth](answer)
        if truth is None:
            raise ValueError(
                f"protocol {self.benchmark}/{self.name}: no answer in {answer[-80:]!r}; "
                f"expected {EXTRACTORS[self.truth].about}; correct the row, or set task.skip_bad=true"
            )
        return truth

    def right(self, answer: str | None, truth: str) -> bool:
        """Is the answer that was read the truth?"""
        return COMPARERS[self.comparer](answer, truth)

    def describe(self) -> dict[str, Any]:
        """For the record: everything that makes the number, with the versions of reader and comparer."""
        comparer = COMPARERS[self.comparer]
        versions = {"extractor_version": EXTRACTORS[self.extractor].version, "comparer_version": comparer.version}
        return asdict(self) | versions | ({"comparer_library": comparer.library} if comparer.library else {})


def _gsm8k_direct() -> list[Protocol]:
    ga = Protocol(
        benchmark="gsm8k",
        name="lora_ga",
        prompt=QUESTION_ANSWER,
        decoding=Decoding(max_new_tokens=512),
        extractor="gsm8k_lora_ga",
        truth="gsm8k_lora_ga",
        comparer="number",
        source="LoRA-GA, released reproduce/eval_gsm8k.py; greedy",
        differs="reads signs, thousands, decimals, currency; no second space after the prompt; greedy whatever the checkpoint's defaults",
    )
    return [
        ga,
        replace(
            ga,
            name="lora_ga_released",
            prompt=QUESTION_ANSWER + " ",
            decoding=Decoding(max_new_tokens=512, temperature=0.8, top_p=0.95),
            extractor="gsm8k_lora_ga_released",
            truth="gsm8k_lora_ga_released",
            comparer="exact",
            differs="samples always (the released call does where the checkpoint's defaults sample, as LLaMA-2's do)",
        ),
        replace(ga, name="lora_one", source="LoRA-One, released eval_gsm8k.py; greedy"),
        replace(
            ga,
            name="lora_one_released",
            prompt=QUESTION_ANSWER + " ",
            extractor="gsm8k_lora_ga_released",
            truth="gsm8k_lora_ga_released",
            comparer="exact",
            source="LoRA-One, released eval_gsm8k.py; greedy",
            differs="",
        ),
    ]


def _gsm8k_stepwise() -> list[Protocol]:
    sb = Protocol(
        benchmark="gsm8k",
        name="lora_sb",
        prompt=STEP_BY_STEP,
        decoding=Decoding(max_new_tokens=256, stop=ALPACA_STOPS),
        extractor="gsm8k_lora_sb",
        truth="gsm8k_lora_ga",
        comparer="number",
        source="LoRA-SB, LoRA-XS, PiSSA: released instruction_tuning_eval/gsm8k_eval.py",
        differs="exact numbers: not rounded, and off by a factor of 100 is wrong",
    )
    da = replace(
        sb,
        name="lora_da",
        decoding=Decoding(max_new_tokens=1024, stop=ALPACA_STOPS),
        extractor="gsm8k_lora_da",
        source="LoRA-DA, released eval_gsm8k.py (it trains on lora_ga's prompt)",
    )
    return [
        sb,
        replace(sb, name="lora_sb_released", extractor="gsm8k_lora_sb_released", comparer="near_released", differs=""),
        da,
        replace(da, name="lora_da_released", extractor="gsm8k_lora_da_released", comparer="near_released", differs=""),
    ]


def _gsm8k_adapters() -> list[Protocol]:
    adapters = Protocol(
        benchmark="gsm8k",
        name="llm_adapters",
        prompt=LLM_ADAPTERS.replace("{instruction}", "{question}"),
        decoding=Decoding(max_new_tokens=256, beams=4),
        extractor="gsm8k_llm_adapters",
        truth="gsm8k_lora_ga",
        comparer="number",
        source="LLM-Adapters, evaluate.py at 8166572: beam search over 4, last number; LoRA-DA's appendix I (its script is lora_da)",
        differs="exact numbers; with an attention mask; the framework has no MATH",
    )
    released = replace(adapters, name="llm_adapters_released", extractor="gsm8k_llm_adapters_released", comparer="within_released")
    return [adapters, replace(released, differs="with an attention mask")]


def _gsm8k_shots() -> list[Protocol]:
    cot = Protocol(
        benchmark="gsm8k",
        name="cot",
        kind="harness",
        task="gsm8k_cot",
        metric="exact_match,strict-match",
        shots=8,
        edge="Q: ",
        decoding=Decoding(max_new_tokens=256, stop=("Q:", "</s>", "<|im_end|>")),
        extractor="gsm8k_cot_strict",
        comparer="gsm8k_cot",
        source="lm-eval gsm8k_cot 3.0, 8 shots, strict-match",
    )
    return [
        cot,
        replace(
            cot,
            name="cot_flexible",
            metric="exact_match,flexible-extract",
            extractor="gsm8k_cot_flexible",
            source="lm-eval gsm8k_cot 3.0, 8 shots, flexible-extract",
        ),
    ]


def _math() -> list[Protocol]:
    sb = Protocol(
        benchmark="math",
        name="lora_sb",
        prompt=STEP_BY_STEP,
        decoding=Decoding(max_new_tokens=512, stop=ALPACA_STOPS),
        extractor="math",
        truth="math",
        comparer="math",
        source="LoRA-SB, released instruction_tuning_eval/MATH_eval.py",
        differs="a box is read too, and off by a factor of 100 is wrong",
    )
    return [
        sb,
        replace(
            sb,
            name="lora_sb_released",
            extractor="math_lora_sb_released",
            truth="math_boxed",
            comparer="math_lora_sb_released",
            differs="no symbolic comparison: it would evaluate the model's text",
        ),
        replace(
            sb,
            name="milora",
            decoding=Decoding(max_new_tokens=2048, stop=ALPACA_STOPS),
            source="MiLoRA: 2048 new tokens, the prompt of the MetaMath family",
            differs="",
        ),
    ]


def _humaneval() -> list[Protocol]:
    one = Protocol(
        benchmark="humaneval",
        name="lora_one",
        version=2,  # 1 ran program and tests in one process
        kind="code",
        prompt=COMPLETE_CODE,
        decoding=Decoding(max_new_tokens=512),
        extractor="code",
        metric="pass@1",
        source="LoRA-One, released eval_humaneval.py: one greedy answer",
        differs="reads the block of code itself: nothing after its fence, indentation kept; no space after the prompt",
    )
    released = "cuts fences and docstrings, indents anew by rank"
    sampled = Decoding(max_new_tokens=512, temperature=0.8, top_p=0.95, samples=5)
    ga_source = "LoRA-GA, released reproduce/eval_humaneval.py: 5 samples at T 0.8, top_p 0.95"
    return [
        one,
        replace(one, name="lora_one_released", prompt=COMPLETE_CODE + " ", extractor="code_released", differs=released),
        replace(one, name="lora_ga", decoding=sampled, source=ga_source),
        replace(
            one,
            name="lora_ga_released",
            prompt=COMPLETE_CODE + " ",
            decoding=sampled,
            extractor="code_released",
            source=ga_source,
            differs=released,
        ),
    ]


def _mmlu() -> list[Protocol]:
    one = Protocol(
        benchmark="mmlu",
        name="lora_one",
        kind="choices",
        prompt=MULTIPLE_CHOICE,
        choices=LETTERS,
        shots=5,
        source="LoRA-GA and LoRA-One, released eval_mmlu.py (after Hendrycks et al. 2021): 5 shots, question-weighted",
        differs="the letter is scored as it follows the prompt, with its space; the same token as theirs in LLaMA-2's tokenizer",
    )
    return [
        one,
        replace(one, name="direct", shots=0, source='LoRA-One\'s words, "direct prompting": the question alone, question-weighted'),
        replace(
            one, name="lora_one_released", choice_tokens="alone", differs="the last token of the letter by itself, whatever precedes it"
        ),
    ]


def _commonsense() -> list[Protocol]:
    made = []
    for benchmark in COMMONSENSE_WORDS:
        adapters = Protocol(
            benchmark=benchmark,
            name="llm_adapters",
            prompt=LLM_ADAPTERS,
            decoding=Decoding(max_new_tokens=32, beams=4),
            extractor=f"{benchmark}_first",
            source="LLM-Adapters, released commonsense_evaluate.py: beam search over 4",
            differs="with an attention mask; T 0.1, top_p 0.75 and top_k 40 are passed there too and do nothing in beam search",
        )
        sb = replace(
            adapters,
            name="lora_sb",
            prompt=ALPACA + "\n",
            decoding=Decoding(max_new_tokens=32, stop=ALPACA_STOPS),
            extractor=f"{benchmark}_first_lower",
            source="LoRA-SB, released instruction_tuning_eval/commonsense_eval.py",
            differs="greedy; the released code samples (lora_sb_released)",
        )
        one = replace(
            adapters,
            name="lora_one",
            prompt=ALPACA + "\n",
            decoding=Decoding(max_new_tokens=32),
            source="LoRA-One, released eval_commonsense.py",
            differs="greedy and with an attention mask; the released code samples in a beam search of 4 without one",
        )
        sampled = Decoding(max_new_tokens=32, stop=ALPACA_STOPS, temperature=0.1, top_p=0.75, top_k=40)
        made += [adapters, sb, one, replace(sb, name="lora_sb_released", decoding=sampled, differs="")]
    return made


PROTOCOLS: dict[tuple[str, str], Protocol] = {
    (protocol.benchmark, protocol.name): protocol
    for protocol in [
        *_gsm8k_direct(),
        *_gsm8k_stepwise(),
        *_gsm8k_adapters(),
        *_gsm8k_shots(),
        *_math(),
        *_humaneval(),
        *_mmlu(),
        *_commonsense(),
    ]
}


def names(benchmark: str) -> list[str]:
    """The protocols of a benchmark. Raises: ValueError where there is no such benchmark."""
    found = [name for of, name in PROTOCOLS if of == benchmark]
    if not found:
        raise ValueError(f"benchmark {benchmark}: there is none of this name; expected {', '.join(sorted({of for of, _ in PROTOCOLS}))}")
    return found


def find(benchmark: str, name: str) -> Protocol:
    """A protocol by name. Raises: ValueError that lists the names there are."""
    if name not in names(benchmark):
        raise ValueError(f"task.protocol={name}: {benchmark} has {', '.join(names(benchmark))}")
    return PROTOCOLS[benchmark, name]


# ---------------------------------------------------------------------------------------------------- MMLU's prompt


def mmlu_parts(protocol: Protocol, subject: str, row: Mapping[str, str], examples: Sequence[Mapping[str, str]]) -> list[str]:
    """Hendrycks' prompt in its parts: a header that names the subject, `protocol.shots` solved examples, the question.

    Two spaces before the subject, as the original's `format_subject` leaves them. Raises: ValueError where there are
    fewer examples than shots.
    """
    if len(examples) < protocol.shots:
        raise ValueError(f"MMLU {subject}: {len(examples)} examples in its dev file; protocol {protocol.name} shows {protocol.shots}")
    header = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"
    shown = [protocol.ask(**{**example, "shots": ""}) + f" {example['answer']}\n\n" for example in examples[: protocol.shots]]
    return [header, *shown, protocol.ask(**{**row, "shots": ""})]


def parts(protocol: Protocol, prompt: str) -> list[str]:
    """A prompt that lm-eval made, in its examples and the question: joined, they are the prompt."""
    if not protocol.edge:
        return ["", prompt]
    first, *rest = prompt.split(protocol.edge)
    return ["", *([first] if first else []), *(protocol.edge + part for part in rest)]
