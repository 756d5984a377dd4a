"""`understudy plan`: on the demo, on real data, and where little can be known; it starts nothing and asks nobody."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from understudy.bases import Base
from understudy.errors import Invalid
from understudy.settings import PROJECT
from understudy_cli import measure, software
from understudy_cli.measure import Tokens, shape

Alone = Callable[..., tuple[int, str, str]]
DEMO = str(PROJECT / "recipes" / "quickstart.yaml")


def planned(alone: Alone, *arguments: str) -> dict[str, Any]:
    code, out, err = alone("plan", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def named(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in entries}


def test_the_demo_in_a_terminal(alone: Alone, tmp_path: Path) -> None:
    """Rows that were all read carry no mark, estimates do, the panel's line is there to the letter, and nothing is made."""
    began = time.monotonic()
    code, out, err = alone("plan", DEMO)
    assert code == 0, err
    assert time.monotonic() - began < 5
    assert "Plan of quickstart: 3 items, 2 of them trained" in out
    remarks = next(line for line in out.splitlines() if line.split()[:1] == ["remarks"])
    assert remarks.split()[1:7] == ["640", "0.0", "%", "400", "40", "200"]
    assert "Panel in-domain: 200 rows at 10 % disagreement see 6.3 points or more\n" in out
    assert "it fits" in out
    assert "none is asked" in out
    assert not (tmp_path / "data").exists()


def test_the_demo_as_data_is_what_its_training_had(alone: Alone) -> None:
    """59,650 tokens in 100 and 99 steps, peaks of 916 and 972 MiB: as the trainer measured them."""
    items = named(planned(alone, DEMO)["items"])
    assert items["base"]["trained_on"] == ""
    for name, steps, peak in (("remarks-only", 100, 916), ("remarks+general", 99, 972)):
        assert items[name]["steps"] == steps
        assert items[name]["tokens"] == pytest.approx(59_650, rel=0.01)
        low, high = items[name]["memory_bytes"]
        assert low * 0.95 < peak * 2**20 < high
        assert 0 < items[name]["seconds"][0] < items[name]["seconds"][1]


def test_rows_of_a_large_source_are_estimated_from_its_beginning(alone: Alone, real_data: Path) -> None:
    """24,000 real tweets and 9,229 real Alpaca rows, of which 2,000 each are looked at; the estimates say so."""
    recipe = str(PROJECT / "recipes" / "tweets.yaml")
    tweets, alpaca = real_data / "tweets" / "tweets.csv", real_data / "alpaca" / "alpaca_random_9k.json"
    sources = ("--source", f"tweets={tweets}", "--source", f"alpaca={alpaca}")
    datasets = named(planned(alone, recipe, *sources)["datasets"])
    for name, rows in (("tweets", 24_000), ("alpaca", 9_229)):
        assert datasets[name]["estimated"] is True
        assert datasets[name]["rows"] == pytest.approx(rows, rel=0.15)
        assert datasets[name]["splits"]["train"] == 4000
    assert "~24," in alone("plan", recipe, *sources)[1]


