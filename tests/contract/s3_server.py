"""An S3 server of our own in this process: moto's, one request at a time.

One at a time, because moto looks for an object and writes it in two steps, and only so keeps the promise of
`If-None-Match` that S3 makes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Answer = Callable[..., Any]
Interceptor = Callable[[dict[str, Any], Answer], Iterable[bytes] | None]


class S3Server:
    """Serves until `close`. `requests` are "METHOD /path?query"; `intercept` may answer in moto's place."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.intercept: Interceptor = lambda environ, answer: None
        self._moto = DomainDispatcherApplication(create_backend_app)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server("127.0.0.1", 0, self._application, threaded=False)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.port}"

    def _application(self, environ: dict[str, Any], answer: Answer) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        own = self.intercept(environ, answer)
        return self._moto(environ, answer) if own is None else own

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
