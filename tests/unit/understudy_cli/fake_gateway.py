"""A stand-in for the gateway: the resources that the command line asks, with runs that go as their names say.

    python fake_gateway.py     listens on UNDERSTUDY_PORT, keeps its runs in UNDERSTUDY_DATA

Runs are finished after a few looks; `doomed` fails as a whole, `patchy` loses an item in its first generation, `slow` takes
until the file `hurry` appears. A run that is cancelled keeps what is in its report; asked for again it is taken up as the
next generation. The adapter of `ft:seedling:quick:mine` can be fetched; that of `ft:seedling:quick:evil` leads elsewhere,
and that of `ft:seedling:quick:torn` does not arrive whole while the file `torn` is there. What was deleted is told from what
never was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from understudy.belt.contracts import Progress
from understudy.belt.folds.views import OVER, ItemState, RunState, RunSummary
from understudy.plan import Plan, PlannedBase, make
from understudy.recipe import parse
from understudy.report import Cell, Report, Verdict
from understudy.terms import Artifact
from understudy.testing import report_of

DATA = Path(os.environ["UNDERSTUDY_DATA"])
KEPT = DATA / "fake-runs"
LOOKS = 3
SOMETHING = Artifact(sha256="0" * 64)
ADAPTER = {"README.md": b"a card", "adapter_config.json": b"{}", "weights/part one.bin": bytes(range(256)) * 500}


def plan_of(recipe: Any) -> Plan:
    return make(parse(recipe, "kept"), lambda base: PlannedBase(name=Path(base).name, reference=base))


def cell(value: float, verdict: Verdict | None) -> Cell:
    delta = {} if verdict is None else {"delta": 0.2, "delta_low": 0.1, "delta_high": 0.3, "p": 0.01}
    return Cell(n=100, value=value, low=value - 0.05, high=value + 0.05, verdict=verdict, **delta)


def report(state: RunState) -> Report:
    scored = [name for name, item in state.items.items() if item.stage == "scored"]
    return report_of(
        plan_of(json.loads((KEPT / state.id).read_text())["recipe"]),
        {name: cell(0.5, None) if name == "base" else cell(0.7, "better") for name in scored},
        run=state.id,
        unread={"base": 17},
        failed=[name for name, item in state.items.items() if item.stage == "failed"],
        cancelled=[name for name, item in state.items.items() if item.stage == "cancelled"],
    )


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = unquote(self.path)
        if path == "/readyz":
            self.answer({"status": "ready"})
        elif path == "/v1/models":
            self.answer({"object": "list", "data": [{"id": "seedling"}, {"id": "quick:mine"}]})
        elif found := re.fullmatch(r"/v1/runs\?limit=(\d+)", path):
            runs = [RunSummary(**dict(self.look(path.name))) for path in sorted(KEPT.glob("*"))]
            some = [run.model_dump(mode="json") for run in runs[: int(found[1])]]
            self.answer({"data": some, "has_more": len(runs) > len(some)})
        elif (found := re.fullmatch(r"/v1/(runs|reports)/([\w-]+)(\.json)?", path)) and (KEPT / found[2]).exists():
            state = self.look(found[2])
            if found[1] == "runs":
                self.answer(state.model_dump(mode="json"))
            elif found[3]:
                self.answer(report(state).model_dump(mode="json"))
            else:
                self.send(b"<html>the report</html>")
        elif (found := re.fullmatch(r"/v1/runs/([\w-]+)/logs(?:\?item=(.+))?", path)) and (KEPT / found[1]).exists():
            self.send(f"12:00:00  {found[2] or 'the run'}: asked for\n".encode())
        elif found := re.fullmatch(r"/v1/models/ft:seedling:quick:(mine|evil|torn)/files(?:/(.+))?", path):
            self.file(found[1], found[2])
        elif found := re.fullmatch(r"/v1/models/(.+)", path):
            self.refuse(404, f"The model `{found[1]}` does not exist.")
        elif (DATA / "deleted" / path.rpartition("/")[2]).exists():
            self.refuse(404, f"Run `{path.rpartition('/')[2]}` was deleted")
        else:
            self.refuse(404, f"There is nothing at {path}")

    def file(self, model: str, name: str | None) -> None:
        if name:
            (DATA / "fetched").open("a").write(f"{name}\n")
            content = ADAPTER[name]
            self.send(content[:-1] if model == "torn" and (DATA / "torn").exists() and "bin" in name else content)
            return
        files = {"../outside": b"x", **ADAPTER} if model == "evil" else ADAPTER
        listed = [{"path": n, "bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()]
        self.answer({"object": "list", "data": listed})

    def do_DELETE(self) -> None:
        run = self.path.rpartition("/")[2]
        (DATA / "deleted").mkdir(exist_ok=True)
        if (KEPT / run).exists():
            (KEPT / run).rename(DATA / "deleted" / run)
            self.answer({"id": run, "object": "run", "freed_bytes": 3 << 20, "deleted": True})
        elif (DATA / "deleted" / run).exists():
            self.answer({"id": run, "object": "run", "freed_bytes": 0, "deleted": True})
        else:
            self.refuse(404, f"There is no run `{run}`")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.refuse(411, "chunked")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/v1/files":
            content = re.search(rb'name="file".*?\r\n\r\n(.*?)\r\n--', body, re.DOTALL)
            assert content
            self.answer({"id": f"file-{hashlib.sha256(content[1]).hexdigest()[:16]}"})
        elif self.path == "/v1/runs":
            self.begin(json.loads(body))
        elif found := re.fullmatch(r"/v1/runs/([\w-]+)/cancel", self.path):
            item = json.loads(body)["item"] if body else None
            self.keep(found[1], cancelled=item or True)
            self.answer(self.look(found[1]).model_dump(mode="json"))
        else:
            self.converse(json.loads(body))

    def begin(self, asked: dict[str, Any]) -> None:
        recipe = parse(asked["recipe"], "the request")
        if recipe.base == "nowhere":
            self.refuse(400, "There is no base model `nowhere`. Give another.")
            return
        run = recipe.run_id(asked["fresh"])
        KEPT.mkdir(exist_ok=True)
        if not (KEPT / run).exists():
            new = {"recipe": asked["recipe"], "looks": 0, "generation": 1, "cancelled": None}
            (KEPT / run).write_text(json.dumps(new))
        state = self.look(run)
        if state.status in OVER and any(item.stage != "scored" for item in state.items.values()):
            self.keep(run, generation=state.generation + 1, looks=0, cancelled=None)
            state = self.look(run)
        self.answer(state.model_dump(mode="json"))

    def converse(self, asked: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": a comment that says nothing\n\n")
        for word in (f"{len(asked['messages'])} turns, ", "you said ", asked["messages"][-1]["content"]):
            self.wfile.write(b"data: " + json.dumps({"choices": [{"delta": {"content": word}}]}).encode() + b"\n\n")
            time.sleep(0.01)
        self.wfile.write(b"data: [DONE]\n\n")

    def keep(self, run: str, **more: Any) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads((KEPT / run).read_text()) | more
        (KEPT / run).write_text(json.dumps(kept))
        return kept

    def look(self, run: str) -> RunState:
        kept = json.loads((KEPT / run).read_text())
        kept = self.keep(run, looks=kept["looks"] + 1)
        recipe, looks, generation, cancelled = (kept[key] for key in ("recipe", "looks", "generation", "cancelled"))
        plan = plan_of(recipe)
        over = (DATA / "hurry").exists() if plan.name == "slow" else looks > LOOKS
        progress = Progress(
            run=run, station="trainer", step="training", done=looks, total=10, figures={"loss": 2 / looks}
        )
        item = (
            ItemState(stage="scored", model="ft:seedling:quick:mine")
            if over
            else ItemState(stage="training", progress=progress)
        )
        items = {each.name: item for each in plan.items}
        if over and plan.name == "patchy" and generation == 1:
            items["mine"] = ItemState(stage="failed", reason="the trainer ran out of ideas")
        if cancelled:
            ended = [cancelled] if isinstance(cancelled, str) else [name for name in items if name != "base"]
            items |= dict.fromkeys(ended, ItemState(stage="cancelled"))
        status, reason = "finished" if over else "running", None
        if cancelled is True:
            status, items["base"] = "cancelled", ItemState(stage="scored")
        elif over and plan.name == "doomed":
            status, reason = "failed", "the data was no good."
            items = dict.fromkeys(items, ItemState())
        stages = [item.stage for item in items.values()]
        return RunState.model_validate(
            {
                "id": run,
                "name": plan.name,
                "status": status,
                "generation": generation,
                "created_at": 0,
                "bases": [base.reference for base in plan.bases],
                "stages": {stage: stages.count(stage) for stage in stages},
                "report": SOMETHING if status in ("finished", "cancelled") else None,
                "reason": reason,
                "plan": SOMETHING,
                "items": items,
            }
        )

    def refuse(self, status: int, message: str) -> None:
        self.answer(
            {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}, status
        )

    def answer(self, content: Any, status: int = 200) -> None:
        self.send(json.dumps(content).encode(), status)

    def send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["UNDERSTUDY_PORT"])), Handler).serve_forever()
