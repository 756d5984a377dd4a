"""Which files of a data set's repository are its `train` split: what its README says, or else what their names say.

    files = train_files(["README.md", "data/train.csv", "data/test.csv"], readme)      # ["data/train.csv"]

A README is anybody's text: it can choose among the files that the repository has, and nothing else. The conventions are
those of the hub (https://huggingface.co/docs/hub/datasets-data-files-configuration). Asks nobody (`hub.py`) and reads no data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml

from understudy import document
from understudy.errors import Invalid
from understudy.interrupt import check

README = "README.md"
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words by which folders and files are taken for it."""
NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SHARD = re.compile(r"data/([\w.]+)-\d{5}-of-\d{5}[^/]*")
_BETWEEN = re.compile(r"[-._ 0-9]+")
"""Around such a word."""
LONGEST, MOST, DEEPEST = 300, 200, 20
"""Characters of a pattern in a README, how many of them are looked at, and folders in one another with data."""


def train_files(paths: Collection[str], readme: str, suffixes: Collection[str]) -> list[str]:
    """The files of the `train` split, or of the only one; those of one format. Raises `Invalid` when that cannot be told.

    `suffixes`: of the formats that can be read.
    """
    there = sorted(path for path in paths if _is_data(path))
    splits = _as_told(there, readme) or _by_name(there)
    split = "train" if "train" in splits else next(iter(splits), "")
    if split != "train" and len(splits) > 1:
        raise Invalid(
            f"It has the splits {_some(splits)} but no `train`", "Download the one you want, and upload it as a file."
        )
    found = splits.get(split, [])
    kinds = Counter(kind for path in found if (kind := _suffix(path)) in suffixes)
    if not kinds:
        others = f" It has {_some({_suffix(path) or 'no suffix' for path in found})}." if found else ""
        raise Invalid(f"It has no data in a known table format.{others}", f"Known are {', '.join(suffixes)}.")
    kind = kinds.most_common(1)[0][0]
    return [path for path in found if _suffix(path) == kind]


def _is_data(path: str) -> bool:
    """Whether it may be data: no file of git's or the hub's, and nothing that is no path inside of the repository."""
    parts = path.split("/")
    plain = (
        path.isprintable() and "\\" not in path and len(parts) <= DEEPEST and not any(p in ("", "..") for p in parts)
    )
    return plain and not any(part.startswith((".", "__")) for part in parts) and parts[-1] not in (README, *NO_DATA)


def _suffix(path: str) -> str:
    return "." + path.rpartition(".")[2].lower() if "." in path.rpartition("/")[2] else ""


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(name[:50] for name in names)[:10])


def _by_name(paths: Sequence[str]) -> dict[str, list[str]]:
    """Split -> its files, by shards in `data/`, else by folders, else by names of files; all are `train` where none says anything."""
    for told in (_shard, _folder, _file):
        splits: dict[str, list[str]] = {}
        for path in paths:
            if split := told(path):
                splits.setdefault(split, []).append(path)
        if splits:
            return splits
    return {"train": list(paths)} if paths else {}


def _shard(path: str) -> str | None:
    found = _SHARD.fullmatch(path)
    return found[1] if found else None


def _folder(path: str) -> str | None:
    return next((split for part in path.split("/")[:-1] if (split := _word(part))), None)


def _file(path: str) -> str | None:
    return _word(path.rpartition("/")[2])


def _word(name: str) -> str | None:
    words = _BETWEEN.split(name.casefold())
    return next((split for split, known in SPLITS.items() if any(word in known for word in words)), None)


def _as_told(paths: Sequence[str], readme: str) -> dict[str, list[str]] | None:
    """Split -> its files as the README's default configuration has them; None when it says nothing that can be followed.

    Raises `Invalid` when there are several configurations and none is the default, or one names files that are not there.
    """
    configs = _configs(readme)
    if not configs:
        return None
    config = _default(configs)
    said = config.get("data_dir")
    folder = said.strip("/") if isinstance(said, str) and len(said) <= LONGEST else ""
    inside = [path for path in paths if path.startswith(f"{folder}/")] if folder else paths
    patterns = _patterns(config.get("data_files"))
    if patterns is None:
        return _by_name(inside) if folder and inside else None
    splits = {}
    for split, several in patterns.items():
        check()
        wanted = [f"{folder}/{pattern}" if folder else pattern for pattern in several]
        splits[split] = list(dict.fromkeys(p for pattern in wanted for p in inside if _matches(p, pattern)))
    if empty := [split for split, found in splits.items() if not found]:
        raise Invalid(f"Its README names files of `{empty[0][:50]}` that are not there", "Choose another revision.")
    return splits


def _configs(readme: str) -> list[Mapping[str, Any]]:
    front = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", readme, re.DOTALL)
    try:
        told = document.parsed(front[1]) if front else None
        document.check(told, "Its README")
    except (yaml.YAMLError, ValueError, RecursionError, Invalid):
        return []
    configs = told.get("configs") if isinstance(told, dict) else None
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _default(configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    marked = [each for each in configs if each.get("default") is True or each.get("config_name") == "default"]
    if len(configs) == 1 or len(marked) == 1:
        return (marked or configs)[0]
    raise Invalid(
        f"It has the configurations {_some({name for each in configs if isinstance(name := each.get('config_name'), str)})} and no default",
        "Download the one you want, and upload it as a file.",
    )


def _patterns(data_files: object) -> dict[str, list[str]] | None:
    """Split -> patterns of files in the repository; None when there are none, or one of them is anything else."""
    entries = data_files if isinstance(data_files, list) else [data_files] if data_files else []
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        split, several = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for pattern in several if isinstance(several, list) else [several]:
            if not isinstance(pattern, str) or not isinstance(split, str) or not _is_relative(pattern):
                return None
            patterns.setdefault(split, []).append(pattern.removeprefix("./"))
    return patterns if 0 < sum(map(len, patterns.values())) <= MOST else None


def _is_relative(pattern: str) -> bool:
    """Whether it can only mean files of the repository: no address, no path from the root or the home, no way up."""
    odd = any(sign in pattern for sign in ":\\~") or pattern.startswith("/") or ".." in pattern.split("/")
    return 0 < len(pattern) <= LONGEST and not odd


def _matches(path: str, pattern: str) -> bool:
    """As in a shell: `*` stays within a folder, `**` does not. Takes no longer for an odd pattern."""
    parts = path.split("/")
    reached = {0}
    for wanted in pattern.split("/"):
        if not reached:
            return False
        if wanted == "**":
            reached = set(range(min(reached), len(parts) + 1))
        else:
            reached = set(_steps(parts, wanted, reached))
    return len(parts) in reached


def _steps(parts: Sequence[str], wanted: str, reached: Collection[int]) -> Iterator[int]:
    for at in reached:
        if at < len(parts) and fnmatchcase(parts[at], wanted):
            yield at + 1
