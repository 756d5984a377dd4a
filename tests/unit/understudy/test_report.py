"""Proves that a report is known by what it follows from, and that what comes later changes no digest."""

from __future__ import annotations

from understudy.report import Inputs, Scored
from understudy.terms import Artifact

A, B = Artifact(sha256="a" * 64), Artifact(sha256="b" * 64)
INPUTS = Inputs(run="r", plan=A, scored={"base": Scored(answers=A, measures=B)})


def test_the_digest_of_inputs_is_the_one_it_was() -> None:
    """A field that is added with a default must not give every report another name; another format must."""
    assert INPUTS.digest == "8d25f034f81dddeca2cb32b04d6db7a13dee9030d741761e33eaae0e22385723"


def test_every_input_counts() -> None:
    others = [
        INPUTS.model_copy(update={"baseline": "base"}),
        INPUTS.model_copy(update={"failed": ("tuned",)}),
        INPUTS.model_copy(update={"cancelled": ("tuned",)}),
        INPUTS.model_copy(update={"datasets": A}),
        INPUTS.model_copy(update={"scored": {"base": Scored(answers=A, measures=A)}}),
    ]
    assert len({each.digest for each in (INPUTS, *others)}) == 6
