"""A document somebody wrote, YAML in a file or JSON in a request, before anybody asks what it means: it is read, and its
size bounded in every direction, so that whoever looks at it further need not wonder.

Knows no keys (`recipe.py`).
"""

from __future__ import annotations

from pathlib import Path

import yaml

from understudy.errors import Invalid

MAX_BYTES = 256 * 1024
"""Of a file."""
MOST_PARTS = 20_000
"""Keys and values, those behind a YAML alias counted each time they are used."""
MOST_DEEP = 20
LONGEST = 4096
"""Characters of a key or a value."""
LARGEST = 2**63
"""Of a whole number."""


class _Loader(yaml.SafeLoader):
    """A few lines of YAML whose merge keys name each other are more keys than any memory has."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_PARTS:
            raise yaml.constructor.ConstructorError(
                None, None, f"merge keys bring more than {MOST_PARTS:,} keys", node.start_mark
            )


def parsed(text: str) -> object:
    """What YAML says; raises `YAMLError`, `ValueError` or `RecursionError`, and never takes more memory than its text is worth."""
    return yaml.load(text, _Loader)  # a safe loader


def read(path: Path) -> object:
    """What a YAML file says; raises `Invalid` naming the file and the remedy."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise Invalid(
                f"{path} is larger than a recipe can be ({MAX_BYTES} bytes)", "Name data files in it instead."
            )
        return parsed(content.decode())
    except (FileNotFoundError, IsADirectoryError):
        raise Invalid(f"There is no recipe file at {path}", "See recipes/ for examples.") from None
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is not UTF-8 text (byte {error.start})", "Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise Invalid(f"{path} is not valid YAML: {' '.join(str(error).split())}", "Fix that line.") from None
    except RecursionError:
        raise Invalid(f"{path} is nested too deeply", f"At most {MOST_DEEP} levels are taken.") from None
    except ValueError as error:  # a date that is none, a number of five thousand digits
        raise Invalid(f"{path} has a value that cannot be read: {error}", "Put it in quotes if it is text.") from None


def check(document: object, where: str) -> None:
    """Raises `Invalid` when a document has too many parts, is too deep, or one of its parts is too long."""
    level, parts, deep = [document], 0, 0
    while level:
        below: list[object] = []
        for each in level:
            parts += 1
            if isinstance(each, dict):
                below += each
                below += each.values()
            elif isinstance(each, list | tuple):
                below += each
            elif isinstance(each, str | bytes) and len(each) > LONGEST:
                raise _too(where, f"has a name or value of {len(each):,} characters", f"{LONGEST:,}")
            elif isinstance(each, int) and abs(each) > LARGEST:
                raise _too(where, "has a number that is too large", f"{LARGEST:,}")
            if parts + len(below) > MOST_PARTS:
                raise _too(where, "has too many keys and values", f"{MOST_PARTS:,}")
        deep += 1
        if deep > MOST_DEEP:
            raise _too(where, "is nested too deeply", f"{MOST_DEEP} levels")
        level = below


def _too(where: str, what: str, limit: str) -> Invalid:
    return Invalid(f"{where} {what}", f"At most {limit} is what a recipe may have.")