def test_a_file_sorted_by_label_is_no_mistake(alone: Alone, tmp_path: Path) -> None:
    """Its first 2,000 rows have one label only, and it is still a sound table; one that has a single label at all is refused."""
    rows = [f"text number {number},{'no' if number < 3000 else 'yes'}" for number in range(6000)]
    (tmp_path / "sorted.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "r.yaml").write_text("datasets: {d: {source: sorted.csv}}")
    (d,) = planned(alone, "r.yaml")["datasets"]
    assert d["rows"] == pytest.approx(6000, rel=0.1)
    (tmp_path / "sorted.csv").write_text("\n".join(["text,label", *rows[:100]]))
    code, _, err = alone("plan", "r.yaml")
    assert code == 1
    assert "has one label only" in err


def test_what_a_panel_can_show_is_said_as_it_is(alone: Alone, tmp_path: Path) -> None:
    """Classes: at 10 % disagreement, else the least that shows at all, else nothing; scores in standard deviations."""
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *(f"row {n},{n % 2}" for n in range(400))]))
    (tmp_path / "q.jsonl").write_text("".join(f'{{"prompt": "question {n}"}}\n' for n in range(30)))
    rows = {"large": 100, "small": 24, "tiny": 6}
    datasets = "".join(f"  {name}: {{source: d.csv, rows: {{train: 20, test: {n}}}}}\n" for name, n in rows.items())
    panels = "".join(f"    {name}: {{dataset: {name}, metrics: [accuracy, perplexity]}}\n" for name in rows)
    (tmp_path / "r.yaml").write_text(
        f"datasets:\n{datasets}evaluation:\n  panels:\n{panels}    open: {{prompts: q.jsonl, metrics: [perplexity]}}\n"
    )
    out = alone("plan", "r.yaml")[1]
    assert "Panel large: 100 rows at 10 % disagreement see 8.9 points or more\n" in out
    assert (
        "Panel small: 24 rows, too few to show anything at 10 % disagreement; the least that can show at all is"
        " 32.7 points, when every row that differs does so in the same direction\n"
    ) in out
    assert "Panel tiny: 6 rows, too few to show any difference\n" in out
    assert "Panel open: 30 rows see 0.51 standard deviations of the paired difference or more\n" in out
    found = named(planned(alone, "r.yaml")["panels"])
    assert [found[name]["disagreement"] for name in (*rows, "open")] == [0.1, None, None, None]
    assert found["tiny"]["smallest_difference"] is None


def test_too_many_classes_are_refused_also_in_a_long_table(alone: Alone, tmp_path: Path) -> None:
    """Only its first rows are looked at, and they have too many already; fewer are fine."""
    for name, classes in (("many", 101), ("some", 100)):
        rows = (f"text number {number},label {number % classes}" for number in range(5000))
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
        (tmp_path / f"{name}.yaml").write_text(f"datasets: {{d: {{source: {name}.csv}}}}")
    began = time.monotonic()
    code, _, err = alone("plan", "many.yaml")
    assert code == 1
    assert "has 101 different labels in column `label`, at most 100 are taken" in err
    assert alone("plan", "some.yaml")[0] == 0
    assert time.monotonic() - began < 10


def test_lora_targets_that_the_base_does_not_have_are_refused(alone: Alone, tmp_path: Path) -> None:
    """By the names in its weights, where these are those of its layers; a kind of model that is not known is not judged."""
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *(f"row {n},{n % 2}" for n in range(100))]))
    recipe = (
        "base: %s\ndatasets: {d: {source: d.csv}}\nvariants: {v: {train: d, training: {lora: {targets: [q_proj, %s]}}}}"
    )
    (tmp_path / "r.yaml").write_text(recipe % ("seedling", "query"))
    code, _, err = alone("plan", "r.yaml")
    assert code == 1
    assert "v: `training.lora.targets`: the base has no layer called query. Choose from down_proj, " in err
    (tmp_path / "r.yaml").write_text(recipe % ("seedling", "v_proj"))
    assert alone("plan", "r.yaml")[0] == 0
    shutil.copytree(PROJECT / "models" / "seedling", tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config | {"model_type": "mixtral"}))
    (tmp_path / "r.yaml").write_text(recipe % ("./mine", "query"))
    assert alone("plan", "r.yaml")[0] == 0


def test_rows_that_are_all_too_long_are_refused_as_the_trainer_does(alone: Alone, tmp_path: Path) -> None:
    """All of a table that was read whole; of a longer one only that nothing can be said."""
    recipe = "datasets: {d: {source: d.csv}}\ntraining: {max_length: 32}"
    (tmp_path / "r.yaml").write_text(recipe)
    for rows in (600, 3000):
        long = (f"row {number} {'very long words ' * 20},{number % 2}" for number in range(rows))
        (tmp_path / "d.csv").write_text("\n".join(["text,label", *long]))
        began = time.monotonic()
        code, out, err = alone("plan", "r.yaml")
        assert time.monotonic() - began < 5
        if rows == 600:
            assert code == 1
            assert "training examples of `d` have at most 32 tokens" in err
            assert "training.max_length" in err
        else:
            assert code == 0
            assert "none of the first rows has at most 32 tokens" in out


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1]", b"{}", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_damaged_base_is_one_paragraph(alone: Alone, tmp_path: Path, name: str, content: bytes) -> None:
    """With the file and what to do. An empty object is a sound tokenizer_config.json, and any text a template."""
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *(f"row {n},{n % 2}" for n in range(100))]))
    (tmp_path / "r.yaml").write_text("datasets: {d: {source: d.csv}}")
    shutil.copytree(PROJECT / "models" / "seedling", tmp_path / "mine")
    (tmp_path / "mine" / name).write_bytes(content)
    code, _, err = alone("plan", "r.yaml", "--base", "./mine")
    assert "Traceback" not in err
    sound = {"tokenizer_config.json": [b"{}"], "chat_template.jinja": [b"", b'{"a": ', b"[1]", b"{}"]}
    if content in sound.get(name, []):
        assert code == 0
        return
    assert code == 1
    assert "Base model `mine`" in err
    assert name in err
    assert len(err.strip().splitlines()) == 1


