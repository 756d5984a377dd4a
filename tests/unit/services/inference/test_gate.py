"""The gate lets an adapter through only if the engine computes with it what the trainer computed.

`measured.json` has what was really measured: two adapters on the bundled base, after six and twelve steps, by PEFT, and by vLLM on a
CPU in float32 and bfloat16, with the adapter's scaling multiplied by so much.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.inference import gate
from understudy.errors import Invalid
from understudy.records import Probe, Probes
from understudy.terms import Gate

MEASURED: dict[str, Any] = json.loads(Path(__file__).with_name("measured.json").read_text())
ADAPTERS, PRECISIONS = sorted(MEASURED), ("float32", "bfloat16")
Logprobs = list[list[float]]


class Engine:
    """Answers with these log-probabilities to these prompts, in whatever order they come."""

    def __init__(self, probes: Sequence[Probe], base: Logprobs, adapter: Logprobs) -> None:
        self.prompts = [list(probe.token_ids) for probe in probes]
        self.answers = {"base": base, "ft": adapter}
        self.asked: list[tuple[str, list[Sequence[int] | str]]] = []

    def prompt_logprobs(self, model: str, prompts: Sequence[Sequence[int] | str]) -> list[list[float]]:
        self.asked.append((model, list(prompts)))
        return [self._of(model, list(prompt))[: len(prompt) - 1] for prompt in prompts]

    def _of(self, model: str, prompt: list[Any]) -> list[float]:
        number = next(n for n, known in enumerate(self.prompts) if known[: len(prompt)] == prompt)
        return self.answers[model][number]


def probes_of(base: Logprobs, adapter: Logprobs) -> tuple[Probe, ...]:
    return tuple(
        Probe(token_ids=(number, *range(len(b))), base_logprobs=tuple(b), adapter_logprobs=tuple(a))
        for number, (b, a) in enumerate(zip(base, adapter, strict=True))
    )


def check(
    folder: Path, trained: tuple[Logprobs, Logprobs], served: tuple[Logprobs, Logprobs], max_len: int = 512
) -> Gate:
    """The gate on an adapter with these log-probabilities (base, adapter) in training and in the engine."""
    probes = probes_of(*trained)
    (folder / "probe.json").write_text(Probes(probes=probes).model_dump_json())
    return gate.check(Engine(probes, *served), "base", "ft", folder, tolerance=0.1, max_len=max_len)


def trained(adapter: str) -> tuple[Logprobs, Logprobs]:
    return MEASURED[adapter]["trained"]["base"], MEASURED[adapter]["trained"]["adapter"]


def served(adapter: str, precision: str, scale: str) -> tuple[Logprobs, Logprobs]:
    return MEASURED[adapter][precision]["base"], MEASURED[adapter][precision][scale]


def scaled(base: Logprobs, adapter: Logprobs, by: float, noise: float = 0.0, seed: int = 0) -> Logprobs:
    """The base, with `by` times the effect of the adapter, and noise of so many nats."""
    draw = random.Random(seed)
    return [
        [b + by * (a - b) + draw.gauss(0, noise) for b, a in zip(x, y, strict=True)]
        for x, y in zip(base, adapter, strict=True)
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_right_adapter_passes_in_either_precision(tmp_path: Path, adapter: str, precision: str) -> None:
    measured = check(tmp_path, trained(adapter), served(adapter, precision, "1"))
    assert measured.tokens > 100
    assert measured.slope == pytest.approx(1, abs=0.01)
    assert measured.trained_effect_nats
    assert measured.effect_nats == pytest.approx(measured.trained_effect_nats, rel=0.02)
    assert measured.disagreement is not None
    if precision == "float32":
        assert measured.noise_nats < 1e-4
        assert measured.disagreement < 1e-3
    else:
        assert 0.01 < measured.noise_nats < 0.02
        assert 0.01 < measured.disagreement < 0.05


@pytest.mark.parametrize("scale", ["0.02", "0.5", "2", "-1"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_engine_that_applies_another_share_of_the_adapter_is_refused(
    tmp_path: Path, adapter: str, precision: str, scale: str
) -> None:
    with pytest.raises(Invalid, match=r"otherwise than training did: it applies -?\d\.\d\d times"):
        check(tmp_path, trained(adapter), served(adapter, precision, scale))


@pytest.mark.parametrize("effect", [0.13, 0.3, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_also_where_the_effect_is_small_and_the_engine_noisy(tmp_path: Path, effect: float, noise: float) -> None:
    """Thirty engines: the right share always passes, a half, a fiftieth, twice and the negative never do."""
    base, adapter = trained("six-steps")
    adapter = scaled(base, adapter, effect)
    for seed in range(30):
        noisy = scaled(base, base, 0, noise, seed)
        check(tmp_path, (base, adapter), (noisy, scaled(base, adapter, 1, noise, seed + 1000)))
        for share in (0.02, 0.5, 2, -1):
            with pytest.raises(Invalid, match="otherwise than training did"):
                check(tmp_path, (base, adapter), (noisy, scaled(base, adapter, share, noise, seed + 1000)))


def test_an_adapter_that_learnt_next_to_nothing_is_told_so_and_the_engine_not_blamed(tmp_path: Path) -> None:
    base, adapter = trained("six-steps")
    small = scaled(base, adapter, 0.05)
    noisy = served("six-steps", "bfloat16", "1")[0]
    with pytest.raises(
        Invalid, match=r"learnt next to nothing: it changes .* by 0\.02\d nats, and without it 0\.01\d nats"
    ):
        check(tmp_path, (base, small), (noisy, scaled(noisy, small, 1)))
    assert check(tmp_path, (base, small), (base, small)).effect_nats < 0.03, "a quiet engine shows that it is there"
    with pytest.raises(Invalid, match="learnt next to nothing"):
        check(tmp_path, (base, scaled(base, adapter, 1e-5)), (base, scaled(base, adapter, 1e-5)))


def simulated(tokens: int, effect: float, noise: float, share: float, seed: int) -> Gate:
    """The gate on an engine whose every evaluation is off by Gaussian noise, and which applies this share of the adapter."""
    draw = random.Random(seed)
    base = [[-abs(draw.gauss(2, 2)) for _ in range(tokens)]]
    adapter = [[value + draw.gauss(0, effect) for value in base[0]]]
    before, again = (scaled(base, base, 0, noise, draw.randrange(1 << 30)) for _ in range(2))
    after = scaled(base, adapter, share, noise, draw.randrange(1 << 30))
    return gate.judge(before, after, again, probes_of(base, adapter), 0.1)


def passed(tokens: int, effect: float, noise: float, share: float) -> float:
    """What part of a hundred such engines."""
    count = 0
    for seed in range(100):
        with suppress(Invalid):
            simulated(tokens, effect, noise, share, seed)
            count += 1
    return count / 100


def test_many_tokens_make_up_for_noise() -> None:
    """Each token's effect is only four times what two evaluations differ by."""
    assert passed(100, 0.35, 0.06, share=1) > 0.95
    for share in (0.5, 0.7, 1.3, 2):
        assert passed(100, 0.35, 0.06, share) == 0


