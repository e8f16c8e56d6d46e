"""Answers by the loops of transformers: beam search, and models whose past is no cache of keys and
values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loraexp.machine.device import is_accelerator, on_device
from loraexp.scoring.cache import can_decode, past
from loraexp.scoring.decode import LOOK, Answer, Rules
from loraexp.scoring.prompts import Tokenizer, is_seq2seq, pad_token, padded
from loraexp.scoring.sampling import BROKEN, check_number, home

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


def decode(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    encoded: Sequence[Sequence[int]],
    rules: Rules,
    answers: Sequence[Answer],
) -> Iterator[Answer]:
    """Grow the answers to their ends."""
    ids, mask = padded(model, [encoded[answer.prompt] for answer in answers], pad_token(tokenizer))
    before = 1 if is_seq2seq(model) else ids.shape[1]
    loop = Loop(answers, rules, before, model.device)
    generate: Any = model.generate  # its own annotations know no plain lists
    with loop.seldom_read(model):
        rows: Tensor = generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings(model, tokenizer, rules),
            logits_processor=[loop.choose],
            stopping_criteria=[loop.stopped] if rules.how.stop else [],
            **(
                {"past_key_values": past(model)}
                if rules.how.beams > 1 and can_decode(model)
                else {}
            ),
        )
    check_number(int(loop.broken))
    for answer, row in zip(answers, rows[:, before:].tolist(), strict=True):
        any(rules.take(answer, token) for token in row)  # to its end
        yield answer


class Loop:
    """What one loop of transformers is told, and how often the host looks at what it does."""

    def __init__(
        self, answers: Sequence[Answer], rules: Rules, before: int, device: torch.device
    ) -> None:
        self._rules, self._before = rules, before
        self._every = LOOK if is_accelerator(device) else 1
        self._steps = self._seen = 0
        self.broken = torch.zeros((), dtype=torch.long, device=device)  # or BROKEN
        rows = [answer.numbers for answer in answers if answer.numbers is not None]
        self._numbers = on_device(torch.stack(rows, dim=1), home(device)) if rows else None

    def choose(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, of which the loop takes the greatest; of a drawn token, that one's alone."""
        self._steps += 1
        self.broken = self.broken.masked_fill(scores.isnan().any(), BROKEN)
        if self._every == 1:
            check_number(int(self.broken))
        if self._numbers is None:
            return scores
        drawn = self._rules.how.draw(scores, self._numbers[ids.shape[1] - self._before])
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn.unsqueeze(-1), 0.0)

    def due(self) -> bool:
        """Whether the host looks after this step: every few, and after the last."""
        return self._steps % self._every == 0 or self._steps >= self._rules.how.max_new_tokens

    def stopped(self, ids: Tensor, scores: object, **_: object) -> Tensor:
        """Which rows hold a stop string. Where it decides which beam is best, the host looks at
        every step."""
        how, stops = self._rules.how, self._rules.stops
        if how.beams == 1 and not self.due():
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        first, self._seen = self._seen + 1, ids.shape[1] - self._before
        first = self._seen if how.beams > 1 else first
        done = [
            any(stops.in_tokens(row[:end]) for end in range(first, self._seen + 1))
            for row in ids[:, self._before :].tolist()
        ]
        return on_device(torch.tensor(done), ids.device)

    @contextmanager
    def seldom_read(self, model: PreTrainedModel) -> Iterator[None]:
        """Within, the loop is asked for its end when a look is due; what it does too much until
        then changes no answer: ended rows are padded, and no beam joins where none can be
        better."""
        from transformers.generation import utils

        inner: Any = model
        unfinished, loop = inner._beam_search_has_unfinished_sequences, self

        def searching(*state: object) -> Tensor | bool:
            return unfinished(*state) & (loop.broken == 0) if loop.due() else True

        class Check(utils.StopCheck):
            def __call__(self, rows: Tensor, tokens: Tensor, length: int) -> bool:
                return loop.due() and bool((rows.max() == 0) | (loop.broken != 0))

        inner._beam_search_has_unfinished_sequences, check = searching, utils.StopCheck
        utils.StopCheck = Check  # type: ignore[misc]
        try:
            yield
        finally:
            del inner._beam_search_has_unfinished_sequences
            utils.StopCheck = check  # type: ignore[misc]


def settings(model: PreTrainedModel, tokenizer: Tokenizer, rules: Rules) -> GenerationConfig:
    """The protocol's own, whatever the checkpoint's generation settings say."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=rules.how.max_new_tokens,
        num_beams=rules.how.beams,
        do_sample=False,
        use_cache=True,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
        early_stopping=False,
        pad_token_id=pad_token(tokenizer),
        eos_token_id=sorted(rules.ends),
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
