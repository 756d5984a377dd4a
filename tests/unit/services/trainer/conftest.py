"""A tiny base model that is made in a second, and small datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from understudy.records import Example, Provenance, Turn, write_jsonl
from understudy.store.artifacts import FsspecArtifactStore
from understudy.terms import Artifact

SENTENCE = "the film was good bad fine dull a bright slow story with and of an actor plot scene music never again"
WORDS = SENTENCE.split()


def make_examples(count: int, name: str = "remarks", words: int = 5) -> list[Example]:
    """`count` examples of various lengths whose answer follows from the text."""
    rows = []
    for n in range(count):
        good = n % 2 == 0
        text = " ".join(WORDS[(n * 7 + k * 3) % len(WORDS)] for k in range(words + n % 7))
        rows.append(
            Example(
                id=f"{name}-{n}",
                prompt=(Turn(role="user", content=f"Good or bad? {text} {'good' if good else 'bad'}"),),
                completion="positive" if good else "negative",
                provenance=Provenance(source=name, row=n, generator="template:0"),
            )
        )
    return rows


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `tiny`: a random Llama with two layers and a BPE tokenizer of a few hundred tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    models_folder = tmp_path_factory.mktemp("models")
    folder = models_folder / "tiny"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    corpus = [f"### User:\nGood or bad? {' '.join(WORDS)}\n### Assistant:\npositive negative"] * 4
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return models_folder


@pytest.fixture(scope="session")
def examples() -> Callable[..., list[Example]]:
    """`examples(count, name="remarks", words=5)`."""
    return make_examples


@pytest.fixture(scope="session")
def put_dataset() -> Callable[..., Artifact]:
    """`put_dataset(store, folder, name, rows, watched=[])`: a dataset artifact with `rows` to train on."""
    return store_dataset


def store_dataset(
    store: FsspecArtifactStore, folder: Path, name: str, rows: list[Example], watched: Sequence[Example] = ()
) -> Artifact:
    folder.mkdir(parents=True)
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "validation.jsonl", watched)
    (folder / "card.json").write_text(json.dumps({"name": name}))
    return store.put(f"runs/r/datasets/{name}", folder)
