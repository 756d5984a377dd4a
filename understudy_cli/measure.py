"""What `understudy plan` looks at besides the data: the base's files, and this machine.

Starts nothing, asks nobody, loads no torch. Does not compute what follows from it (`estimate.py`).
"""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.trainer.settings import TrainerSettings
from understudy.bases import Base, damaged, document, tensors
from understudy.errors import Invalid
from understudy.service.machine import cores, memory
from understudy_cli.estimate import CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS, Device, Linear, Shape
from understudy_cli.software import cuda_build

RATE_SECONDS = 0.25
EMBEDDINGS = ("embed", "wte", "wpe", "lm_head")
"""Words in the names of matrices that no LoRA sits on."""
NAMED_ALIKE = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "smollm3"))
"""Kinds of models whose layers are called in memory as in the file: others may be split or joined when they are loaded."""


class Tokens:
    """Counts tokens as the base does, as far as that can be done here."""

    def __init__(self, base: Base) -> None:
        folder = None if base.revision else Path(base.path)
        self._encode = _encoder(folder)
        self._render = _renderer(base, folder)
        self.exact = self._encode is not None and self._render is not None
        self.how = "the base's tokenizer" if self._encode else f"{CHARACTERS_PER_TOKEN} characters each"

    def lengths(self, examples: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens of each example, prompt and answer together."""
        texts = [self._render(said, answer) if self._render else said + answer for said, answer in examples]
        extra = 0 if self._render else TEMPLATE_TOKENS
        if self._encode:
            return [count + extra for count in self._encode(texts)]
        return [len(text) // CHARACTERS_PER_TOKEN + 1 + extra for text in texts]


def _encoder(folder: Path | None) -> Callable[[Sequence[str]], list[int]] | None:
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise damaged(folder / "tokenizer.json", str(error)) from error
    return lambda texts: [len(each.ids) for each in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _renderer(base: Base, folder: Path | None) -> Callable[[str, str], str] | None:
    """Renders one example with the base's chat template; None where that cannot be done."""
    source = _template(base, folder)
    if source is None:
        return None
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return None

    def render(said: str, answer: str) -> str:
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        text = template.render(messages=turns, add_generation_prompt=False, bos_token="", eos_token="")
        return str(text).rstrip()  # what follows the end of the answer is not trained on

    try:
        template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
        render("a", "b")
    except Exception:  # it wants more than we have; a template may raise anything
        return None
    return render


def _template(base: Base, folder: Path | None) -> str | None:
    path = base.template or (folder and folder / "chat_template.jinja")
    if path and path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise damaged(path, str(error)) from error
    found = document(folder, "tokenizer_config.json").get("chat_template") if folder else None
    return found if isinstance(found, str) else None


def shape(base: Base) -> Shape | None:
    """Of a base in a folder, from its config and the headers of its weights; None for one on the hub.

    Raises `Invalid` when they cannot be read.
    """
    if base.revision:
        return None
    folder = Path(base.path)
    config = document(folder, "config.json")
    named = config.get("model_type") in NAMED_ALIKE and "quantization_config" not in config
    try:
        config = config.get("text_config", config)
        entries = {
            name: entry for file in sorted(folder.glob("*.safetensors")) for name, entry in tensors(file)[0].items()
        }
        weights = {name: [int(size) for size in entry["shape"]] for name, entry in entries.items()}
        hidden, layers, vocabulary = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
        inner = int(config.get("intermediate_size") or 4 * hidden)
        parameters = sum(math.prod(size) for size in weights.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise Invalid(
            f"Base model `{base.name}`: config.json or the weights in {folder} cannot be read ({error!r})",
            "Is it a complete causal language model, with weights as safetensors?",
        ) from error
    if not weights:
        raise Invalid(
            f"Base model `{base.name}`: there are no weights in .safetensors files in {folder}", "Convert them."
        )
    matrices = {name: size for name, size in weights.items() if len(size) == 2 and name.endswith(".weight")}
    linear = tuple(
        Linear(name.split(".")[-2], *size)
        for name, size in matrices.items()
        if not any(word in name for word in EMBEDDINGS)
    )
    looked_up = vocabulary * hidden if any("lm_head" in name for name in matrices) else 0
    return Shape(parameters, parameters - looked_up, linear, layers, hidden, inner, vocabulary, named)


@dataclass(frozen=True)
class Machine:
    """What will train, if it is this machine."""

    device: Device
    memory: int
    """Bytes of the first GPU, else of the machine."""
    flops: float | None
    """Operations a second of a matrix multiplication with as many threads as a training has; None where unknown."""
    why: str = ""
    """Why it is unknown."""


def machine() -> Machine:
    """Look at this machine; takes a quarter of a second."""
    if (gpu := _gpu_memory()) and cuda_build("torch"):
        return Machine("gpu", gpu, None, "nothing here measures a GPU")
    flops = _rate()
    return Machine("cpu", memory(), flops, "" if flops else "numpy, with which it would be measured, is not installed")


def _gpu_memory() -> int | None:
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=2, check=True).stdout
        return int(answer.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _rate() -> float | None:
    try:
        import numpy
    except ImportError:
        return None
    size = 1024
    left = numpy.full((size, size), 0.5, dtype=numpy.float32)
    right = left @ left
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < RATE_SECONDS:
        left @ right
        count += 1
    rate = 2 * size**3 * count / (time.perf_counter() - started)
    return rate * min(1.0, TrainerSettings().threads / cores())  # numpy takes every core