@pytest.mark.parametrize(("tokens", "effect", "noise"), [(15, 0.6, 0.09), (8, 0.4, 0.06)])
def test_of_few_tokens_and_much_noise_it_says_that_it_cannot_tell(tokens: int, effect: float, noise: float) -> None:
    for share in (0.7, 1.3):
        assert passed(tokens, effect, noise, share) == 0
    assert passed(tokens, effect, noise, share=1) < 0.05
    with pytest.raises(
        Invalid, match=rf"cannot be told from {tokens} tokens: it applies \d\.\d\d times .* \(± 0\.\d\d; 1 ± 0\.1"
    ):
        simulated(tokens, effect, noise, 1, 1)


def test_another_adapters_weights_are_refused_although_their_effect_is_as_large(tmp_path: Path) -> None:
    base, adapter = trained("six-steps")
    other = [
        [b + (a - b) * (-1) ** n for n, (b, a) in enumerate(zip(x, y, strict=True))]
        for x, y in zip(base, adapter, strict=True)
    ]
    with pytest.raises(Invalid, match="otherwise than training did"):
        check(tmp_path, (base, adapter), (base, other))


def test_one_that_agrees_on_the_whole_and_not_token_by_token_is_refused(tmp_path: Path) -> None:
    base, adapter = trained("six-steps")
    draw = random.Random(1)
    other = [[a + draw.gauss(0, 0.15) for a in x] for x in adapter]
    with pytest.raises(Invalid, match=r"applies (0\.9|1\.0)\d times"):
        check(tmp_path, (base, adapter), (base, other))


