"""Uploads arrive piece by piece: whatever their form, in the memory of one piece, and nothing of a broken one stays."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from services.datagen.api import router
from services.datagen.files import Files
from services.datagen.form import Form
from understudy.errors import Invalid
from understudy.service.web import add_errors
from understudy.testing import local_store

TYPE = "multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\nContent-Type: text/csv\r\n\r\n'
PURPOSE = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nevals\r\n'
END = b"--b--\r\n"


def fed(body: bytes, size: int) -> tuple[Form, str, bytes]:
    """A form that was fed in chunks of `size`; the name and the content of its file."""
    names: list[str] = []
    form = Form(TYPE, names.append)
    content = b"".join(piece for start in range(0, len(body), size) for piece in form.feed(body[start : start + size]))
    form.end()
    return form, "".join(names), content


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize("content", [b"text\r\n--\r\n--b\n\r\n--c\r", b"", bytes(range(256))])
def test_the_content_is_what_was_sent_wherever_a_chunk_ends(content: bytes, size: int) -> None:
    for body in (FILE + content + b"\r\n" + PURPOSE + END, PURPOSE + FILE + content + b"\r\n" + END):
        form, name, read = fed(body, size)
        assert (name, read, form.fields) == ("a.csv", content, {"purpose": "evals"})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (FILE + b"half of", "ends in the middle"),
        (FILE + b"whole\r\n" + PURPOSE, "ends in the middle"),
        (b"", "ends in the middle"),
        (PURPOSE + END, "no `file`"),
        (FILE.replace(b'"file"', b'"other"') + b"x\r\n" + END, "no `file`"),
        (FILE + b"x\r\n" + FILE + b"y\r\n" + END, "or several"),
        (FILE.replace(b' name="file";', b"") + b"x\r\n" + END, "a part has no name"),
        (b"something else", "not a multipart form"),
        (PURPOSE * 21 + END, "more than 20 form fields"),
        (PURPOSE.replace(b"evals", b"x" * 70_000) + END, "more than 65,536 bytes beside its file"),
        (FILE.replace(b"a.csv", b"a" * 70_000) + END, "not a multipart form|more than 65,536"),
        (FILE.replace(b"text/csv", b"t" * 70_000) + END, "not a multipart form|more than 65,536"),
    ],
)
def test_what_is_no_form_with_one_file_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        fed(body, 500)


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=b"])
def test_another_kind_of_body_is_refused(kind: str) -> None:
    with pytest.raises(Invalid, match="not a multipart form"):
        Form(kind, print)


@contextlib.contextmanager
def served(folder: Path, max_bytes: int) -> Iterator[int]:
    """The real server; its port."""
    app = FastAPI()
    add_errors(app)
    app.include_router(router(Files(local_store(folder), max_bytes), None))  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def until(met: object) -> None:
    deadline = time.monotonic() + 10
    while not met():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def head(length: int) -> bytes:
    return f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nContent-Length: {length}\r\n\r\n".encode()


def lying(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_a_client_that_hangs_up_leaves_nothing(tmp_path: Path) -> None:
    with served(tmp_path, 100_000_000) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head(50_000_000) + FILE + b"x" * 5_000_000)
            until(lambda: lying(tmp_path))
            (half,) = lying(tmp_path)
            assert ".draft." in half.as_posix(), "it lies where the store takes it from, and nowhere else"
        until(lambda: not lying(tmp_path))
        assert list((tmp_path / "cache").glob(".draft.*")) == []


def test_a_large_file_takes_the_memory_of_a_piece(tmp_path: Path) -> None:
    with served(tmp_path, 1 << 30) as port:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        piece, pieces = b"a line of it\n" * 100_000, 150
        tail = b"\r\n" + PURPOSE + END
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head(len(FILE) + len(piece) * pieces + len(tail)) + FILE)
            for _ in range(pieces):
                client.sendall(piece)
            client.sendall(tail)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert [path.stat().st_size for path in lying(tmp_path)] == [len(piece) * pieces]
    assert grown < 25, f"{grown} MiB for {len(piece) * pieces // 1024**2} MiB"
