"""The store in S3 keeps the store contract, survives a kill in the middle of an upload, and says what is wrong in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from s3_server import Answer, S3Server
from store_contract import WRITER, Connect, StoreContract, artifact, contents, folder, names, start

from understudy.errors import Fatal, Transient
from understudy.interrupt import Interrupted, interruptible
from understudy.store import sweep
from understudy.store.artifacts import FsspecArtifactStore
from understudy.store.s3 import TRANSFER

BUCKET = "belt"
URL = f"s3://{BUCKET}/some/where"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "something",
    "AWS_EC2_METADATA_DISABLED": "true",  # of the machine that runs the tests
    "AWS_MAX_ATTEMPTS": "1",
}


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """A server with one empty bucket, and the environment that leads to it: AWS's own variables and nothing of ours."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": running.url, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    running.intercept = lambda environ, answer: None
    bucket = boto3.resource("s3", region_name="us-east-1").Bucket(BUCKET)
    bucket.create()
    bucket.objects.delete()
    running.requests.clear()
    return running


@pytest.fixture
def store(server: S3Server, tmp_path: Path) -> FsspecArtifactStore:
    return FsspecArtifactStore(URL, tmp_path / "cache")


class TestS3(StoreContract):
    @pytest.fixture
    def url(self, server: S3Server) -> str:
        return URL

    def test_a_fetch_by_eight_threads_asks_for_each_blob_once(
        self, server: S3Server, connect: Connect, tmp_path: Path
    ) -> None:
        one = connect("writer").put("k", folder(tmp_path / "made", a="1", b="2"))
        store = connect("shared")
        server.requests.clear()
        with ThreadPoolExecutor(8) as readers:
            list(readers.map(lambda _: store.fetch(one), range(8)))
        assert len([line for line in server.requests if line.startswith("GET") and "/blobs/" in line]) == 2


def blob_of(parts: int) -> bytes:
    """So many parts of a multipart upload, each of other bytes."""
    return b"".join(bytes([number]) * int(TRANSFER["chunksize"]) for number in range(parts))


def unfinished() -> int:
    """How many multipart uploads were begun and neither completed nor taken back."""
    return len(boto3.client("s3", region_name="us-east-1").list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()))