def test_another_base_than_was_trained_on_is_refused(tmp_path: Path) -> None:
    base, adapter = trained("six-steps")
    shifted = [[[value + 0.2 for value in each] for each in some] for some in (base, adapter)]
    with pytest.raises(Invalid, match="trained on another base"):
        check(tmp_path, (base, adapter), (shifted[0], shifted[1]))


def test_noise_is_what_two_evaluations_of_the_engine_differ_by_too(tmp_path: Path) -> None:
    base, adapter = trained("six-steps")
    before, again = served("six-steps", "float32", "1")[0], scaled(base, base, 0, 0.3)
    with pytest.raises(Invalid, match="learnt next to nothing"):
        gate.judge(before, adapter, again, probes_of(base, adapter), 0.1)
    assert gate.judge(before, adapter, base, probes_of(base, adapter), 0.1).noise_nats < 1e-4


@pytest.mark.parametrize("which", [0, 1])
def test_not_a_number_is_no_agreement(tmp_path: Path, which: int) -> None:
    base, adapter = trained("six-steps")
    answers = [base, adapter]
    answers[which] = [[float("nan") for _ in each] for each in base]
    with pytest.raises(Invalid):
        check(tmp_path, (base, adapter), (answers[0], answers[1]))


def test_a_probe_longer_than_the_engine_takes_is_cut(tmp_path: Path) -> None:
    base, adapter = trained("six-steps")
    measured = check(tmp_path, (base, adapter), (base, adapter), max_len=12)
    assert measured.tokens == 10 * len(base)
    assert measured.slope == 1


def test_the_base_is_measured_twice_and_in_two_orders(tmp_path: Path) -> None:
    probes = probes_of(*trained("six-steps"))
    (tmp_path / "probe.json").write_text(Probes(probes=probes).model_dump_json())
    engine = Engine(probes, *served("six-steps", "float32", "1"))
    gate.check(engine, "base", "ft", tmp_path, tolerance=0.1, max_len=512)
    prompts = [[*probe.token_ids] for probe in probes]
    assert engine.asked == [("ft", prompts), ("base", prompts + prompts[::-1])]


def test_without_probes_the_adapter_must_still_change_something() -> None:
    base, adapter = trained("six-steps")
    measured = gate.judge(base, adapter, base, None, 0.1)
    assert measured.effect_nats > 0.4
    assert (measured.slope, measured.trained_effect_nats, measured.disagreement) == (None, None, None)
    for noise in (1e-7, 0.1):
        with pytest.raises(Invalid, match="or the engine ignores it"):
            gate.judge(base, scaled(base, base, 0, noise), scaled(base, base, 0, noise, seed=1), None, 0.1)


def test_the_built_in_prompts_are_asked_where_there_are_no_probes(tmp_path: Path) -> None:
    asked: list[Sequence[int] | str] = []

    class Any:
        def prompt_logprobs(self, model: str, prompts: Sequence[Sequence[int] | str]) -> list[list[float]]:
            asked.extend(prompts)
            return [[-1.0 if model == "base" else -2.0]] * len(prompts)

    assert gate.check(Any(), "base", "ft", tmp_path, tolerance=0.1, max_len=512).tokens == len(gate.BUILT_IN)
    assert set(asked) == set(gate.BUILT_IN)


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "{}",
        '{"probes": []}',
        '{"probes": [{"token_ids": [1, 2, 3], "base_logprobs": [-1], "adapter_logprobs": [-1, -1]}]}',
        '{"probes": [{"token_ids": [1, 2], "base_logprobs": [null], "adapter_logprobs": [-1]}]}',
    ],
)
def test_malformed_probes_are_invalid(tmp_path: Path, content: str) -> None:
    (tmp_path / "probe.json").write_text(content)
    with pytest.raises(Invalid, match=r"probe\.json"):
        gate.read_probes(tmp_path)


def test_probes_of_before_they_said_their_format_are_read(tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text(
        '{"probes": [{"token_ids": [1, 2], "base_logprobs": [-1], "adapter_logprobs": [-2]}], "later": 1}'
    )
    assert gate.read_probes(tmp_path) == (Probe(token_ids=(1, 2), base_logprobs=(-1,), adapter_logprobs=(-2,)),)
