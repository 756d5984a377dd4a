"""The loss sees the answer only, mixes keep their weights, budgets hold, and the order is a function of the seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.trainer.data import Corpus, Draw, Row, arrange, budget, draw, tokenize
from services.trainer.preflight import check_batch, check_lengths, stop_tokens
from understudy.bases import PLAIN_TEMPLATE
from understudy.errors import Invalid

EOS = 1


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tiny_base / "tiny")
    loaded.chat_template = PLAIN_TEMPLATE.read_text()
    return loaded


def corpus(*lengths: int) -> Corpus:
    return Corpus([Row(tuple(range(length)), 1) for length in lengths], 0)


def test_only_the_answer_and_its_stop_token_are_in_the_loss(tokenizer: Any, examples: Any) -> None:
    (example, *_) = examples(1)
    (row,) = tokenize([example], tokenizer, frozenset({EOS}), 512).rows
    seen = [label for label in row.labels if label != -100]
    assert tokenizer.decode(seen) == "positive</s>"
    assert row.labels[: row.answer] == [-100] * row.answer
    assert len(row.labels) == len(row.ids)


def test_the_prompt_is_tokenised_as_the_engine_will(tokenizer: Any, examples: Any) -> None:
    (example, *_) = examples(1)
    (row,) = tokenize([example], tokenizer, frozenset({EOS}), 512).rows
    prompt = tokenizer.apply_chat_template(
        [turn.model_dump() for turn in example.prompt], add_generation_prompt=True, return_dict=False
    )
    assert list(row.ids[: row.answer]) == list(prompt)


def test_a_template_without_stop_token_gets_one(tokenizer: Any, examples: Any) -> None:
    template, tokenizer.chat_template = (
        tokenizer.chat_template,
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
    )
    try:
        (row,) = tokenize(examples(1), tokenizer, frozenset({EOS}), 512).rows
    finally:
        tokenizer.chat_template = template
    assert row.ids[-1] == EOS
    assert row.labels[-1] == EOS


def test_padding_with_the_stop_token_keeps_the_stop_token_in_the_loss(tokenizer: Any, examples: Any) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = tokenize(examples(4), tokenizer, frozenset({EOS}), 512).rows
    batch = DataCollatorForLanguageModeling(pad_token_id=EOS)(
        [{"input_ids": list(row.ids), "labels": row.labels} for row in rows]
    )
    check_batch(batch["labels"].tolist(), [row.ids[row.answer :] for row in rows], frozenset({EOS}))
    assert batch["attention_mask"].sum() == sum(len(row.ids) for row in rows)


def test_the_check_before_training_refuses_a_wrong_mask() -> None:
    with pytest.raises(AssertionError, match="instead of the answer"):
        check_batch([[5, 6, EOS]], [[6, EOS]], frozenset({EOS}))
    with pytest.raises(AssertionError, match="stop tokens"):
        check_batch([[-100, 6]], [[6]], frozenset({EOS}))


def test_too_long_examples_are_left_out_and_counted_never_cut(tokenizer: Any, examples: Any) -> None:
    short, long = examples(10), examples(3, words=90)
    found = tokenize([*short, *long], tokenizer, frozenset({EOS}), 80)
    assert (len(found.rows), found.left_out) == (10, 3)
    assert found.rows == tokenize(short, tokenizer, frozenset({EOS}), 512).rows


@pytest.mark.parametrize(("kept", "left_out", "fine"), [(10, 990, True), (9, 1, False), (3, 0, True), (0, 0, False)])
def test_too_few_examples_left_is_invalid(kept: int, left_out: int, fine: bool) -> None:
    if fine:
        check_lengths("d", kept, left_out, 512)
    else:
        with pytest.raises(Invalid, match=r"`training\.max_length`"):
            check_lengths("d", kept, left_out, 512)


def test_a_tokenizer_without_stop_token_is_invalid() -> None:
    class Endless:
        eos_token_id, name_or_path = None, "endless"

    with pytest.raises(Invalid, match="end-of-sequence"):
        stop_tokens(Endless(), None)


def test_stop_tokens_of_the_generation_config_count() -> None:
    class Known:
        eos_token_id = 1

    class Config:
        eos_token_id = (2, 3)

    assert stop_tokens(Known(), Config()) == {1, 2, 3}


def test_whole_epochs_of_one_dataset_see_every_example_equally_often() -> None:
    corpora = {"a": corpus(3, 5, 7, 11)}
    ((*order,),) = draw(({"a": 1},), corpora, [budget(({"a": 1},), corpora, 3)], "s")
    assert Counter(order) == {Draw("a", n): 3 for n in range(4)}
    assert {row for _, row in order[:4]} == {0, 1, 2, 3}, "without replacement"
    assert order[:4] != order[4:8], "shuffled anew"


def test_a_mix_follows_its_weights_at_every_point() -> None:
    corpora = {"a": corpus(*[10] * 50), "b": corpus(*[10] * 50)}
    ((*order,),) = draw(({"a": 3, "b": 1},), corpora, [2000], "s")
    assert Counter(name for name, _ in order) == {"a": 150, "b": 50}
    for end in range(1, len(order)):
        share = sum(name == "a" for name, _ in order[:end])
        assert abs(share - 0.75 * end) <= 1


def test_stages_keep_their_order_and_share_the_budget() -> None:
    corpora = {"a": corpus(*[10] * 20), "b": corpus(*[7] * 30)}
    order = draw(({"a": 1}, {"b": 1}), corpora, [200, 200], "s")
    flat = arrange(order, corpora, 8, "s")
    names = [name for name, _ in flat]
    assert names == ["a"] * 20 + ["b"] * 29
    assert sum(len(corpora[name].rows[row].ids) for name, row in flat) in range(400, 407)


def test_arranging_loses_nothing_and_removes_padding() -> None:
    lengths = [(n * 37) % 100 + 10 for n in range(203)]
    corpora = {"a": corpus(*lengths)}
    order = draw(({"a": 1},), corpora, [sum(lengths)], "s")
    flat = arrange(order, corpora, 8, "s")
    assert Counter(flat) == Counter(order[0])

    def padded(draws: list[Draw]) -> int:
        batches = [[lengths[d.row] for d in draws[i : i + 8]] for i in range(0, len(draws), 8)]
        return sum(max(batch) * len(batch) for batch in batches)

    assert padded(flat) < 1.12 * sum(lengths) < 1.5 * sum(lengths) < padded(order[0])
    firsts = [lengths[d.row] for d in flat[:64:8]]
    assert firsts != sorted(firsts), "batches are shuffled, short ones do not come first"


def test_the_order_is_a_function_of_the_seed() -> None:
    corpora = {"a": corpus(*range(10, 60)), "b": corpus(*range(10, 40))}

    def order(seed: str) -> list[Draw]:
        return arrange(draw(({"a": 1, "b": 2},), corpora, [3000], seed), corpora, 8, seed)

    assert order("17/v") == order("17/v") != order("18/v")
