"""What the llm generator asks for one row, and how it judges the answer.

The model is told the right label and asked for an instruction that names all labels and gives none away; our own
table stays the authority for the label. Does not send anything (`generate.py`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from services.datagen.filters import Candidate, normalised
from services.datagen.templates import chance, shuffled
from understudy.records import Turn

MAX_ANSWER_TOKENS = 256
MAX_EXCERPT = 1500
"""Characters of the text that are shown: enough to write a fitting instruction, and a bound on the cost."""
MAX_INSTRUCTION = 600
STYLES = (
    "as a question",
    "as a short command",
    "as a polite request",
    "in casual words, as in a chat message",
    "in formal words",
    "as a question of a quiz",
    "as a note to a colleague",
    "so that the labels come first",
)
_TASK = """You write instructions for training data. You are shown a text, the allowed labels and the right label.
Write one instruction with which a person could ask an assistant to choose the label of that text; the text itself will be put beside it.
- Name every allowed label exactly once, spelled as given.
- Do not quote the text, and do not hint at the right label: the instruction must be as good for a text with another label.
- At most 40 words.
Answer as JSON: {"instruction": the instruction, "answer": the right label}."""


class Unusable(Exception):
    """The model's answer cannot be used; the message says why, to the model and in `rejected.jsonl`."""


def ask(candidate: Candidate, labels: Sequence[str], example: str, seed: int) -> list[Turn]:
    """The messages for one row; style and order of the labels vary between examples."""
    number, style = divmod(chance(example, seed), len(STYLES))
    shown = {
        "text": candidate.text[:MAX_EXCERPT],
        "allowed labels": shuffled(labels, number),
        "right label": candidate.label,
        "style": f"Write it {STYLES[style]}.",
    }
    return [Turn(role="system", content=_TASK), Turn(role="user", content=json.dumps(shown, ensure_ascii=False))]


def again(answer: str, problem: str) -> list[Turn]:
    """What to add to the messages after an unusable answer."""
    return [
        Turn(role="assistant", content=answer[:2000] or "(nothing)"),
        Turn(role="user", content=f"That cannot be used: {problem}. Answer again, as JSON."),
    ]


def schema(labels: Sequence[str]) -> Mapping[str, Any]:
    """Request fields that ask the endpoint for JSON of the right shape."""
    properties = {"instruction": {"type": "string"}, "answer": {"type": "string", "enum": list(labels)}}
    shape = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "instruction", "strict": True, "schema": shape},
        }
    }


def read(answer: str, candidate: Candidate, labels: Sequence[str]) -> str:
    """The instruction in `answer`; raises `Unusable` unless it is JSON, keeps the label, and gives it away nowhere."""
    try:
        document = json.loads(answer[answer.find("{") : answer.rfind("}") + 1])
        instruction, label = document["instruction"].strip(), document["answer"].strip()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unusable('it is not JSON of the form {"instruction": "...", "answer": "..."}') from None
    if label != candidate.label:
        raise Unusable(f"the answer is `{label[:80]}` where the right label is `{candidate.label}`")
    if not 10 <= len(instruction) <= MAX_INSTRUCTION:
        raise Unusable(f"the instruction has {len(instruction)} characters, 10 to {MAX_INSTRUCTION} are allowed")
    if len(candidate.text) > 20 and normalised(candidate.text[:MAX_EXCERPT]) in normalised(instruction):
        raise Unusable("the instruction quotes the text")
    counts = _mentions(instruction, labels)
    if missing := [name for name in labels if not counts[name]]:
        raise Unusable(f"the instruction does not name the label `{missing[0]}`")
    if len(set(counts.values())) > 1:
        raise Unusable(f"the instruction names one label more often than another: `{counts.most_common(1)[0][0]}`")
    return str(instruction.encode("utf-8", "replace").decode())


def _mentions(instruction: str, labels: Sequence[str]) -> Counter[str]:
    """How often each label is named. In long labels the end is open, so that `positively` gives `positive` away."""
    longest_first = sorted(labels, key=len, reverse=True)
    words = [re.escape(label) + ("" if len(label) > 4 else r"(?!\w)") for label in longest_first]
    by_name = {label.casefold(): label for label in labels}
    found = re.findall(rf"(?<!\w)(?:{'|'.join(words)})", instruction, re.IGNORECASE)
    return Counter(by_name[name] for word in found if (name := word.casefold()) in by_name)
