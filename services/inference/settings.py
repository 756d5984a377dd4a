"""Settings of inference, on top of those every service has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from understudy.service import machine
from understudy.settings import Settings

HttpUrl = Annotated[str, Field(pattern=r"^(http://[^/:]+(:\d+)?/?)?$")]
"""`http://host[:port]`, or empty."""


class InferenceSettings(Settings):
    """The endpoint, the engines behind it, and the services it passes other families on to."""

    port: int = Field(default=8000, ge=0, le=65535)
    base: str = ""
    """Base whose engine is started at once; others start when a run or a request wants them."""
    datagen_url: HttpUrl = "http://127.0.0.1:8001"
    trainer_url: HttpUrl = "http://127.0.0.1:8002"
    evaluator_url: HttpUrl = "http://127.0.0.1:8003"
    max_body: int = Field(default=32 * 1024**2, gt=0)
    """Bytes of a completion request; uploads are bounded by the service that takes them."""
    hosts: str = ""
    """Further names, with commas, by which it may be asked without a key; those of loopback always may."""
    cors: str = ""
    """Origins, with commas, whose pages may ask from a browser: `https://app.example`. Empty: none."""
    hold_seconds: float = Field(default=60, ge=0)
    """How long a request waits for an engine that is starting before it is answered with 503."""

    max_engines: int = Field(default=4, ge=1)
    """Engines at once. Each takes memory: of a small base on a CPU some 2 GB. When another is needed, the least recently used idle
    one is ended; when none is idle, it is waited for."""
    engine_url: HttpUrl = ""
    """An engine that runs elsewhere and sees the same folder of adapters. Empty: engines are our children."""
    engine_device: Literal["cpu", "cuda"] = "cpu"
    """What engines compute on."""
    engine_threads: int = Field(default_factory=lambda: max(1, min(16, machine.cores() // 2)), ge=1, le=256)
    """CPU threads of an engine, not pinned. Half of the cores: threads that wait for one another beside a training that
    has the other half are slower than one alone (6x on two cores)."""
    engine_dtype: str = "float32"
    """float32 repeats to the last digit that matters to the gate; on a GPU set `auto`."""
    engine_timeout: float = Field(default=300, gt=0)
    """Seconds an engine may take until it is healthy."""
    max_model_len: int = Field(default=1024, ge=16)
    """Tokens of prompt and answer, bounded by what the base can."""
    max_lora_rank: int = Field(default=16, ge=1)
    """Rank that engines are ready for; one that meets a larger adapter restarts once with that."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """Of an engine on a CPU."""
    gpu_memory: float = Field(default=0.45, gt=0, le=1)
    """Share of a GPU's memory that an engine takes for itself: the trainer may want the rest of the same one."""
    gate_tolerance: float = Field(default=0.1, gt=0, lt=0.3)
    """How far the adapter's effect in the engine may be from its effect in training, relative to that. See `gate.py` for what
    was measured: half of an adapter is off by 0.32 or more."""

    def adapters(self) -> Path:
        """The folder that engines read adapters from."""
        return self.data.resolve() / "served"
