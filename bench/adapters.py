"""From *trained* to the first token: a ServingRequested is published, the adapter is picked up, put into the engine's folder, gated,
announced, and answers a chat through the gateway. The real service and the real engine, warm; the bundled base.

Prints the median of several adapters, the parts, and beside it, in the same run, what a naive push to the engine costs
(`load_lora_adapter`, then the same chat): no queue, no gate, no log. Target: at most 300 ms on a local disk. The adapters
have random weights with probes measured by PEFT; where vLLM is missing there is nothing to measure.

    python -m bench.adapters [adapters]
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from understudy.bases import planned
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import ItemFailed, ModelServed, Progress, ServingRequested, decode
from understudy.plan import Item, Plan
from understudy.recipe import Training
from understudy.service.ports import free_ports
from understudy.settings import PROJECT
from understudy.store import keys
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.plans import put_plan
from understudy.testing import processes

BASE = "seedling"
PARTS = {
    "pick up": "bus, loop, plan",
    "copy": "fetched from the store, linked into the folder, its turn on the engine",
    "gate": "loaded, measured with and twice without, renamed, loaded under its name, published with the commit",
    "first token": "heard of by who waits, and a streamed chat through the gateway",
}
MAKE = """
import json, sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
base, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(base)
prompts = [tokenizer(text)["input_ids"] for text in (base / "README.md").read_text().splitlines() if 60 < len(text) < 110][:4]
def logprobs(model):
    with torch.no_grad():
        scores = [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in prompts]
    return [[s[i, t].item() for i, t in enumerate(ids[1:])] for s, ids in zip(scores, prompts)]
for number in range(count):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = logprobs(model)
    torch.manual_seed(number)
    lora = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    for name, weight in lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.02)
    lora.peft_config["default"].base_model_name_or_path = base.name
    lora.save_pretrained(folder / str(number))
    probes = [dict(token_ids=i, base_logprobs=b, adapter_logprobs=a) for i, b, a in zip(prompts, before, logprobs(lora))]
    (folder / str(number) / "probe.json").write_text(json.dumps({"probes": probes}))
"""


def heard(bus: EmbeddedBus, item: str) -> tuple[str, float, float, float]:
    """Once `item` is served: its model, and the wall-clock times at which it was begun with, measured and announced."""
    said: dict[str, float] = {}
    for record in bus.replay(["progress", "model-served", "run-control"], follow=True):
        message = decode(record.value) if record else None
        if isinstance(message, Progress) and message.item == item:
            said.setdefault(message.step, message.at)
        elif isinstance(message, ItemFailed):
            raise SystemExit(message.reason)
        elif record and isinstance(message, ModelServed) and message.item == item:
            measured = said["checking against training"]
            return message.model, said.get("loading", measured), measured, record.timestamp
    raise AssertionError


def chat(url: str, model: str) -> float:
    """Seconds from the request to the first piece of the answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "It works well."}],
        "max_tokens": 4,
        "stream": True,
    }
    began = time.perf_counter()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as answer:
        answer.raise_for_status()
        next(line for line in answer.iter_lines() if line.startswith("data: {"))
    return time.perf_counter() - began


def push(engine: str, name: str, folder: Path) -> float:
    """Seconds until the first token of an adapter that is pushed to the engine, without anything else."""
    began = time.perf_counter()
    body = {"lora_name": name, "lora_path": str(folder)}
    httpx.post(f"{engine}/v1/load_lora_adapter", json=body, timeout=60, trust_env=False).raise_for_status()
    chat(engine, name)
    return time.perf_counter() - began


def engine_of(data: Path) -> str:
    """URL of the engine of a data folder."""
    for line in map(str.split, processes(data).values()):
        if "--served-model-name" in line:
            return f"http://127.0.0.1:{line[line.index('--port') + 1]}"
    raise SystemExit("no engine")


def measure(folder: Path, count: int) -> None:
    data, models, made = folder / "data", PROJECT / "models", folder / "made"
    subprocess.run(
        [sys.executable, "-c", MAKE, str(models / BASE), str(made), str(count)], check=True, stderr=subprocess.DEVNULL
    )
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    env = {**os.environ, "UNDERSTUDY_DATA": str(data), "UNDERSTUDY_PORT": str(port), "UNDERSTUDY_BASE": BASE}
    env |= {"UNDERSTUDY_HOLD_SECONDS": "240", "UNDERSTUDY_LOG_LEVEL": "WARNING"}
    service = subprocess.Popen([sys.executable, "-m", "services.inference"], env=env, cwd=PROJECT)
    try:
        while service.poll() is None:
            try:
                chat(url, BASE)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        bus = EmbeddedBus(data / "bus.sqlite")
        store = FsspecArtifactStore((data / "artifacts").resolve().as_uri(), folder / "cache")
        items = tuple(Item(name=f"v{n}", base=0, training=Training(), ends_at="served") for n in range(count))
        plan = put_plan(store, "bench", Plan(name="bench", bases=(planned(BASE, models),), items=items))
        totals, pushes, parts = [], [], []
        for number, item in enumerate(items):
            adapter = store.put(keys.adapter("bench", item.name), made / str(number))
            request = ServingRequested(run="bench", item=item.name, index=number, plan=plan, adapter=adapter)
            began = time.time()
            bus.publish(request)
            model, begun, measured, announced = heard(bus, item.name)
            chat(url, model)
            ended = time.time()
            totals.append(ended - began)
            parts.append((begun - began, measured - begun, announced - measured, ended - announced))
            pushes.append(push(engine_of(data), f"pushed-{number}", made / str(number)))
    finally:
        service.terminate()
        service.wait(30)
    print(
        f"trained -> first token: median {_ms(totals)}, {_ms([max(totals)])} at most, of {count} adapters (target 300 ms)"
    )
    for part, times in zip(PARTS, zip(*parts, strict=True), strict=True):
        print(f"  {part:12} {_ms(times):>8}  {PARTS[part]}")
    ratio = statistics.median(totals) / statistics.median(pushes)
    print(f"pushed to the engine, without any of it: {_ms(pushes)}; {ratio:.1f} times that")


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f} ms"


def main() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise SystemExit("no vLLM here")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder).resolve(), count)


if __name__ == "__main__":
    main()
