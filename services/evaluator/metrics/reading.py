"""Which class an answer stands for, by what it says: leniently (`named`) and strictly (`is_only`).

Both compare without case and Unicode form (NFKC, casefold). Knows no model's likelihoods (`classification.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

NAMED = "parse:one class named, not negated|NFKC, casefold"
"""The class that is named, if exactly one is: as whole words, or anywhere in scripts that put no spaces between words. A name within a
longer class name does not count. An answer that names several classes stands for none, also where it settles on one: who may choose
the place that counts can find any class in it. So does one that negates the name: before it in the same clause, or right after it."""
STRICT = "parse:the answer is a class name|NFKC, casefold, without quotes, punctuation and white space around it"

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u30ff\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, Chinese, Japanese; Korean, whose words carry their particles."""
LETTER = rf"[^\W_{UNSPACED}]"
CLAUSE = re.compile(r"[.,;:!?\n。、…(){}\[\]\"“”]|(?<!\w)but(?!\w)")
"""What ends a clause."""
FARTHEST = 80
"""Letters before a name in which a negation is looked for."""
NEGATION = re.compile(
    r"""(?<!\w)(?:not|no|never|neither|nor|none|non|without|cannot|hardly|barely|far\ from|anything\ but|opposite\ of|\w+n['’]t
    |(?:is|was|are|do|does|did|wo|ca|would|could)nt|nicht|kein\w*|weder|pas|ne|jamais|ni|nunca|sin|não|nem|niet|geen|не|ни|нет)(?!\w)
    |不是|不算|不认为|不認為|不觉得|不覺得|并非|並非|没有|沒有|(?:[不非没沒無无未])(?=\s*$)""",
    re.VERBOSE,
)
"""Before a name, in its clause."""
AFTERTHOUGHT = re.compile(
    r"""['"”’*_\s]*(?:(?:is|was|are|does|do|would|can|could|should)\s*(?:not|n['’]t)(?!\w)|not(?!\w)|is\s+(?:wrong|incorrect)(?!\w)
    |\s*(?:的|な|だ)?(?:では|じゃ|で)(?:は)?(?:ない|なく|ありません)|\s*적?(?:이|가|은|는)?지?\s*(?:아니|아닙|않))""",
    re.VERBOSE,
)
"""Right after a name."""


def named(text: str, labels: tuple[str, ...]) -> str | None:
    """The class that `text` names by the rule of `NAMED`; None when it names none or several, or negates the one.

    named("Positive, I think.", ("negative", "positive")) == "positive"
    named("It isn't positive.", ("negative", "positive")) is None
    """
    if whole := is_only(text, labels):
        return whole
    names = _names(labels)
    said = _form(text)
    places = list(names.anywhere.finditer(said))
    found = {" ".join(place.group().split()) for place in places}
    if len(found) != 1 or any(_negated(said, place) for place in places):
        return None
    return names.one(found.pop())


def is_only(text: str, labels: tuple[str, ...]) -> str | None:
    """The class that `text` is, by the rule of `STRICT`; of classes that differ in case alone, the one written so."""
    names = _names(labels)
    plain = unicodedata.normalize("NFKC", text)
    if found := names.as_written.fullmatch(plain):
        return names.labels[" ".join(found.group(1).split())]
    found = names.whole.fullmatch(plain.casefold())
    return names.one(" ".join(found.group(1).split())) if found else None


def _negated(said: str, place: re.Match[str]) -> bool:
    clause = CLAUSE.split(said[max(0, place.start() - FARTHEST) : place.start()])[-1]
    return bool(NEGATION.search(clause) or AFTERTHOUGHT.match(said, place.end()))


@dataclass(frozen=True)
class _Names:
    """The classes of a panel, and how they are found."""

    labels: Mapping[str, str]
    """As written, in one Unicode form -> the class."""
    folded: Mapping[str, tuple[str, ...]]
    """Without case -> those classes."""
    as_written: re.Pattern[str]
    whole: re.Pattern[str]
    anywhere: re.Pattern[str]

    def one(self, name: str) -> str | None:
        """The class of this name; None where several differ in case alone."""
        found = self.folded[name]
        return found[0] if len(found) == 1 else None


@lru_cache(maxsize=64)
def _names(labels: tuple[str, ...]) -> _Names:
    written = {" ".join(unicodedata.normalize("NFKC", label).split()): label for label in labels}
    folded: dict[str, tuple[str, ...]] = {}
    for name, label in written.items():
        folded[_form(name)] = (*folded.get(_form(name), ()), label)
    return _Names(
        labels=written,
        folded=folded,
        as_written=_only(written),
        whole=_only(folded),
        anywhere=re.compile("|".join(map(_word, sorted(folded, key=len, reverse=True))) or r"(?!)"),
    )


def _only(names: Mapping[str, object]) -> re.Pattern[str]:
    longest_first = "|".join(map(_spaced, sorted(names, key=len, reverse=True))) or r"(?!)"
    return re.compile(rf"[\W_]*?({longest_first})[\W_]*")


def _word(name: str) -> str:
    """The name as whole words; where its edge is no letter of a script with spaces, nothing like it may go on there."""
    before = rf"(?<!{LETTER})" if not re.match(f"[{UNSPACED}]", name) else ""
    after = rf"(?!{LETTER})" if not re.search(f"[{UNSPACED}]$", name) else ""
    return f"{before}{_spaced(name)}{after}"


def _spaced(name: str) -> str:
    return r"\s+".join(map(re.escape, name.split()))


def _form(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
