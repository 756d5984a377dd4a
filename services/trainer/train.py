"""The program of the training child: `python -m services.trainer.train JOB_DIR` makes JOB_DIR/adapter and exits 0.

One readable recipe, top to bottom in `train`: tokenise, plan, load, fine-tune, write the adapter, measure probes. May be killed at
any moment: started again it goes on from its last sealed checkpoint and ends with the same bytes. Does not know messages or the store.

What the same bytes take beyond seeds and a checkpoint with optimizer, schedule and random state: an explicit order of the data
(`data.py`), a fixed number of threads (`launcher.py`), float32 on a CPU, sorted lists in adapter_config.json, and no clock in any file.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from services.trainer import card, data, validation
from services.trainer.checkpoints import last_checkpoint
from services.trainer.job import EXIT_DISK, EXIT_INVALID, EXIT_MEMORY, Job, JobFolder
from services.trainer.preflight import check_batch, check_lengths, stop_tokens
from understudy.errors import Invalid, disk_full
from understudy.records import Example, Probes, read_jsonl, write_json

PROBES, PROBE_TOKENS = 4, 256
"""Examples in probe.json, and the longest one that may be among them."""


def train(job: Job, folder: JobFolder) -> None:
    """Make the adapter of `job` in `folder.adapter`."""
    say = _stopwatch()
    import torch

    from services.trainer import tune

    torch.set_num_threads(job.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = tune.load_tokenizer(job)
    model = tune.load_base(job, device, job.training.quantize)
    stops = stop_tokens(tokenizer, model.generation_config)
    corpora = corpora_of(job, tokenizer, stops)
    order = plan(job, corpora)
    say(f"{len(order)} examples in order")

    rows = validation.watched(job, corpora, order, tokenizer, stops)
    trainer = tune.make_trainer(job, folder, model, tokenizer, corpora, order, rows, device)
    first = [corpora[draw.dataset].rows[draw.row] for draw in order[: job.micro_batch]]
    batch = trainer.data_collator([{"input_ids": list(row.ids), "labels": row.labels} for row in first])
    check_batch(batch["labels"].tolist(), [row.ids[row.answer :] for row in first], stops)
    resume = last_checkpoint(folder.checkpoints)
    say(f"training from {resume.name if resume else 'the start'}")
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    history = trainer.state.log_history
    kept = validation.best(history)["step"] if job.training.keep == "best" else None
    if kept is not None:
        tune.take_back(trainer.model, folder.checkpoints / f"checkpoint-{kept}")
    say("trained" if kept is None else f"trained, kept step {kept}")

    partial = folder.adapter.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    trainer.model.save_pretrained(partial, save_embedding_layers=False)
    (partial / "README.md").unlink(missing_ok=True)
    make_portable(partial / "adapter_config.json", job.base.name)
    card.write(partial, card.record(job, corpora, order, rows, history, kept, device))
    served = trainer.model if job.training.quantize == "none" else tune.on_unquantised_base(job, partial, device)
    probes = Probes(probes=tuple(tune.probe(served, row) for row in probe_rows(corpora, order)))
    write_json(partial / "probe.json", probes)
    partial.rename(folder.adapter)
    say(f"done, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


def corpora_of(job: Job, tokenizer: Any, stops: frozenset[int]) -> dict[str, data.Corpus]:
    """The tokenised training rows of every dataset of the job; raises `Invalid` when too few are short enough."""
    corpora = {}
    for name, source in job.datasets.items():
        examples = read_jsonl(source.folder / "train.jsonl", Example)
        corpora[name] = data.tokenize(examples, tokenizer, stops, job.training.max_length)
        check_lengths(name, len(corpora[name].rows), corpora[name].left_out, job.training.max_length)
    return corpora


def plan(job: Job, corpora: dict[str, data.Corpus]) -> list[data.Draw]:
    """Every example the model will see, in order; each `batch_size` of them are one optimizer step."""
    count = len(job.stages)
    if job.training.budget == "epochs":
        budgets = [data.budget((stage,), corpora, job.training.epochs) for stage in job.stages]
    else:
        total = data.budget(job.budget_stages, corpora, job.training.epochs)
        budgets = [total * (n + 1) // count - total * n // count for n in range(count)]
    drawn = data.draw(job.stages, corpora, budgets, job.shuffle)
    return data.arrange(drawn, corpora, job.training.batch_size, job.shuffle)


def probe_rows(corpora: dict[str, data.Corpus], order: list[data.Draw]) -> list[data.Row]:
    """The first few distinct short examples in the order; the shortest one where none is short."""
    rows = [corpora[draw.dataset].rows[draw.row] for draw in dict.fromkeys(order)]
    short = [row for row in rows if len(row.ids) <= PROBE_TOKENS]
    return short[:PROBES] or [min(rows, key=lambda row: len(row.ids))]


def make_portable(config: Path, base: str) -> None:
    """Rewrite adapter_config.json so that equal trainings give equal bytes: the base by its name, lists of names sorted."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = base
    content["target_modules"] = sorted(content["target_modules"])
    config.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def exit_code(error: BaseException, folder: JobFolder) -> int | None:
    """What `error` means to the service; None for an error nobody expected."""
    text = str(error)
    if isinstance(error, Invalid):
        folder.error.write_text(json.dumps({"message": text}), encoding="utf-8")
        return EXIT_INVALID
    # The libraries below raise plain RuntimeError and SafetensorError, where only the text tells.
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return EXIT_MEMORY
    if disk_full(error, folder.path) or os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
        return EXIT_DISK
    if "failed writing file" in text and shutil.disk_usage(folder.path).free < 1 << 20:  # torch.save hides the errno
        return EXIT_DISK
    return None


def _stopwatch() -> Any:
    began = time.monotonic()
    return lambda what: print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)


def main(path: Path) -> int:
    """Train the job in `path`; the exit code says how it ended."""
    folder = JobFolder(path)
    job = Job.model_validate_json(folder.file.read_bytes())
    if folder.adapter.is_dir():
        return 0
    if job.base.revision is None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # a folder needs no hub, and must not wait for one
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one adapter, one GPU
    for unused in ("sklearn", "scipy") if job.training.quantize == "nf4" else ("sklearn", "scipy", "bitsandbytes"):
        sys.modules[unused] = None  # type: ignore[assignment]  # optional to transformers and PEFT, and 4 of 9 s of imports
    try:
        train(job, folder)
    except Exception as error:
        code = exit_code(error, folder)
        if code is None:
            raise
        print(error, file=sys.stderr, flush=True)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
