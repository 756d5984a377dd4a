"""Makes seedling: trains its tokenizer and its 4-layer Llama from nothing on a laptop's CPU, and writes this folder.

    python models/seedling/make.py --data DATA --work WORK --minutes 80     # resumes by itself after a kill
    python models/seedling/make.py --data DATA --work WORK --export          # writes the latest checkpoint here
    python models/seedling/make.py --data DATA --check                       # what the exported model can do

The clock, not a step count, ends the training: the learning rate follows the share of `--minutes` that is used, summed over restarts, so a
training that must end earlier is started again with fewer minutes and decays from where it is. Does not tune for chat beyond the chats in
the corpus, and downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SPECIAL = ["<|pad|>", corpus.BOS, "<|system|>", "<|user|>", "<|assistant|>", corpus.END]
TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CONFIG = LlamaConfig(
    vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=1, eos_token_id=5, pad_token_id=0,
)  # fmt: skip
BATCH, LENGTH = 10, 256
"""Small batches: with a few million tokens in all, the number of steps is what is short."""
CHECKPOINT_SECONDS = 120


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised before the step (Jordan et al. 2024), in fp32 because CPUs multiply that fastest."""

    def __init__(self, matrices: list[torch.nn.Parameter]) -> None:
        super().__init__(matrices, {"lr": 0.015, "momentum": 0.95, "weight_decay": 0.05})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(buffer, group["momentum"])) * max(1, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def orthogonal(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About U V^T of x = U S V^T, by the quintic Newton-Schulz iteration with Jordan's coefficients."""
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flip else x


def make_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; adds no tokens by itself, because the chat template writes them all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=corpus.BOS, eos_token=corpus.END, pad_token="<|pad|>", model_max_length=1024,
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def blocks(sources: corpus.Sources, tokenizer: PreTrainedTokenizerFast, start: int) -> Iterator[torch.Tensor]:
    """Endless batches (BATCH, LENGTH + 1) from token `start` on: documents end to end, pass after pass."""
    need = BATCH * (LENGTH + 1)
    position, number = 0, 0
    while True:
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(
            corpus.documents(sources, number), add_special_tokens=False
        )
        stream = torch.tensor([token for document in encoded for token in document.ids], dtype=torch.int32)
        for first in range(0, len(stream) - need + 1, need):
            if position + first >= start:
                yield stream[first : first + need].view(BATCH, LENGTH + 1).long()
        position += len(stream)
        number += 1


def rate(used: float) -> float:
    """Share of the peak learning rate at share `used` of the time: short warm-up, flat, down to 2 % over the last 45 %."""
    return min(1.0, used / 0.01, max(0.02, (1 - used) / 0.45))


def bits_per_character(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Of held-out prose, in windows of LENGTH tokens."""
    total, characters = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer.encode(corpus.BOS + text)[: LENGTH + 1]])
        with torch.inference_mode():
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        characters += len(tokenizer.decode(ids[0, 1:]))
    return total / math.log(2) / characters


def train(data: Path, work: Path, minutes: float, threads: int) -> None:
    """Train until `minutes` are used, counting earlier starts; checkpoints in `work`."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    sources = corpus.load(data)
    if not (work / "tokenizer.json").exists():
        make_tokenizer(iter(corpus.documents(sources, 0))).save_pretrained(work)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    torch.manual_seed(17)
    model = LlamaForCausalLM(CONFIG)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizers = [Muon(matrices), torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)]
    peaks = [group["lr"] for o in optimizers for group in o.param_groups]
    step, tokens, used = 0, 0, 0.0
    if (work / "state.pt").exists():
        state = torch.load(work / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, tokens, used = state["step"], state["tokens"], state["seconds"]
        print(f"resumed at step {step}, {used / 60:.1f} minutes used", flush=True)

    clock, saved_at, smooth = time.monotonic(), time.monotonic(), 0.0
    for batch in blocks(sources, tokenizer, tokens):
        now = time.monotonic()
        used, clock = used + now - clock, now
        share = used / (60 * minutes)
        if now - saved_at > CHECKPOINT_SECONDS or share >= 1:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            state |= {"step": step, "tokens": tokens, "seconds": used}
            torch.save(state, work / "state.tmp")
            (work / "state.tmp").replace(work / "state.pt")
            saved_at = now
        if share >= 1:
            break
        for group, peak in zip((g for o in optimizers for g in o.param_groups), peaks, strict=True):
            group["lr"] = peak * rate(share)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + batch.numel()
        smooth = loss.item() if not smooth else 0.98 * smooth + 0.02 * loss.item()
        if step % 25 == 0:
            left = minutes - used / 60
            print(
                f"step {step} loss {smooth:.3f} {tokens / 1e6:.2f}M tokens {tokens / used:,.0f} tokens/s {left:.1f} min left",
                flush=True,
            )
    model.eval()
    print(
        f"held-out prose: {bits_per_character(model, tokenizer, sources.held_prose[:200]):.3f} bits per character",
        flush=True,
    )


def export(work: Path) -> None:
    """Write the latest checkpoint to this folder in Hugging Face format, bf16."""
    state = torch.load(work / "state.pt", weights_only=True)
    model = LlamaForCausalLM(CONFIG)
    model.load_state_dict(state["model"])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 5, 0
    model.to(torch.bfloat16).save_pretrained(HERE)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    for leftover in ("is_local", "local_files_only"):  # of having been loaded from WORK
        tokenizer.init_kwargs.pop(leftover, None)
    tokenizer.save_pretrained(HERE)
    print(
        f"exported step {state['step']}: {state['tokens'] / 1e6:.1f}M tokens, {state['seconds'] / 60:.0f} minutes",
        flush=True,
    )


def check(data: Path) -> None:
    """Sentiment of held-out remarks before and after a LoRA on 300 others, and bits per character of held-out prose."""
    from peft import LoraConfig, get_peft_model

    sources = corpus.load(data)
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32).eval()
    print(json.dumps({"bits_per_character": round(bits_per_character(model, tokenizer, sources.held_prose[:200]), 3)}))
    asked = ["positive" if good else "negative" for _, good in sources.held_remarks]

    def prompt(text: str) -> str:
        question = f"Is the customer's remark positive or negative? Answer with one word.\n\nRemark: {text}"
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
        )

    def measure(rows: range) -> dict[str, float]:
        right = answered = forced = 0
        first = {label: tokenizer.encode(label)[0] for label in ("positive", "negative")}
        for row in rows:
            ids = torch.tensor([tokenizer.encode(prompt(sources.held_remarks[row][0]))])
            with torch.inference_mode():
                scores = model(ids).logits[0, -1]
                text = tokenizer.decode(
                    model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True
                )
            said = text.strip().lower()
            answered += said in first
            right += said == asked[row]
            forced += max(first, key=lambda label: scores[first[label]].item()) == asked[row]
        return {
            "accuracy": right / len(rows),
            "answers_with_a_label": answered / len(rows),
            "forced_choice": forced / len(rows),
        }

    print(json.dumps({"base": measure(range(300, 600))}))
    torch.manual_seed(17)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    total = 4 * 300 // 16
    for step in range(total):
        loss = torch.zeros(())
        for row in torch.randperm(300)[:16].tolist():
            head = tokenizer.encode(prompt(sources.held_remarks[row][0]))
            ids = torch.tensor([head + tokenizer.encode(asked[row] + corpus.END)])
            labels = ids.clone()
            labels[0, : len(head)] = -100
            loss = loss + model(ids, labels=labels).loss / 16
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / total)
        optimizer.step()
        optimizer.zero_grad()
    print(json.dumps({"after a LoRA on 300 remarks": measure(range(300, 600))}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds text/ and dolly/ (see README.md)")
    parser.add_argument("--work", type=Path, default=Path("seedling-work"), help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--export", action="store_true", help="only write the latest checkpoint to this folder")
    parser.add_argument("--check", action="store_true", help="only measure the exported model")
    options = parser.parse_args()
    if options.check:
        check(options.data)
    else:
        if not options.export:
            train(options.data, options.work, options.minutes, options.threads)
        export(options.work)
