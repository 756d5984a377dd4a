"""The part of training that needs torch: base, LoRA, TRL's trainer in the planned order, and the probes.

Heavy libraries are imported inside the functions. Does not read datasets, plan the order (`data.py`) or write the adapter (`train.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from services.trainer.checkpoints import reporter
from services.trainer.data import Corpus, Draw, Row
from services.trainer.job import Job, JobFolder
from services.trainer.validation import Watched, watcher
from understudy.errors import Invalid, disk_full
from understudy.records import Probe


def load_tokenizer(job: Job) -> Any:
    """The base's tokenizer, with the chat template that every station uses."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base.path, revision=job.base.revision)
    if job.base.template:
        tokenizer.chat_template = job.base.template.read_text(encoding="utf-8")
    if tokenizer.chat_template is None:
        raise Invalid(
            f"Base model `{job.base.name}` has no chat template",
            "Take its instruction-tuned sibling, or a local copy of it.",
        )
    return tokenizer


def load_base(job: Job, device: str, quantize: str) -> Any:
    """The base model: float32 on a CPU, bfloat16 on a GPU, or NF4 with that as its compute type."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind = torch.bfloat16 if device == "cuda" else torch.float32
    four_bits = None
    if quantize == "nf4":
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            job.base.path,
            revision=job.base.revision,
            dtype=kind,
            device_map={"": device},
            quantization_config=four_bits,
        )
    except (OSError, ValueError) as error:
        if disk_full(error, job.base.path):
            raise
        raise Invalid(
            f"Base model `{job.base.name}` cannot be loaded: {error}", "Is it a complete causal language model?"
        ) from error


def make_trainer(
    job: Job,
    folder: JobFolder,
    model: Any,
    tokenizer: Any,
    corpora: Mapping[str, Corpus],
    order: Sequence[Draw],
    rows: Watched | None,
    device: str,
) -> Any:
    """TRL's SFTTrainer with a LoRA on `model`; it sees the examples exactly in `order`, and is watched on `rows`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    settings = job.training
    keep_best = settings.keep == "best"
    examples = [row for corpus in corpora.values() for row in corpus.rows]
    starts = dict(zip(corpora, accumulate((len(corpus.rows) for corpus in corpora.values()), initial=0), strict=False))
    lengths = [len(corpora[draw.dataset].rows[draw.row].ids) for draw in order]
    step_tokens = [sum(lengths[i : i + settings.batch_size]) for i in range(0, len(order), settings.batch_size)]

    class PlannedTrainer(SFTTrainer):  # type: ignore[misc]
        """Takes the examples in the planned order, and writes no model card of its own at every checkpoint."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return [starts[draw.dataset] + draw.row for draw in order]

        def create_model_card(self, *_: Any, **__: Any) -> None:
            return

    targets = settings.lora.targets
    lora = LoraConfig(
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    _check_targets(model, targets)
    trainer = PlannedTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder.checkpoints),
            num_train_epochs=1,  # the order holds all passes
            per_device_train_batch_size=job.micro_batch,
            gradient_accumulation_steps=settings.batch_size // job.micro_batch,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
            warmup_steps=int(settings.warmup * len(step_tokens)),
            weight_decay=settings.weight_decay,
            seed=job.seed,
            use_cpu=device == "cpu",
            bf16=device == "cuda",
            gradient_checkpointing=False,
            max_length=None,  # too long ones are left out already
            dataset_kwargs={"skip_prepare_dataset": True},
            save_strategy="steps",
            save_steps=settings.checkpoint_every,
            save_total_limit=3 if keep_best else 2,  # the newest may not be sealed yet
            logging_steps=1,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=device == "cuda",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(
            {"input_ids": [list(row.ids) for row in examples], "labels": [row.labels for row in examples]}
        ),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[reporter(folder.progress, step_tokens)],
    )
    if rows:
        trainer.add_callback(watcher(trainer, rows, keep_best=keep_best))
    for parameter in trainer.model.parameters():
        if (
            parameter.requires_grad
        ):  # TRL makes a LoRA on a quantised base bfloat16, where small updates round to nothing
            parameter.data = parameter.data.to(torch.float32)
    return trainer


def take_back(model: Any, checkpoint: Path) -> None:
    """Give the adapter the weights that it had at `checkpoint`."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))


def _check_targets(model: Any, targets: tuple[str, ...] | str) -> None:
    """Raises `Invalid` when a LoRA target names no layer of the model."""
    import torch

    linear = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    } - {"lm_head"}
    if not isinstance(targets, str) and (unknown := sorted(set(targets) - linear)):
        raise Invalid(
            f"`training.lora.targets`: the base has no layer called {', '.join(unknown)}",
            f"Choose from {', '.join(sorted(linear))}, or `all-linear`.",
        )


def probe(model: Any, row: Row) -> Probe:
    """Natural-log probabilities of tokens 1..n-1 of `row`, each given those before it, under the base and under the adapter."""
    with model.disable_adapter():
        base = _logprobs(model, row)
    return Probe(token_ids=row.ids, base_logprobs=base, adapter_logprobs=_logprobs(model, row))


def _logprobs(model: Any, row: Row) -> tuple[float, ...]:
    import torch

    model.eval()
    with torch.no_grad():
        ids = torch.tensor([row.ids], device=model.device)
        found = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].float(), dim=-1)
    return tuple(round(value, 6) for value in found.gather(1, ids[0, 1:, None])[:, 0].tolist())


def on_unquantised_base(job: Job, adapter: Path, device: str) -> Any:
    """The trained adapter on the base as an engine serves it: probes on four-bit weights would not agree with any engine."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_base(job, device, "none"), adapter)
