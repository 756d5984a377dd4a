"""The template generator: instructions for `classify` from a fixed pool of forms, one per example.

Which form an example gets and in which order it names the classes follow from its id and the seed, so no form and no
order goes with a label. Costs nothing and asks nobody. The forms say nothing about what the classes mean, because
they must fit any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

FORMS = (
    "Is this {either}?\n\n{text}",
    "Label the text as {either}.\n\n{text}",
    "{text}\n\nIs the text above {either}?",
    "Classify: {commas}.\n\nText: {text}",
    "Choose one label ({slashes}).\n\nText: {text}\nLabel:",
    "Which fits best: {either}?\n\n{text}",
    "Read this and answer with {either}:\n{text}",
    "{text}\n\nPick the right label: {commas}.",
    "Text: {text}\n\nOptions:\n{bullets}\n\nWhich option is right?",
    "Here is a text. Say whether it is {either}.\n\n{text}",
    "Sort this text into one class: {commas}.\n\n{text}",
    "How would you label this? Answer {quoted}.\n\n{text}",
    "Input: {text}\nClasses: {commas}\nClass:",
    'Decide: {either}?\n\n"{text}"',
    "Please tell me if the following is {either}.\n\n{text}",
    "Possible answers: {slashes}\n\n{text}\n\nYour answer:",
    "{text}\n---\nAnswer with one of: {commas}",
    "I need one label for this text, {either}:\n\n{text}",
    "What is the category of this text? ({commas})\n\n{text}",
    "Allowed labels:\n{bullets}\n\nLabel this text:\n{text}",
    "Would you call this {either}? {text}",
    "Assign {either} to the passage below.\n\n{text}",
    '"{text}"\n\nWhat is it: {either}?',
    "Task: choose {either}.\nText: {text}",
    "Give the label only ({slashes}).\n\n{text}",
    "Consider this: {text}\nThe label is one of {commas}. Which one?",
    "Tag the text with {quoted}.\n\nText: {text}\nTag:",
    "Someone wrote: {text}\n\nIs that {either}?",
)


def instruct(text: str, labels: Sequence[str], example: str, seed: int) -> tuple[str, int]:
    """The user turn for `text`, and the index of its form in `FORMS`."""
    number, index = divmod(chance(example, seed), len(FORMS))
    order = shuffled(labels, number)
    return FORMS[index].format(
        text=text,
        either=_either(order),
        quoted=_either([f'"{label}"' for label in order]),
        commas=", ".join(order),
        slashes=" / ".join(order),
        bullets="\n".join(f"- {label}" for label in order),
    ), index


def chance(example: str, seed: int) -> int:
    """A large number that is random between examples and fixed for one."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{example}".encode()).digest())


def shuffled(labels: Sequence[str], number: int) -> list[str]:
    """The labels in the order that `number` says (its digits in the factorial number system)."""
    rest, order = list(labels), []
    while rest:
        number, index = divmod(number, len(rest))
        order.append(rest.pop(index))
    return order


def _either(order: Sequence[str]) -> str:
    return f"{', '.join(order[:-1])} or {order[-1]}" if len(order) > 1 else order[0]
