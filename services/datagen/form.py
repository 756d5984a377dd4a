"""A multipart form that brings one file: its fields are collected, the bytes of the file are handed on as they come.

Keeps nothing of the file, so a form of any size takes the memory of one piece. Does not know what the file is for.
"""

from __future__ import annotations

from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from understudy.errors import Invalid

OVERHEAD = 64 * 1024
"""Bytes of a form's fields and of all its headers together."""
MAX_PARTS = 20
REMEDY = "Send `file` and `purpose` as form fields."


class Form:
    """`feed` every chunk of the body, then `end`. Both raise `Invalid` for what is no such form.

    `begin` is called with the file's name before its first bytes.
    """

    def __init__(self, content_type: str, begin: Callable[[str], None]) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise _no_form("its content type says so" if kind else "it has no content type")
        self.fields: dict[str, str] = {}
        self._begin = begin
        self._pieces: list[bytes] = []
        self._files = self._parts = self._overhead = 0
        self._header, self._value, self._disposition = b"", b"", b""
        self._name: str | None = None
        """Of the field that is arriving; None: it is the file."""
        self._content = b""
        self._whole = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": self._header_goes_on,
                    "on_header_value": self._value_goes_on,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._content_begins,
                    "on_part_data": self._content_goes_on,
                    "on_part_end": self._part_ends,
                    "on_end": self._ends,
                },
            )
        except FormParserError as error:
            raise _no_form(str(error)) from None

    def feed(self, chunk: bytes) -> list[bytes]:
        """What of the file's content is in this chunk of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _no_form(str(error)) from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def end(self) -> None:
        """The body is over: raises `Invalid` when the form is not, or had no file."""
        if not self._whole:
            raise Invalid("The upload ends in the middle of its form", "Send it again.")
        if not self._files:
            raise Invalid("The upload has no `file`", "Send the file as the form field `file`, with its name.")

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Invalid(f"The upload has more than {MAX_PARTS} form fields", REMEDY)
        self._disposition = self._content = b""

    def _header_goes_on(self, data: bytes, start: int, end: int) -> None:
        self._header += self._counted(data[start:end])

    def _value_goes_on(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _content_begins(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _no_form("a part has no name")
        name = options[b"name"].decode(errors="replace")
        if b"filename" not in options:
            self._name = name
            return
        self._name = None
        self._files += 1
        if name != "file" or self._files > 1:
            raise Invalid(
                "The upload has no `file` but another one, or several", "Send one file, as the form field `file`."
            )
        self._begin(options[b"filename"].decode(errors="replace"))

    def _content_goes_on(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self._pieces.append(data[start:end])
        else:
            self._content += self._counted(data[start:end])

    def _part_ends(self) -> None:
        if self._name is not None:
            self.fields[self._name] = self._content.decode(errors="replace")

    def _ends(self) -> None:
        self._whole = True

    def _counted(self, data: bytes) -> bytes:
        self._overhead += len(data)
        if self._overhead > OVERHEAD:
            raise Invalid(f"The upload has more than {OVERHEAD:,} bytes beside its file", REMEDY)
        return data


def _no_form(why: str) -> Invalid:
    return Invalid(f"The upload is not a multipart form: {why[:300]}", REMEDY)
