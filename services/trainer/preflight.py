"""Looks before training whether it can work, and says in one paragraph what to change when it cannot.

`check_base`, `check_datasets` and `check_validation` need no torch and run in the service; the others look at the tokenizer
and at a real batch, in the child.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.bases import Base, tensors
from understudy.errors import Invalid
from understudy.service import machine

MIN_EXAMPLES = 10
"""Fewer examples than this after leaving out the too long ones: not worth training (the data itself may be smaller)."""


def check_base(base: Base, quantize: str) -> None:
    """Raises `Invalid` when a local base is damaged, or its weights cannot fit into the memory that this process may take."""
    if base.revision:  # on a hub: seen when it is loaded
        return
    folder = Path(base.path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Invalid(
            f"Base model `{base.name}`: {folder / 'config.json'} cannot be read ({error})", "Download it again."
        ) from error
    if not config.get("architectures"):
        raise Invalid(
            f"Base model `{base.name}`: {folder / 'config.json'} names no architecture",
            "Is it a causal language model?",
        )
    files = sorted(folder.glob("*.safetensors"))
    weights = sum(path.stat().st_size for path in files)
    if not weights:
        raise Invalid(
            f"Base model `{base.name}`: there is no .safetensors file in {folder}",
            "Convert its weights to safetensors.",
        )
    for path in files:
        _check_whole(base.name, path)
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise Invalid(
            f"Base model `{base.name}`: there is no tokenizer in {folder}", "Save its tokenizer beside the weights."
        )
    needed = weights * (0.4 if quantize == "nf4" else 1.0)  # as stored; any real need is higher
    if needed > (memory := machine.memory()):
        raise Invalid(
            f"Base model `{base.name}` needs at least {needed / 2**30:.1f} GiB of memory and the trainer may take {memory / 2**30:.1f}",
            "Set `training.quantize: nf4` or take a smaller base.",
        )


def _check_whole(base: str, path: Path) -> None:
    """Raises `Invalid` when a file of weights has another size than its own header says. Looks at no weight."""
    size = path.stat().st_size
    try:
        entries, begin = tensors(path)
        end = begin + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        if size != end:
            raise ValueError(f"it has {size} bytes, and its header says {end}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise Invalid(f"Base model `{base}`: {path} is damaged ({error})", "Download it again.") from error


def check_datasets(folders: Mapping[str, Path], item: str) -> None:
    """Raises `Invalid` when a dataset of `item` has no training row."""
    for name, folder in folders.items():
        split = folder / "train.jsonl"
        if not split.is_file() or split.stat().st_size == 0:
            raise Invalid(
                f"Dataset `{name}` has no training rows, and `{item}` trains on it",
                f"Raise `datasets.{name}.rows.train`, or see in its rejected.jsonl why no row became an example.",
            )


def check_validation(folders: Mapping[str, Path], item: str) -> None:
    """Raises `Invalid` when no dataset of `item` has a validation row, by which its best checkpoint could be told."""
    splits = [folder / "validation.jsonl" for folder in folders.values()]
    if not any(split.is_file() and split.stat().st_size for split in splits):
        raise Invalid(
            f"`{item}` shall keep its best checkpoint, and {', '.join(folders)} has no validation rows",
            f"Raise `datasets.{min(folders)}.rows.validation`, or use `training.keep: last`.",
        )


def check_lengths(name: str, kept: int, left_out: int, max_length: int) -> None:
    """Raises `Invalid` when too few of a dataset's examples are short enough."""
    if kept < min(MIN_EXAMPLES, kept + left_out) or kept == 0:
        raise Invalid(
            f"Only {kept} of {kept + left_out} training examples of `{name}` have at most {max_length} tokens",
            "Raise `training.max_length`, or shorten the texts; longer examples are left out, never cut.",
        )


def stop_tokens(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's end token and those of the model's generation config.

    Raises `Invalid` when the tokenizer has none, because the adapter could never learn to stop.
    """
    if tokenizer.eos_token_id is None:
        raise Invalid(
            f"The tokenizer of {tokenizer.name_or_path} has no end-of-sequence token", "Set `eos_token` in its config."
        )
    more = getattr(generation_config, "eos_token_id", None) or ()
    return frozenset((tokenizer.eos_token_id, *((more,) if isinstance(more, int) else more)))


def check_batch(labels: Iterable[Sequence[int]], answers: Iterable[Sequence[int]], stops: frozenset[int]) -> None:
    """What the loss sees of a batch is each row's answer, its stop token included, and nothing of the prompt.

    `labels` are the collated rows (-100 = no loss), `answers` the token ids of the answers. A failure is a bug, not bad input.
    """
    for row, answer in zip(labels, answers, strict=True):
        seen = [label for label in row if label != -100]
        if seen != list(answer):
            raise AssertionError(f"the loss sees {seen} instead of the answer {list(answer)}")
        if seen[-1] not in stops:
            raise AssertionError(f"the answer {seen} does not end in one of the stop tokens {sorted(stops)}")
