"""A stack that asks for keys: the first key, what each opens, its end and replacement, a browser, the openai SDK; nothing is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from belt import UNDERSTUDY, Belt

from understudy.service.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class House:
    """A stack with a finished run in it, and the key of its administrator."""

    data: Path
    url: str
    admin: str

    def cli(self, *words: str, key: str | None = None, server: bool = False) -> subprocess.CompletedProcess[str]:
        where = ["--server", self.url] if server else ["--data", str(self.data)]
        env = {name: value for name, value in os.environ.items() if name != "UNDERSTUDY_API_KEY"}
        env |= {"UNDERSTUDY_API_KEY": key} if key else {}
        return subprocess.run([str(UNDERSTUDY), *words, *where], capture_output=True, text=True, timeout=120, env=env)

    def key(self, *words: str) -> str:
        """A key that the administrator makes over HTTP."""
        made = self.cli("keys", "create", *words, key=self.admin, server=True)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def status(self, key: str | None, path: str = "/v1/models", method: str = "GET", **more: object) -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.request(method, self.url + path, headers=headers, trust_env=False, timeout=60, **more).status_code  # type: ignore[arg-type]

    def run(self) -> str:
        (run,) = httpx.get(f"{self.url}/v1/runs", headers=self.bearer(), trust_env=False).json()["data"]
        return str(run["id"])

    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.admin}"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, undisturbed: tuple[Belt, str]) -> Iterator[House]:
    """On a copy of the data of a finished run, which others may be using."""
    theirs, data = undisturbed[0].data, tmp_path_factory.mktemp("keys") / "data"
    not_copied = shutil.ignore_patterns("bus.sqlite*", "stack.*", "work", "logs", "internal-token")
    shutil.copytree(theirs, data, ignore=not_copied)
    with sqlite3.connect(theirs / "bus.sqlite") as there, sqlite3.connect(data / "bus.sqlite") as here:
        there.backup(here)
    first = subprocess.run(
        [str(UNDERSTUDY), "keys", "create", "--first", "--data", str(data)], capture_output=True, text=True
    )
    assert first.returncode == 0, first.stderr
    (port,) = free_ports(1)
    env = os.environ | {"UNDERSTUDY_KEYS": "required"}
    up = subprocess.Popen([str(UNDERSTUDY), "up", "--port", str(port), "--data", str(data)], env=env)
    try:
        deadline = time.monotonic() + 120
        while not (data / "stack.json").exists():
            assert time.monotonic() < deadline
            assert up.poll() is None
            time.sleep(0.2)
        yield House(data, f"http://127.0.0.1:{port}", first.stdout.strip())
    finally:
        up.terminate()
        up.wait(60)


def test_nobody_comes_in_without_a_key_and_whoever_has_one_does_what_its_scopes_say(house: House) -> None:
    reader, asker = house.key("reader", "--scope", "read"), house.key("asker", "--scope", "inference")
    assert house.status(None) == house.status("sk-understudy-abcd2345-" + "x" * 43) == house.status("none") == 401
    assert house.status(reader) == house.status(asker) == house.status(house.admin) == 200
    assert (house.status(reader, "/v1/runs"), house.status(asker, "/v1/runs")) == (200, 403)
    for key in (reader, asker):
        assert house.status(key, f"/v1/runs/{house.run()}", "DELETE") == 403
        assert house.status(key, "/v1/keys") == 403
        assert house.status(key, "/v1/keys", "POST", json={"name": "x", "scopes": ["admin"]}) == 403
    assert house.cli("keys", "create", "--first").returncode == 1, "somebody has one"


def test_the_openai_sdk_comes_in_with_a_key(house: House) -> None:
    key = house.key("sdk", "--scope", "inference")
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key=key, timeout=240, max_retries=3) as client:
        adapters = [model.id for model in client.models.list() if model.id.startswith("ft:")]
        said = client.chat.completions.create(
            model=adapters[0], messages=[{"role": "user", "content": "Good."}], max_tokens=4
        )
        assert said.choices[0].message.content
        used = httpx.get(f"{house.url}/v1/usage", headers=house.bearer(), trust_env=False).json()["data"]
        (mine,) = [each for each in used if each["name"] == "sdk"]
        assert (mine["model"], mine["requests"]) == (adapters[0], 1)
    with (
        openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="asks for an API key"),
    ):
        stranger.models.list()


def test_a_revoked_key_opens_nothing_any_more_at_once(house: House) -> None:
    key = house.key("short", "--scope", "read", "--days", "1")
    assert house.status(key) == 200
    key_id = key.split("-")[2]
    assert house.cli("keys", "revoke", key_id, key=house.admin, server=True).returncode == 0
    assert house.status(key) == 401


def test_a_rotated_key_goes_on_beside_its_successor_for_as_long_as_was_said(house: House) -> None:
    old = house.key("turning", "--scope", "read")
    key_id = old.split("-")[2]
    turned = house.cli("keys", "rotate", key_id, "--overlap", "0.05m", key=house.admin, server=True)
    assert turned.returncode == 0, turned.stderr
    assert house.status(turned.stdout.strip()) == house.status(old) == 200
    time.sleep(3.2)
    assert house.status(turned.stdout.strip()) == 200
    assert house.status(old) == 401


def test_whoever_has_the_machine_needs_no_key_and_says_so_on_its_bus(house: House) -> None:
    assert house.run() in house.cli("runs").stdout
    assert house.cli("runs", server=True).returncode == 1
    made = house.cli("keys", "create", "by hand", "--scope", "read").stdout.strip()
    deadline = time.monotonic() + 10
    while house.status(made) != 200:
        assert time.monotonic() < deadline, "the gateway never heard of it"
        time.sleep(0.05)
    house.key("over HTTP", "--scope", "read")
    cards = {card["name"]: card for card in json.loads(house.cli("keys", "list", "--json").stdout)}
    assert (cards["by hand"]["made_by"], cards["over HTTP"]["made_by"]) == ("", "admin")


def test_a_browser_logs_in_and_opens_the_report_and_out_again(house: House) -> None:
    """Led to the page, back to the report, with what a browser sends and keeps."""
    reader = house.key("browser", "--scope", "read")
    page = f"{house.url}/v1/reports/{house.run()}"
    with httpx.Client(follow_redirects=True, trust_env=False, headers={"accept": "text/html"}) as browser:
        asked = browser.get(page)
        assert asked.url.path == "/login"
        hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked.text))
        ours = {"origin": house.url}
        form = {**hidden, "key": reader}
        assert (
            browser.post(f"{house.url}/login", data=form, headers={"origin": "http://evil.example"}).status_code == 403
        )
        report = browser.post(f"{house.url}/login", data=form, headers=ours)
        assert str(report.url) == page
        assert "What was gained, what was lost" in report.text
        assert browser.get(page).status_code == 200, "the session goes on"
        gone = browser.delete(f"{house.url}/v1/runs/{house.run()}", headers=ours)
        assert gone.status_code == 403
        known = browser.get(f"{house.url}/login")
        (token,) = re.findall(r'name="form" value="([^"]*)"', known.text)
        browser.post(f"{house.url}/logout", data={"form": token}, headers=ours)
        assert browser.get(page).url.path == "/login"
        form["form"] = dict(re.findall(r'name="(form)" value="([^"]*)"', browser.get(page).text))["form"]
        assert str(browser.post(f"{house.url}/login", data=form, headers=ours).url) == page
        house.cli("keys", "revoke", reader.split("-")[2], key=house.admin, server=True)
        assert browser.get(page).url.path == "/login", "the end of a key ends its pages"


def test_what_is_asked_for_has_its_owner_and_what_administrators_do_is_in_the_audit_trail(house: House) -> None:
    job = house.key("ci", "--scope", "jobs")
    with httpx.Client(base_url=house.url, headers={"authorization": f"Bearer {job}"}, trust_env=False) as client:
        csv = "text,label\n" + "".join(f"remark {n},{n % 2}\n" for n in range(40))
        file = client.post("/v1/files", files={"file": ("a.csv", csv)}, data={"purpose": "fine-tune"}).json()["id"]
        recipe = {
            "name": "owned",
            "base": "seedling",
            "datasets": {"d": {"source": file, "rows": {"train": 20, "validation": 0, "test": 10}}},
            "variants": {"v": {"train": "d"}},
            "evaluation": {"panels": {"p": {"dataset": "d", "metrics": ["accuracy"]}}},
        }
        run = client.post("/v1/runs", json={"recipe": recipe}).json()
        assert run.get("owner") == "ci", run
        client.post(f"/v1/runs/{run['id']}/cancel")
        assert "cancel was asked for by ci" in client.get(f"/v1/runs/{run['id']}/logs").text
        assert client.delete(f"/v1/runs/{run['id']}").status_code == 200
        assert client.delete(f"/v1/files/{file}").status_code == 200
    said = (house.data / "logs" / "datagen.log").read_text()
    who = f"who=ci key={job.split('-')[2]} outcome=done"
    assert f"audit: run.delete on={run['id']} {who}" in said
    assert f"audit: file.delete on={file} {who}" in said
    keys = (house.data / "logs" / "inference.log").read_text()
    assert re.search(r"audit: key\.create on=ci who=admin key=\w{8} outcome=done", keys)


def test_no_key_is_in_a_log_a_metric_or_on_the_bus(house: House) -> None:
    key = house.key("secret", "--scope", "read")
    secrets = [each[-20:].encode() for each in (key, house.admin)]
    house.status(key)
    metrics = httpx.get(f"{house.url}/metrics", trust_env=False).content
    files = [path.read_bytes() for path in (house.data / "logs").iterdir()]
    files += [path.read_bytes() for path in house.data.glob("bus.sqlite*")]
    for secret in secrets:
        assert not any(secret in content for content in [metrics, *files])
