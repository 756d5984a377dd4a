"""How vLLM is started: its command line, environment, working directory and log. Restarts nothing (`local.py`).

An engine fetches its adapters from a folder by itself (`folder.py`), those that say they belong to what it has as `--model`. The
trainer writes the base's name there, as on any other machine it would; so a base in a folder is started by its name, with
the folder that holds it as working directory.

`python -m services.inference.launch` becomes the engine of UNDERSTUDY_BASE: what a container does that holds an engine alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn, Protocol

from services.inference.guard import KEY
from services.inference.settings import InferenceSettings
from understudy.bases import Base, resolve
from understudy.errors import FATAL_EXIT, Invalid, UnderstudyError
from understudy.service.child import Child
from understudy.service.token import internal_token
from understudy.settings import PROJECT

MOST_ANSWERS = 128
"""Answers to one prompt, and beams, that one request may ask for; OpenAI's own bound."""
MOST_PROMPTS = 256
"""Prompts of one request; the gate asks for a few dozen."""
NOWHERE = "media.invalid"
"""The one host that pictures may be fetched from: none (RFC 2606). They come in the request itself, or not at all."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""

# Where adapters may sit: the linear layers inside the blocks, by the names that model families give them. Without this list
# vLLM also makes room for adapters on lm_head, and its CPU code for that ends the engine when prompt log-probabilities
# of several requests are computed in one batch. An adapter elsewhere does not pass the gate.
TARGETS = (
    "q_proj k_proj v_proj qkv_proj o_proj out_proj gate_proj up_proj gate_up_proj down_proj query_key_value dense"
    " dense_h_to_4h dense_4h_to_h c_attn c_proj c_fc fc1 fc2 fc_in fc_out"
)

# vLLM on a CPU imports everything three times, one process after the other: server, engine core and worker, each spawned
# afresh. Here the core is forked from the server, with all imports done, and works itself instead of through a worker
# (`command` asks for that): less than half of the CPU seconds. Nothing has computed at the time of the fork, so the
# thread pools that do not survive one do not exist yet.
#
# And what vLLM's CPU code does wrong in a batch of several models is put right: -1, which stands for "no adapter", is
# taken there as a place in an array, the last one, so that requests for the base were computed with whatever adapter had
# that place (vllm#48421, open). Every adapter's part goes through `bgmv_shrink`; where there is none it is zero.
LAUNCH = """
import multiprocessing
from vllm.lora.ops import torch_ops
from vllm.lora.ops.torch_ops import lora_ops
shrink = lora_ops.bgmv_shrink
def bgmv_shrink(inputs, weights, output, indices, scaling=1.0):
    shrink(inputs, weights, output, indices, scaling)
    output[indices < 0] = 0
