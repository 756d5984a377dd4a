"""Fills /venv in the build stage of an image: the kernel's dependencies and those of some extras, and nothing else.

    python install.py datagen,s3              # beside pyproject.toml and constraints.txt, which name packages and versions
    python install.py trainer,s3 --torch cpu

Does not install the project itself: its sources are copied in later, so that a change of code rebuilds in seconds. Needs
only the standard library and pip.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

VENV = Path("/venv")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# Inside an image nothing is compiled, and no package tests itself.
UNUSED = (
    "torch/include",
    "torch/bin/test_*",
    "torch/test",
    "pyarrow/include",
    "*/tests",
)
UNUSED_ON_CPU = (
    "triton",  # compiles for GPUs; xgrammar names it, vLLM's CPU build switches it off
    "triton-*.dist-info",
    "bitsandbytes/libbitsandbytes_cuda*.so",
)


def main() -> None:
    """Parse the command line and fill the environment; exits with pip's code when pip fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", help="names from pyproject.toml, separated by commas")
    parser.add_argument("--torch", choices=("cpu", "cuda"), help="the build of torch, if the extras need it")
    asked = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]

    # The environment gets no pip of its own: the image never installs anything.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], check=True)
    if asked.torch:
        (torch,) = [package for package in extras["trainer"] if package.startswith("torch==")]
        if asked.torch == "cuda":
            pip(torch)
        elif pip(f"{torch}+cpu", check=False):  # where pip finds it; else PyTorch's own index has it
            pip("--index-url", CPU_INDEX, f"{torch}+cpu")
    wanted = [package for extra in asked.extras.split(",") for package in extras[extra]]
    pip("-c", "constraints.txt", *project["dependencies"], *wanted)

    (packages,) = VENV.glob("lib/python*/site-packages")
    for pattern in UNUSED + (() if asked.torch == "cuda" else UNUSED_ON_CPU):
        for path in packages.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    # `understudy topics` and the like inside a container; the package itself is found by PYTHONPATH.
    command = VENV / "bin/understudy"
    command.write_text(f"#!{VENV}/bin/python\nfrom understudy_cli import main\n\nmain()\n", encoding="utf-8")
    command.chmod(0o755)


def pip(*arguments: str, check: bool = True) -> int:
    """`pip install` into the environment; the exit code, if that is not to end us."""
    command = [sys.executable, "-m", "pip", "--python", str(VENV / "bin/python"), "install", "--quiet", *arguments]
    code = subprocess.run(command).returncode
    if check and code:
        sys.exit(code)
    return code


if __name__ == "__main__":
    main()
