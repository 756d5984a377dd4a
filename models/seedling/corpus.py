"""The text that seedling learns from: documents built from six licence-clean sources, different in form on every pass.

Four kinds of document: prose as it is; product remarks whose verdict is put into words; questions with answers as
chats; and chats in which the answer is one of the options named in the question. The last teach the *format* of a
classification on subjects that have nothing to do with sentiment, so that tuning on sentiment has something to teach.
Knows nothing of tokens or training (`make.py`).
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BOS, END = "<|bos|>", "<|end|>"
HELD_OUT_REMARKS = 600
"""Rows of pros and cons that no pass ever shows: what `make.py --check` measures sentiment on."""

VERDICTS = (
    ("Review: {}\nVerdict: positive", "Review: {}\nVerdict: negative"),
    ("Pros: {}", "Cons: {}"),
    ("A happy customer wrote: {}", "An unhappy customer wrote: {}"),
    (
        "Remark: {}\nThe customer is pleased. This is a positive remark.",
        "Remark: {}\nThe customer is not pleased. This is a negative remark.",
    ),
    ("What was good: {}", "What was bad: {}"),
    ("{} (positive)", "{} (negative)"),
    ("Opinion: {}\nFeeling: positive", "Opinion: {}\nFeeling: negative"),
    (
        "{}\nSomebody who says this liked it and would buy it again.",
        "{}\nSomebody who says this did not like it and sent it back.",
    ),
)
CHOICE_FORMS = (
    "{task}\n\n{field}: {text}\n\nAnswer with one word: {options}.",
    "{task} Reply with {options} only.\n\n{field}: {text}",
    "{field}: {text}\n\n{task} Choose one: {options}.",
    "{task}\nOptions: {options}\n\n{field}: {text}\nAnswer:",
    "{task} Answer {options}.\n{text}",
    '{field}: "{text}"\n{task} ({options})',
    "Read this and choose {options}. {task}\n\n{text}",
    "{task}\n\n{text}\n\nSay {options}, nothing else.",
)

SIGNED = (
    ("Number", "{}"),
    ("Temperature", "{} degrees"),
    ("Text", "The balance is {} dollars."),
    ("Text", "They measured {} this morning"),
    ("Remark", "The result of the sum was {}."),
    ("Input", "x = {}"),
)


@dataclass(frozen=True)
class Sources:
    """The rows of all sources. Held out: about 1 % of prose and answers, by hash, and 600 remarks; no glosses or review sentences."""

    prose: list[str]
    remarks: list[tuple[str, bool]]
    """Text, and whether it is praise."""
    products: list[tuple[str, str]]
    """Sentence of a review, and the kind of product it is about."""
    words: list[tuple[str, str, str, list[str]]]
    """Word, part of speech, definition, example sentences."""
    answers: list[tuple[str, str]]
    """Question and answer."""
    passages: list[tuple[str, str]]
    """Passage and its genre."""
    held_prose: list[str]
    held_remarks: list[tuple[str, bool]]


def _held(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100 == 0


def load(data: Path) -> Sources:
    """Read the sources from the folder that holds text/ and dolly/."""
    paragraphs: list[str] = []
    passages: list[tuple[str, str]] = []
    for line in (data / "text/books.jsonl").open(encoding="utf-8"):
        body = [p for p in json.loads(line)["text"].split("\n") if len(p) > 60 and not p.isupper()]
        paragraphs += ["\n".join(body[i : i + 6]) for i in range(0, len(body), 6)]
    for line in (data / "text/masc.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        pieces = re.split(r"(?<=[.!?]) ", row["text"])
        chunks = [" ".join(pieces[i : i + 12]) for i in range(0, len(pieces), 12)]
        paragraphs += chunks
        for i in range(0, len(chunks), 2):
            if not _held(chunks[i]):  # a passage opens its chunk
                passages.append((" ".join(pieces[12 * i : 12 * i + 2])[:220], row["genre"]))

    with (data / "text/pros_cons.csv").open(encoding="utf-8", newline="") as file:
        remarks = [(row["text"].strip(), row["label"] == "pro") for row in csv.DictReader(file)]
    remarks = sorted({text.lower(): (text, good) for text, good in remarks if 8 < len(text) < 200}.values())
    random.Random(1).shuffle(remarks)
    held_remarks, remarks = remarks[:HELD_OUT_REMARKS], remarks[HELD_OUT_REMARKS:]

    products: list[tuple[str, str]] = []
    with (data / "text/product_review_sentences.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = row["sentence"].strip()
            if row["polarity"] in ("positive", "negative"):
                remarks.append((text, row["polarity"] == "positive"))
            if (kind := _product(row["product"])) and 20 < len(text) < 220:
                products.append((text, kind))

    words = []
    with (data / "text/wordnet_glosses.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            examples = [e.strip() for e in (row["examples"] or "").split(" | ") if e.strip()]
            if row["word"].replace(" ", "").isalpha() and row["word"].islower():
                words.append((row["word"], row["part_of_speech"], row["definition"], examples))

    answers = []
    for row in json.loads((data / "dolly/dolly_3k.json").read_text(encoding="utf-8")):
        question = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        if len(question) + len(row["output"]) < 1400:
            answers.append((question.strip(), row["output"].strip()))
    return Sources(
        prose=[p for p in paragraphs if not _held(p)],
        remarks=remarks,
        products=products,
        words=words,
        answers=[a for a in answers if not _held(a[0])],
        passages=passages,
        held_prose=[p for p in paragraphs if _held(p)],
        held_remarks=held_remarks,
    )


def _product(name: str) -> str | None:
    """A short word for the kind of product, None where the name has none."""
    for key, kind in (
        ("camera", "camera"), ("canon", "camera"), ("nikon", "camera"), ("phone", "phone"), ("nokia", "phone"), ("dvd", "player"),
        ("mp3", "music"), ("jukebox", "music"), ("ipod", "music"), ("router", "router"), ("linksys", "router"), ("diaper", "diapers"),
        ("antivirus", "software"), ("norton", "software"), ("monitor", "screen"), ("speaker", "speaker"),
    ):  # fmt: skip
        if key in name.lower():
            return kind
    return None


def chat(user: str, assistant: str) -> str:
    """One exchange, exactly as the chat template renders it."""
    return f"{BOS}<|user|>\n{user.strip()}{END}\n<|assistant|>\n{assistant.strip()}{END}\n"


def documents(sources: Sources, number: int) -> list[str]:
    """All documents of pass `number`, shuffled; forms and choices differ from pass to pass."""
    rng = random.Random(f"pass {number}")
    result = [BOS + text + "\n" for text in rng.sample(sources.prose, len(sources.prose) // 2)]
    result += [chat(*answer) for answer in sources.answers for _ in range(2)]
    result += list(_verdicts(sources, rng))
    result += list(_glosses(sources, rng))
    result += list(_choices(sources, rng))
    rng.shuffle(result)
    return result


def _verdicts(sources: Sources, rng: random.Random) -> Iterator[str]:
    """Lists of remarks in one form each, praise and complaints mixed; every remark twice."""
    for _ in range(2):
        remarks = rng.sample(sources.remarks, len(sources.remarks))
        start = 0
        while start < len(remarks):
            size = rng.randint(2, 6)
            good, bad = rng.choice(VERDICTS)
            lines = [(good if praise else bad).format(text) for text, praise in remarks[start : start + size]]
            yield BOS + "\n".join(lines) + "\n"
            start += size


def _glosses(sources: Sources, rng: random.Random) -> Iterator[str]:
    """A quarter of the dictionary as questions."""
    for word, part, definition, examples in rng.sample(sources.words, len(sources.words) // 4):
        question, answer = rng.choice(
            [
                (f"What does the word {word} mean?", definition),
                (f"Define {word}.", definition),
                (f"Give me a short definition of the {part} {word}.", definition),
                (f"Explain {word} in a few words.", f"{word}: {definition}"),
            ]
        )
        if examples and rng.random() < 0.5:
            question, answer = f"Use the word {word} in a sentence.", rng.choice(examples)
        yield chat(question, answer)


def _choices(sources: Sources, rng: random.Random) -> Iterator[str]:
    """Questions that name their options, with one of them as the answer. None is about praise or blame."""
    parts = sorted({part for _, part, _, _ in sources.words})
    kinds = sorted({kind for _, kind in sources.products})
    genres = sorted({genre for _, genre in sources.passages})
    for word, part, definition, examples in rng.sample(sources.words, 6000):
        if examples and rng.random() < 0.5:
            sentence = rng.choice(examples)
            inside = rng.random() < 0.5
            asked = word if inside else rng.choice(sources.words)[0]
            right = "yes" if asked in sentence else "no"
            yield _choice(
                rng, f"Does the sentence contain the word {asked}?", "Sentence", sentence, right, ["yes", "no"]
            )
        elif rng.random() < 0.6:
            yield _choice(rng, "What part of speech is this?", "Word", f"{word}: {definition}", part, parts)
        else:
            other = [w for w, *_ in rng.sample(sources.words, 2)]
            yield _choice(rng, "Which word has this meaning?", "Meaning", definition, word, other)
    for text, kind in rng.sample(sources.products, min(5000, len(sources.products))):
        yield _choice(
            rng,
            rng.choice(("What is this remark about?", "Which product does the customer mean?")),
            "Remark",
            text,
            kind,
            kinds,
        )
    for text, genre in rng.sample(sources.passages, min(2500, len(sources.passages))):
        yield _choice(
            rng, rng.choice(("Where is this text from?", "What kind of text is this?")), "Text", text, genre, genres
        )
    for text, _ in rng.sample(sources.remarks, 5000):
        task, right, options = rng.choice(
            [
                ("Is the remark short or long?", "short" if len(text) < 45 else "long", ["short", "long"]),
                ("Does the remark have a comma?", "yes" if "," in text else "no", ["yes", "no"]),
                ("Is this one word or many?", "many" if " " in text.strip() else "one", ["one", "many"]),
                ("Is there a number in the text?", "yes" if re.search(r"\d", text) else "no", ["yes", "no"]),
            ]
        )
        yield _choice(rng, task, "Remark", text, right, options)

    for _ in range(6000):  # the words of a common label set, as the signs of numbers
        size = rng.choice((rng.randint(1, 30), rng.randint(1, 999), rng.randint(1, 99) / 10))
        below = rng.random() < 0.5
        field, form = rng.choice(SIGNED)
        text = form.format(f"-{size}" if below else str(size))
        task = rng.choice(
            (
                "Is it positive or negative?",
                "What is the sign?",
                "Which label is right?",
                "Classify this.",
                "Label this.",
            )
        )
        yield _choice(rng, task, field, text, "negative" if below else "positive", ["positive", "negative"])
    for text, _ in rng.sample(sources.remarks, 12000):
        present = re.findall(r"[a-z]{4,}", text.lower())
        outside = [word for word, *_ in rng.sample(sources.words, 2) if " " not in word]
        if present and outside:
            task = rng.choice(
                ("Which of these words is in the text?", "Which word did the customer use?", "Find the word.")
            )
            yield _choice(rng, task, rng.choice(("Text", "Remark", "Review")), text, rng.choice(present), outside)


def _choice(rng: random.Random, task: str, field: str, text: str, right: str, options: list[str]) -> str:
    """A chat that offers `right` and one or two of the other options in any order."""
    wrong = [option for option in options if option != right]
    offered = [right, *rng.sample(wrong, min(len(wrong), rng.choice((1, 1, 1, 2))))]
    rng.shuffle(offered)
    joined = rng.choice(
        (" or ".join(offered), " / ".join(offered), ", ".join(offered), " or ".join(f'"{o}"' for o in offered))
    )
    answer = right if rng.random() < 0.9 else right.capitalize()
    return chat(rng.choice(CHOICE_FORMS).format(task=task, field=field, text=text, options=joined), answer)
