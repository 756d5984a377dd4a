"""From examples to the exact order in which the trainer sees them: tokenised once, mixed by weight, batched by length.

    tokenize    examples -> token ids with the place where the answer begins; too long ones are left out and counted
    budget      tokens that an item may see
    draw        which examples each stage sees, in which order
    arrange     the same with examples of similar length side by side, so that little is padding

Everything is a function of (data, plan, seed); nothing here draws from a global random state, and the trainer must not reshuffle.
Imports no torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from understudy.plan import Stages
from understudy.records import Example

WINDOW = 8
"""Batches among which examples are sorted by length: wide enough to remove most padding, narrow enough to keep the mix of each step."""


@dataclass(frozen=True)
class Row:
    """One tokenised example."""

    ids: tuple[int, ...]
    """Prompt and answer."""
    answer: int
    """Index of the answer's first token; the loss begins here."""

    @property
    def labels(self) -> list[int]:
        """`ids` with the prompt masked by -100."""
        return [-100] * self.answer + list(self.ids[self.answer :])


@dataclass(frozen=True)
class Corpus:
    """The training rows of one dataset."""

    rows: list[Row]
    left_out: int
    """Examples with more tokens than the plan allows."""

    @property
    def tokens(self) -> int:
        """Tokens of one pass."""
        return sum(len(row.ids) for row in self.rows)


class Draw(NamedTuple):
    """One place in the order: an example of a dataset."""

    dataset: str
    row: int


def tokenize(examples: Iterable[Example], tokenizer: Any, stops: frozenset[int], max_length: int) -> Corpus:
    """Render each chat with the tokenizer's template and tokenise it whole, as the engine will.

    The answer is what follows the rendered prompt, up to and with its last stop token; a template that writes none gets the tokenizer's.
    """
    prompts, chats = [], []
    for example in examples:
        turns = [turn.model_dump() for turn in example.prompt]
        prompts.append(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        chats.append(
            tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": example.completion}], tokenize=False
            )
        )
    rows: list[Row] = []
    left_out = 0
    if prompts:
        prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        for prompt, chat in zip(prompt_ids, tokenizer(chats, add_special_tokens=False)["input_ids"], strict=True):
            row = _split(prompt, chat, stops, tokenizer.eos_token_id)
            if len(row.ids) <= max_length:
                rows.append(row)
            else:
                left_out += 1
    return Corpus(rows, left_out)


def _split(prompt: Sequence[int], chat: Sequence[int], stops: frozenset[int], eos: int) -> Row:
    """`chat` cut behind the answer's last stop token. Some tokenizers merge across the border: then the answer begins where they part."""
    answer = next(
        (i for i, (a, b) in enumerate(zip(prompt, chat, strict=False)) if a != b), min(len(prompt), len(chat))
    )
    end = next((i for i in range(len(chat) - 1, answer - 1, -1) if chat[i] in stops), None)
    ids = (*chat, eos) if end is None else tuple(chat[: end + 1])
    return Row(ids, answer)


def budget(stages: Stages, corpora: Mapping[str, Corpus], epochs: float) -> int:
    """Tokens of `epochs` passes over every dataset that `stages` name, each counted once; never so few that nothing is learnt."""
    return max(1, round(epochs * sum(corpora[name].tokens for name in {name for stage in stages for name in stage})))


def draw(stages: Stages, corpora: Mapping[str, Corpus], budgets: Sequence[int], seed: str) -> list[list[Draw]]:
    """The examples of each stage, until the tokens so far reach the budgets so far.

    Within a stage datasets alternate so that after any number of examples each has its weight's share, give or take one; a dataset
    is drawn without replacement and shuffled anew when exhausted. The budgets add up, so a stage's overshoot shortens the next.
    """
    order: list[list[Draw]] = []
    used = allowed = 0
    for number, (stage, tokens) in enumerate(zip(stages, budgets, strict=True)):
        allowed += tokens
        drawn = dict.fromkeys(stage, 0)
        piles: dict[str, list[int]] = {name: [] for name in stage}
        chance = {name: random.Random(f"{seed}/{number}/{name}") for name in stage}
        order.append([])
        while used < allowed:
            name = min(stage, key=lambda n: ((drawn[n] + 1) / stage[n], n))
            if not piles[name]:
                piles[name] = list(range(len(corpora[name].rows)))
                chance[name].shuffle(piles[name])
            row = piles[name].pop()
            drawn[name] += 1
            used += len(corpora[name].rows[row].ids)
            order[-1].append(Draw(name, row))
    return order


def arrange(order: Sequence[Sequence[Draw]], corpora: Mapping[str, Corpus], batch: int, seed: str) -> list[Draw]:
    """One flat order in which each `batch` consecutive examples are a step, of similar length, and stages follow one another.

    Examples are sorted by length within `WINDOW` batches, and the batches of a window are shuffled. Where a stage does not fill its last
    batch, the next stage's first examples do.
    """
    chance = random.Random(f"{seed}/batches")
    flat: list[Draw] = []
    for stage in order:
        head = -len(flat) % batch
        flat += stage[:head]
        whole = head + (len(stage) - head) // batch * batch if len(stage) > head else head
        for start in range(head, whole, WINDOW * batch):
            window = sorted(
                stage[start : min(start + WINDOW * batch, whole)],
                key=lambda d: (len(corpora[d.dataset].rows[d.row].ids), d),
            )
            batches = [window[i : i + batch] for i in range(0, len(window), batch)]
            chance.shuffle(batches)
            flat += [example for one in batches for example in one]
        flat += stage[whole:]
    return flat
