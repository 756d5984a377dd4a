"""An engine's HTTP API without a model: `python stub_engine.py PORT BASE FOLDER`. Takes up an adapter from FOLDER when it is asked
for it, and ends when it is asked for one that it took up and whose folder is gone, as vLLM does once it has to read it again.

An adapter whose folder holds a file `bad` is refused; every other one makes each token a nat less likely, and takes the
seconds in a file `slow` for it, or ends the engine if there is a file `deadly`, or
is not measured for the reason in a file `refuses`. Asked for a model `lose the core` it goes
on without what computes. GET /most tells how many measurements it had at once, and has.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    base = "tiny"
    folder = Path()
    adapters: dict[str, str] = {}  # noqa: RUF012
    lock = Lock()
    busy = most = under_way = 0
    lost = False

    def do_GET(self) -> None:
        if self.path == "/health":
            return self.answer(503 if self.lost else 200, {})
        if not self.authorized():
            return self.answer(401, {"error": {"message": "no key"}})
        if self.path == "/most":
            return self.answer(200, {"most": Handler.most, "busy": Handler.busy})
        return self.answer(200, {"data": [{"id": name} for name in (self.base, *self.adapters)]})

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.authorized():
            return self.answer(401, {"error": {"message": "no key"}})
        with self.lock:
            Handler.under_way += 1
        try:
            return self.asked(body)
        finally:
            with self.lock:
                Handler.under_way -= 1

    def authorized(self) -> bool:
        key = os.environ.get("VLLM_API_KEY")
        return not key or self.path == "/most" or self.headers.get("authorization") == f"Bearer {key}"

    def asked(self, body: dict[str, Any]) -> None:
        name = body.get("lora_name", "")
        if self.path == "/v1/load_lora_adapter":
            if (Path(body["lora_path"]) / "bad").exists():
                return self.answer(500, {"error": {"message": "cannot be loaded: rank 32 is too much"}})
            if name in self.adapters:
                return self.answer(400, {"error": {"message": f"{name} has already been loaded"}})
            self.adapters[name] = body["lora_path"]
            return self.answer(200, {})
        if self.path == "/v1/unload_lora_adapter":
            return self.answer(200 if self.adapters.pop(name, None) else 404, {"error": {"message": "not found"}})
        model = body["model"]
        if self.lost or model == "lose the core":
            Handler.lost = True
            return self.answer(500, {"error": {"message": "EngineCore encountered an issue"}})
        if model != self.base and model not in self.adapters:
            if not (self.folder / model).is_dir():
                return self.answer(404, {"error": {"message": f"The model {model} does not exist"}})
            if (self.folder / model / "bad").exists():
                return self.answer(
                    400, {"error": {"message": f"LoRA adapter {model} was found but could not be loaded"}}
                )
            self.adapters[model] = str(self.folder / model)
        folder = Path(self.adapters.get(model, "."))
        if not folder.is_dir() or (folder / "deadly").exists():
            os._exit(1)
        if "prompt_logprobs" in body and (folder / "refuses").exists():
            return self.answer(400, {"error": {"message": (folder / "refuses").read_text()}})
        with self.lock:
            Handler.busy += 1
            Handler.most = max(Handler.most, Handler.busy)
        time.sleep(float((folder / "slow").read_text()) if (folder / "slow").exists() else 0.02)
        with self.lock:
            Handler.busy -= 1
        logprob = -1.0 if model == self.base else -2.0
        choices = [
            {"index": i, "prompt_logprobs": [None, *({"7": {"logprob": logprob}} for _ in prompt[1:])]}
            for i, prompt in enumerate(body.get("prompt") or ())  # a chat has none
            if isinstance(prompt, list | str)
        ]
        return self.answer(200, {"choices": choices[::-1]})

    def answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.send_header("x-understudy-under-way", str(Handler.under_way))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    Handler.base, Handler.folder = sys.argv[2], Path(sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
