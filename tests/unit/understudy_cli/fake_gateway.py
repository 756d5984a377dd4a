"""A stand-in for the gateway: the resources that the command line asks, with runs that go as their names say.

    python fake_gateway.py     listens on UNDERSTUDY_PORT, keeps its runs in UNDERSTUDY_DATA

Runs are finished after a few looks; `doomed` fails as a whole, `patchy` loses a variant, `slow` takes until the file `hurry` appears.
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

from understudy.belt.contracts import Artifact, Progress
from understudy.belt.folds.runs import RunState, VariantState
from understudy.recipe import parse

DATA = Path(os.environ["UNDERSTUDY_DATA"])
KEPT = DATA / "fake-runs"
LOOKS = 3


def cell(value: float, verdict: str | None) -> dict[str, Any]:
    delta = {} if verdict is None else {"delta": 0.2, "delta_low": 0.1, "delta_high": 0.3, "p": 0.01}
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "verdict": verdict, **delta}


def report(state: RunState) -> dict[str, Any]:
    trained = [name for name in state.variants if name != "base"]
    failed = {name: "the trainer ran out of ideas" for name in trained if "patchy" in state.id}
    cells = {"base": cell(0.5, None)} | {name: cell(0.7, "better") for name in trained if name not in failed}
    metric = {"metric": "accuracy", "signature": "accuracy", "higher_is_better": True, "cells": cells}
    panels = [{"name": "in-domain", "n": 100, "metrics": [metric], "parse_failures": {"base": 7}}]
    return {"run": state.id, "variants": list(state.variants), "panels": panels, "failed": failed}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/readyz":
            self.answer({"status": "ready"})
        elif self.path == "/v1/models":
            self.answer({"object": "list", "data": [{"id": "seedling"}, {"id": "quick:mine"}]})
        elif self.path.startswith("/v1/runs?limit="):
            self.answer({"data": [self.look(path.name).model_dump(mode="json") for path in sorted(KEPT.glob("*"))]})
        elif (found := re.fullmatch(r"/v1/(runs|reports)/([\w-]+)(\.json)?", self.path)) and (KEPT / found[2]).exists():
            state = self.look(found[2])
            if found[1] == "runs":
                self.answer(state.model_dump(mode="json"))
            elif found[3]:
                self.answer(report(state))
            else:
                self.send(b"<html>the report</html>")
        else:
            self.refuse(404, f"There is nothing at {self.path}")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.refuse(411, "chunked")
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/files":
            content = re.search(rb'name="file".*?\r\n\r\n(.*?)\r\n--', body, re.DOTALL)
            assert content
            self.answer({"id": f"file-{hashlib.sha256(content[1]).hexdigest()[:16]}"})
        elif self.path == "/v1/runs":
            asked = json.loads(body)
            recipe = parse(asked["recipe"], "the request")
            if recipe.base == "nowhere":
                self.refuse(400, "There is no base model `nowhere`. Give another.")
                return
            run = recipe.run_id(asked["attempt"])
            KEPT.mkdir(exist_ok=True)
            if not (KEPT / run).exists():
                (KEPT / run).write_text(json.dumps({"recipe": asked["recipe"], "looks": 0, "id": run}))
            self.answer(self.look(run).model_dump(mode="json"))
        else:
            self.converse(json.loads(body))

    def converse(self, asked: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in (f"{len(asked['messages'])} turns, ", "you said ", asked["messages"][-1]["content"]):
            self.wfile.write(b"data: " + json.dumps({"choices": [{"delta": {"content": word}}]}).encode() + b"\n\n")
            time.sleep(0.01)
        self.wfile.write(b"data: [DONE]\n\n")

    def look(self, run: str) -> RunState:
        kept = json.loads((KEPT / run).read_text())
        kept["looks"] += 1
        (KEPT / run).write_text(json.dumps(kept))
        recipe, looks = parse(kept["recipe"], run), kept["looks"]
        over = (DATA / "hurry").exists() if recipe.name == "slow" else looks > LOOKS
        progress = Progress(
            run=run, station="trainer", step="training", done=looks, total=10, figures={"loss": 2 / looks}
        )
        variant = (
            VariantState(stage="scored", model="ft:seedling:quick:mine")
            if over
            else VariantState(stage="training", progress=progress)
        )
        state = RunState(
            id=run,
            name=recipe.name,
            status="running",
            created_at=0,
            recipe=recipe,
            variants=dict.fromkeys(recipe.all_variants(), variant),
        )
        if over and recipe.name == "doomed":
            state.status, state.reason = "failed", "the data was no good."
        elif over:
            state.status, state.report = "finished", Artifact(uri="none", sha256="0")
        return state

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