torch_ops.bgmv_shrink = lora_ops.bgmv_shrink = bgmv_shrink
from vllm.lora.punica_wrapper import punica_cpu
assert punica_cpu.bgmv_shrink is bgmv_shrink, "imported before it was put right"
from vllm.v1.engine import utils
from vllm.entrypoints.launchers.api_server.entry import main
utils.get_mp_context = lambda: multiprocessing.get_context("fork")
main()
"""
ON_CPU = (
    "--distributed-executor-backend vllm.v1.executor.uniproc_executor.UniProcExecutor"
    " --enforce-eager --max-num-seqs 32 --max-num-batched-tokens 1024"
)


class Process(Protocol):
    """What the engine runs as; `Child` is one."""

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""

    def stop(self) -> None:
        """End it with all that it started."""


def spawn(base: Base, settings: InferenceSettings, port: int, rank: int) -> Process:
    """Start vLLM for `base` on `port`, ready for adapters of `rank`."""
    line, env = command(base, settings, port, rank), environment(base, settings)
    env[KEY] = internal_token(settings)
    return Child(line, log=log_file(settings, base), env=env, cwd=working_directory(base))


def become(settings: InferenceSettings) -> NoReturn:
    """Put the engine of `settings.base` in the place of this process. Raises `Invalid` when there is no such base, or no folder
    for adapters."""
    if not settings.base:
        raise Invalid("UNDERSTUDY_BASE is not set", "Name the base model that this engine serves.")
    base = resolve(settings.base, settings.models)
    try:
        settings.adapters().mkdir(parents=True, exist_ok=True)
    except OSError as error:  # vLLM does not start without it
        why = f"There is no folder {settings.adapters()}, and it cannot be made ({error.strerror})"
        raise Invalid(why, "Mount there what inference writes adapters to.") from error
    os.chdir(working_directory(base) or ".")
    line = command(base, settings, settings.port, covering_rank(settings.max_lora_rank), host=settings.host)
    env = {**os.environ, **environment(base, settings)}
    if settings.internal_token:  # else it is open in its network: who else is there, the operator decides
        env[KEY] = internal_token(settings)
    os.execve(line[0], line, env)


def environment(base: Base, settings: InferenceSettings) -> dict[str, str]:
    """What the engine needs in its environment, on top of ours."""
    env = {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(settings.engine_threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(settings.adapters()),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75",
        "VLLM_MAX_N_SEQUENCES": str(MOST_ANSWERS),
        "VLLM_MAX_COMPLETION_PROMPTS": str(MOST_PROMPTS),
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH")))),  # for `guard.py`
    }
    if settings.engine_device == "cpu":
        # Eager mode still compiles one small function at the first request for log-probabilities; where there is no C++ compiler,
        # as in an image, that ends the engine.
        env["TORCH_COMPILE_DISABLE"] = "1"
    if base.revision is None:
        env["HF_HUB_OFFLINE"] = "1"
    return env


def command(base: Base, settings: InferenceSettings, port: int, rank: int, host: str = "127.0.0.1") -> list[str]:
    """The engine's command line. `-P`: whatever lies in the working directory is not imported."""
    on_cpu = settings.engine_device == "cpu"
    start = ["-c", LAUNCH] if on_cpu else ["-m", "vllm.entrypoints.openai.api_server"]
    line = [sys.executable, "-P", *start, "--host", host, "--port", str(port)]
    line += ["--model", base.name, "--served-model-name", base.name, "--seed", "0"]
    line += ["--dtype", settings.engine_dtype, "--max-model-len", str(model_len(base, settings))]
    line += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "4", "--max-cpu-loras", "16"]
    line += ["--lora-target-modules", *TARGETS.split()]
    line += ON_CPU.split() if on_cpu else ["--gpu-memory-utilization", str(settings.gpu_memory)]
    line += ["--middleware", "services.inference.guard.Guard", "--disable-fastapi-docs", "--disable-uvicorn-access-log"]
    line += ["--allowed-media-domains", NOWHERE]
    if base.revision:
        line += ["--revision", base.revision, "--tokenizer-revision", base.revision]
    if base.template:
        line += ["--chat-template", str(base.template)]
    return line


def working_directory(base: Base) -> Path | None:
    """Where the base's name is its path; None for one of the hub, whose name is its id."""
    return Path(base.path).parent if base.revision is None else None


def model_len(base: Base, settings: InferenceSettings) -> int:
    """Tokens of prompt and answer that the engine takes: the setting, bounded by what a local base can."""
    config = Path(base.path) / "config.json"
    if base.revision is None and config.is_file():
        limit = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
        if isinstance(limit, int):
            return min(limit, settings.max_model_len)
    return settings.max_model_len


def log_file(settings: InferenceSettings, base: Base) -> Path:
    """Where the engine's own output goes."""
    return settings.data.resolve() / "logs" / f"engine-{base.name.replace(os.sep, '--')}.log"


def covering_rank(rank: int) -> int:
    """The smallest rank vLLM can be started with that covers `rank`."""
    return next((allowed for allowed in RANKS if allowed >= rank), RANKS[-1])


if __name__ == "__main__":
    try:
        become(InferenceSettings())
    except UnderstudyError as error:
        print(f"engine: {error}", file=sys.stderr)
        sys.exit(FATAL_EXIT)