def test_what_is_wrong_with_a_table_is_said_as_datagen_says_it(alone: Alone, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("txt,label\ngood,1\n")
    (tmp_path / "r.yaml").write_text("datasets: {d: {source: d.csv}}")
    code, _, err = alone("plan", "r.yaml")
    assert code == 1
    assert "has no column `text`" in err
    assert len(err.strip().splitlines()) == 1


def test_rejected_rows_are_a_share(alone: Alone, tmp_path: Path) -> None:
    rows = [*(f"row {n},{n % 2}" for n in range(90)), *(",1" for _ in range(10))]
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "r.yaml").write_text("datasets: {d: {source: d.csv, rows: {train: 1000, validation: 0, test: 0}}}")
    (d,) = planned(alone, "r.yaml")["datasets"]
    assert (d["rows"], d["rejected"], d["splits"]["train"]) == (100, 0.1, 90)


def test_what_cannot_be_known_says_why(alone: Alone, tmp_path: Path) -> None:
    """A source and a base on the hub: no row, no byte and no second is made up, and what is known is still there."""
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *(f"row {n},{n % 2}" for n in range(100))]))
    (tmp_path / "r.yaml").write_text(
        "base: owner/large@abc\n"
        "datasets: {d: {source: d.csv}, far: {source: 'hf:owner/data@1'}}\n"
        "variants: {near: {train: d}, both: {train: {d: 1, far: 1}}}\n"
        "evaluation: {panels: {p: {dataset: far, metrics: [accuracy]}}}\n"
    )
    found = planned(alone, "r.yaml")
    items = named(found["items"])
    assert items["near"]["steps"] > 0
    assert "on the hub" in items["near"]["unknown"]
    assert "seconds" not in items["near"]
    assert "dataset `far`" in items["both"]["unknown"]
    assert "steps" not in items["both"]
    assert found["totals"] | {"unknown": 2, "seconds": None} == found["totals"]
    assert found["tokens_counted_by"] == "4 characters each"
    out = alone("plan", "r.yaml")[1]
    assert "Unknown: dataset `far`: its source is on the hub" in out
    assert "Panel p: unknown" in out


def test_instructions_by_a_language_model_have_a_price_range_and_nobody_is_asked(
    alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key and with an endpoint that would refuse: only the recipe's prices are used, and its budget is the end."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *(f"row {n},{n % 2}" for n in range(1000))]))
    generator = "{kind: llm, model: gpt-x, budget_usd: %s}"
    recipe = "datasets: {d: {source: d.csv, generator: %s}}"
    (tmp_path / "r.yaml").write_text(recipe % generator % 100)
    (llm,) = planned(alone, "r.yaml")["llm"]
    low, high = llm["usd"]
    assert 0.01 < low < high < 2
    assert llm["rows"] == 1000
    assert f"gpt-x for 1,000 rows of d: ~${low:.2f} to ${high:.2f}" in alone("plan", "r.yaml")[1]
    (tmp_path / "r.yaml").write_text(recipe % generator % 0.05)
    assert planned(alone, "r.yaml")["llm"][0]["usd"][1] == 0.05


def test_a_task_that_asks_no_language_model_costs_nothing_whatever_generator_it_has(
    alone: Alone, tmp_path: Path
) -> None:
    rows = "".join(json.dumps({"instruction": f"Do {n}", "output": f"done {n}"}) + "\n" for n in range(50))
    (tmp_path / "d.jsonl").write_text(rows)
    dataset = "{source: d.jsonl, task: passthrough, generator: {kind: llm, model: gpt-x}}"
    (tmp_path / "r.yaml").write_text(f"datasets: {{d: {dataset}}}")
    assert planned(alone, "r.yaml")["llm"] == []


def test_source_and_base_replace_those_of_the_recipe(alone: Alone, tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "models" / "seedling", tmp_path / "mine")
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *(f"row {n},{n % 2}" for n in range(50))]))
    found = planned(alone, DEMO, "--source", "own.csv", "--base", "./mine")
    assert named(found["datasets"])["remarks"]["rows"] == 50
    assert {item["base"] for item in found["items"]} == {"mine"}