def refusal(status: str, code: str) -> Callable[[dict[str, Any], Answer], Iterable[bytes]]:
    def intercept(environ: dict[str, Any], answer: Answer) -> Iterable[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer(status, [("Content-Type", "application/xml")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [f"<Error><Code>{code}</Code></Error>".encode()]

    return intercept


def test_a_large_blob_goes_up_and_down_in_parts_and_is_written_once(
    server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    made = folder(tmp_path / "made")
    (made / "large").write_bytes(blob_of(3) + b"the end")
    copy = store.fetch(store.put("k", made))
    assert (copy / "large").read_bytes() == (made / "large").read_bytes()
    assert sum("partNumber=" in line for line in server.requests) == 4
    assert len(names(URL, "blobs")) == 1
    assert not any("copy" in line.lower() or "partial" in line for line in server.requests)


def test_kill_9_in_the_middle_of_a_multipart_upload_shows_nothing_and_the_next_put_completes(
    server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    made = folder(tmp_path / "made")
    (made / "large").write_bytes(blob_of(5))
    under_way, killed, before = threading.Event(), threading.Event(), unfinished()

    def hold(environ: dict[str, Any], answer: Answer) -> None:
        if "partNumber=5" in environ["QUERY_STRING"]:
            under_way.set()
            killed.wait(30)

    server.intercept = hold
    writer = start(WRITER, URL, tmp_path / "killed", made)
    assert under_way.wait(30)
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    server.intercept = lambda environ, answer: None
    killed.set()

    assert [names(URL, kind) for kind in ("blobs", "manifests", "refs")] == [[], [], []]
    assert store.find("k") is None
    assert unfinished() == before + 1  # takes room until a lifecycle rule removes it
    assert contents(store.fetch(store.put("k", made))) == contents(made)


def interrupted_within(seconds: float, begun: threading.Event, work: Callable[[], object]) -> None:
    """Have `work` stop as soon as it has `begun`."""
    stop = threading.Event()

    def stop_once_begun() -> None:
        begun.wait(30)
        stop.told = time.monotonic()  # type: ignore[attr-defined]
        stop.set()

    teller = threading.Thread(target=stop_once_begun)
    teller.start()
    with interruptible(stop), pytest.raises(Interrupted):
        work()
    teller.join()
    assert time.monotonic() - stop.told < seconds  # type: ignore[attr-defined]


@pytest.mark.parametrize("parts", [1, 5])
def test_an_upload_that_stands_still_stops_within_seconds_and_names_nothing(
    parts: int, server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    made = folder(tmp_path / "made")
    (made / "large").write_bytes(blob_of(parts))
    begun, over = threading.Event(), threading.Event()

    def hold(environ: dict[str, Any], answer: Answer) -> None:
        if environ["REQUEST_METHOD"] == "PUT" and "/blobs/" in environ["PATH_INFO"]:
            begun.set()
            over.wait(30)

    server.intercept = hold
    interrupted_within(8, begun, lambda: store.put("k", made))
    server.intercept = lambda environ, answer: None
    over.set()
    assert store.find("k") is None
    assert names(URL, "manifests") == []
    assert contents(store.fetch(store.put("k", made))) == contents(made)


def test_an_upload_that_is_slow_stops_after_its_part_and_takes_its_parts_back(
    server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    made = folder(tmp_path / "made")
    (made / "large").write_bytes(blob_of(6))
    begun, before = threading.Event(), unfinished()

    def slow(environ: dict[str, Any], answer: Answer) -> None:
        if "partNumber=" in environ["QUERY_STRING"]:
            begun.set()
            time.sleep(0.3)

    server.intercept = slow
    interrupted_within(8, begun, lambda: store.put("k", made))
    assert [line for line in server.requests if line.startswith("DELETE")], "the upload is taken back"
    assert unfinished() == before
    assert (names(URL, "blobs"), store.find("k")) == ([], None)


@pytest.mark.parametrize("what", ["/blobs/", "/manifests/"])
def test_a_download_that_stands_still_stops_within_seconds_and_leaves_no_copy(
    what: str, server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    made = folder(tmp_path / "made", a="x" * 100)
    one = store.put("k", made)
    begun, over = threading.Event(), threading.Event()

    def dripping(environ: dict[str, Any], answer: Answer) -> Iterable[bytes] | None:
        if what not in environ["PATH_INFO"]:
            return None
        answer("200 OK", [("Content-Length", "100")])
        return drops()

    def drops() -> Iterator[bytes]:
        yield b"x"
        begun.set()
        over.wait(30)

    server.intercept = dripping
    interrupted_within(8, begun, lambda: store.fetch(one))
    server.intercept = lambda environ, answer: None
    over.set()
    assert not [path for path in (tmp_path / "cache").glob("*") if not path.name.startswith(".")]
    assert contents(store.fetch(one)) == contents(made)


def test_what_has_no_name_is_swept_from_a_bucket_too(
    server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    kept = store.put("runs/r/plan", folder(tmp_path / "kept", a="1"))
    store.put("runs/killed/plan", folder(tmp_path / "lost", a="lost"))
    store.place.remove(["refs/runs/killed/plan.json"])
    assert sweep.find_unnamed(store, 60) == []
    found = sweep.find_unnamed(store, -60)  # a clock that tells whole seconds is never ahead of so much
    assert {(each.path.split("/")[0], each.bytes) for each in found} >= {("blobs", 4)}
    assert sweep.remove_unnamed(store, found, 60) == 0
    assert sweep.remove_unnamed(store, found, -60) == sum(each.bytes for each in found)
    assert contents(store.fetch(kept)) == {"a": "1"}
    assert len(names(URL, "blobs")) == 1


def test_a_server_that_does_not_say_which_condition_failed_lets_the_first_win_too(
    server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    first = store.put("k", folder(tmp_path / "x", a="1"))
    refuse, refused = refusal("412 Precondition Failed", "PreconditionFailed"), []

    def intercept(environ: dict[str, Any], answer: Answer) -> Iterable[bytes] | None:
        if environ.get("HTTP_IF_NONE_MATCH") != "*":
            return None
        refused.append(environ["PATH_INFO"])
        return refuse(environ, answer)

    server.intercept = intercept
    assert store.put("k", folder(tmp_path / "y", a="2")) == first
    assert refused == [f"/{BUCKET}/some/where/refs/k.json"]


def test_a_missing_bucket_is_fatal_for_every_call_and_not_an_absent_key(server: S3Server, tmp_path: Path) -> None:
    store = FsspecArtifactStore("s3://nowhere/some", tmp_path / "cache")
    for call in (
        lambda: store.find("k"),
        lambda: store.keys("k"),
        lambda: store.delete("k"),
        lambda: store.fetch(artifact()),
        lambda: store.put("k", folder(tmp_path / "made", a="1")),
    ):
        with pytest.raises(Fatal, match=r"bucket of the artifact store s3://nowhere/some does not exist\. Create it"):
            call()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "Partial credentials"),
        ({"AWS_PROFILE": "nobody"}, r"profile \(nobody\) could not be found"),
        ({"AWS_ENDPOINT_URL": "minio:9000"}, "Invalid endpoint: minio:9000"),
    ],
)
def test_what_botocore_cannot_even_ask_with_is_fatal(
    change: dict[str, str], says: str, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Fatal, match=rf"store {URL} cannot be used: .*{says}.*AWS_ENDPOINT_URL"):
        FsspecArtifactStore(URL, tmp_path / "cache").find("k")


def test_a_name_that_no_bucket_can_have_is_fatal(server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"cannot be used: .*Invalid bucket name .*Check UNDERSTUDY_ARTIFACTS"):
        FsspecArtifactStore("s3://no bucket/some", tmp_path / "cache").find("k")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("403 Forbidden", "AccessDenied", Fatal),
        ("403 Forbidden", "SignatureDoesNotMatch", Fatal),
        ("400 Bad Request", "ExpiredToken", Fatal),
        ("400 Bad Request", "AuthorizationHeaderMalformed", Fatal),
        ("400 Bad Request", "RequestTimeout", Transient),
        ("409 Conflict", "ConditionalRequestConflict", Transient),
        ("500 Internal Server Error", "InternalError", Transient),
        ("503 Slow Down", "SlowDown", Transient),
        ("507 Insufficient Storage", "XMinioStorageFull", Transient),
    ],
)
def test_what_s3_answers_decides_whether_to_ask_again(
    status: str, code: str, kind: type[Exception], server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    refuse = refusal(status, code)
    server.intercept = lambda environ, answer: refuse(environ, answer) if environ["REQUEST_METHOD"] == "PUT" else None
    with pytest.raises(kind, match=f"The artifact store {URL} "):
        store.put("k", folder(tmp_path / "made", a="1"))
    server.intercept = lambda environ, answer: None
    assert store.find("k") is None


def test_a_throttled_request_is_made_again_before_anybody_hears_of_it(
    server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    refuse, refused = refusal("503 Slow Down", "SlowDown"), []

    def intercept(environ: dict[str, Any], answer: Answer) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] == "PUT" and len(refused) < 2:
            refused.append(environ["PATH_INFO"])
            return refuse(environ, answer)
        return None

    server.intercept = intercept
    stored = store.put("k", folder(tmp_path / "made", a="1"))
    assert (len(refused), store.find("k")) == (2, stored)


def test_nobody_at_the_endpoint_is_transient(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = FsspecArtifactStore(URL, tmp_path / "cache")
    for call in (lambda: store.find("k"), lambda: store.put("k", folder(tmp_path / "made", a="1"))):
        with pytest.raises(Transient, match=rf"{URL} did not answer: Could not connect .*127\.0\.0\.1:9.*Is it up"):
            call()


def test_a_server_that_hangs_up_in_the_middle_of_a_blob_is_transient_and_leaves_no_copy(
    server: S3Server, store: FsspecArtifactStore, tmp_path: Path
) -> None:
    one = store.put("k", folder(tmp_path / "made", a="1"))

    def hangs_up(environ: dict[str, Any], answer: Answer) -> Iterable[bytes] | None:
        if "/blobs/" not in environ["PATH_INFO"]:
            return None
        answer("200 OK", [("Content-Length", "1000")])
        return [b"1"]

    server.intercept = hangs_up
    with pytest.raises(Transient, match=f"{URL} did not answer: .*[Pp]ayload"):
        store.fetch(one)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_silent_server_is_transient(
    server: S3Server, store: FsspecArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.3)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    heard = threading.Event()

    def silent(environ: dict[str, Any], answer: Answer) -> None:
        heard.wait(5)

    server.intercept = silent
    with pytest.raises(Transient, match=f"{URL} did not answer: .*[Tt]imeout"):
        store.find("k")
    heard.set()


def test_without_s3fs_the_extra_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['s3fs'] = None; from pathlib import Path; from understudy.store.artifacts import *\n"
        "try: FsspecArtifactStore(sys.argv[1], Path(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", script, URL, str(tmp_path)], capture_output=True, text=True).stdout
    assert said.startswith(f"Fatal The artifact store {URL} needs s3fs: ")
    assert said.endswith("Install it: pip install 'understudy[s3]'.\n")
