"""A base model of a few hundred kilobytes with random weights, and random LoRA adapters on it: enough to drive a real
engine. Says nothing sensible; log-probabilities are real. Run as a script, because it imports torch:

    python tiny.py <folder>        makes <folder>/tiny and <folder>/adapters/{one,two,wrong}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CORPUS = [
    "the acting was good and the story was touching",
    "a dull film with a weak script and no ideas",
    "user assistant system sentiment positive negative",
    "i liked the music but the ending was too long",
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PROBES = ["the acting was good", "a weak script", "user: i liked the music\nassistant:"]


def make(folder: Path) -> None:
    """Base, two adapters with matching probes, and one whose probes were measured on another adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    )
    base = folder / "tiny"
    fast.save_pretrained(base)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            initializer_range=0.1,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    model.save_pretrained(base)

    def logprobs(network: torch.nn.Module, ids: list[int]) -> list[float]:
        with torch.no_grad():
            scores = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [scores[i, token].item() for i, token in enumerate(ids[1:])]

    prompts = [fast(text)["input_ids"] for text in PROBES]
    measured: dict[str, list[dict[str, list[float]]]] = {}
    for number, name in enumerate(("one", "two", "wrong")):
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        before = [logprobs(plain, ids) for ids in prompts]
        torch.manual_seed(1 + number)
        lora = get_peft_model(plain, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
        for key, weight in lora.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(weight, std=0.05)
        lora.eval()
        after = [logprobs(lora, ids) for ids in prompts]
        measured[name] = [
            {"token_ids": ids, "base_logprobs": b, "adapter_logprobs": a}
            for ids, b, a in zip(prompts, before, after, strict=True)
        ]
        target = folder / "adapters" / name
        lora.peft_config["default"].base_model_name_or_path = base.name  # as the trainer does
        lora.save_pretrained(target)
        probes = measured["one" if name == "wrong" else name]
        (target / "probe.json").write_text(json.dumps({"probes": probes}))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