def test_a_base_is_measured_by_its_files(tmp_path: Path) -> None:
    """Parameters and layers from the safetensors header; an untied head means that the embedding is only looked up in."""
    base = Base("seedling", str(PROJECT / "models" / "seedling"), None, None)
    found = shape(base)
    assert found
    weights = (PROJECT / "models" / "seedling" / "model.safetensors").stat().st_size
    assert found.parameters == pytest.approx(weights / 2, rel=0.01), "it is stored with two bytes each"
    assert found.computing == found.parameters
    assert (len(found.linear), found.layers, found.hidden) == (28, 4, 256)
    assert {layer.name for layer in found.linear} >= {"q_proj", "down_proj"}
    _model(tmp_path, {"model.embed_tokens.weight": [100, 8], "lm_head.weight": [100, 8], "a.b.weight": [8, 16]})
    untied = shape(Base("x", str(tmp_path), None, None))
    assert untied
    assert (untied.parameters, untied.computing, [tuple(each) for each in untied.linear]) == (1728, 928, [("b", 8, 16)])


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 50) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_damaged_weights_are_named(tmp_path: Path, content: bytes) -> None:
    _model(tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(Invalid, match="Base model `x`"):
        shape(Base("x", str(tmp_path), None, None))


def _model(folder: Path, weights: dict[str, list[int]]) -> None:
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 100}))
    header = json.dumps({name: {"shape": size} for name, size in weights.items()} | {"__metadata__": {}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def test_tokens_are_those_of_the_tokenizer_or_a_stated_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bundled base: its markers and its words. Without the library: characters, and the text says so."""
    base = Base("seedling", str(PROJECT / "models" / "seedling"), None, None)
    exact = Tokens(base)
    assert exact.how == "the base's tokenizer"
    (length,) = exact.lengths([("Is this good or bad?", "good")])
    assert 8 < length < 20
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    guess = Tokens(base)
    assert guess.how == "4 characters each"
    assert guess.lengths([("x" * 400, "")])[0] > 100


def test_a_gpu_is_measured_by_its_memory_when_torch_can_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time on it is unknown, and says so; with a torch for CPUs this machine's memory counts, and a broken driver is none."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(measure, "cuda_build", lambda _: "12.8")
    gpu = measure.machine()
    assert (gpu.device, gpu.memory, gpu.flops) == ("gpu", 81559 << 20, None)
    assert gpu.why
    monkeypatch.setattr(measure, "cuda_build", lambda _: None)
    assert measure.machine().device == "cpu"
    monkeypatch.setattr(measure, "cuda_build", lambda _: "12.8")
    program.write_text("#!/bin/sh\necho no devices were found >&2; exit 6\n")
    assert measure.machine().device == "cpu"
    assert software.cuda_build("no-such-package") is None


def test_the_command_line_needs_no_service_until_it_plans() -> None:
    """An image has one service: every other command works there, `plan` says where it does, and nothing loads torch."""
    script = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('services.datagen', 'services.trainer', 'torch'):\n"
        "            raise ModuleNotFoundError(f'No module named {name}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from understudy_cli import main\n"
        f"main(['plan', {DEMO!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 1
    assert "not in the image of one service" in done.stderr
    assert "Traceback" not in done.stderr
