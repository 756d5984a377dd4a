"""One HTTP request and its response: the connection, the proxy, certificates, and how much of a response is read.

Sends with aiohttp: the SDK's path costs 1.4 ms of CPU per request on the machine where aiohttp's costs 0.1 ms, and
its retries hide the 429s that teach the limits (docs/adr/0007; `bench/ask.py` measures both). Does not follow redirects, take
compressed responses (a few bytes may unpack to more than there is memory), try again, or know what a response means.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from understudy.errors import Invalid

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Response:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Lost(Exception):
    """No response came."""

    def __init__(self, what: str, sent: bool) -> None:
        super().__init__(what)
        self.sent = sent
        """Whether there was a connection, so that somebody may have worked on the request."""


class Unreadable(Exception):
    """A response of status 200 came that is not read."""


class Wire:
    """`async with Wire(url, key, timeout) as wire: response = await wire.post(content, most)`."""

    def __init__(self, url: str, api_key: str, timeout: float) -> None:
        """Raises `Invalid` when `url` is no HTTP address; `timeout` is in seconds, for each request."""
        parts = address(url)
        self._url, self._timeout, self._secure = url, timeout, parts.scheme == "https"
        self._proxy = None if proxy_bypass(parts.hostname or "") else _proxy(parts.scheme)
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "understudy",
        }
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    async def post(self, path: str, content: bytes, most: int) -> Response:
        """Send JSON. Raises `Lost`, and `Unreadable` for an answer of more than `most` bytes or a compressed one; of other responses
        the first `most` bytes are read."""
        import aiohttp  # takes a quarter of a second, which only those who ask should wait

        try:
            async with self._session.post(
                self._url + path, data=content, proxy=self._proxy, allow_redirects=False
            ) as response:
                encoding, body = response.headers.get("Content-Encoding", "identity"), b""
                if encoding.lower() == "identity":
                    body = await _read(response.content, most)
                elif response.status == 200:
                    raise Unreadable(f"the response is compressed ({encoding[:20]}), which was not asked for")
                if len(body) > most and response.status == 200:
                    raise Unreadable(f"the response is longer than {most:,} bytes, the limit for this request")
                return Response(response.status, response.headers, body[:most])
        except aiohttp.ClientConnectorError as error:
            raise Lost(_says(error), sent=False) from error
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            raise Lost(_says(error), sent=not isinstance(error, aiohttp.ConnectionTimeoutError)) from error

    async def __aenter__(self) -> Self:
        import aiohttp

        self._session: aiohttp.ClientSession = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_tls() if self._secure else True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_SECONDS),
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()


async def _read(stream: aiohttp.StreamReader, most: int) -> bytes:
    """All of it, or somewhat more than `most`; what is left is not read, and the connection not used again."""
    parts, size = [], 0
    while size <= most and (part := await stream.readany()):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _says(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def address(url: str) -> SplitResult:
    """The parts of an endpoint's address; raises `Invalid` when it is not one, or has more than scheme, host, port and path."""
    try:
        parts = urlsplit(url)
        more = any(mark in url for mark in "?#@\\") or not url.isprintable() or " " in url
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not more:
            parts.hostname.encode("idna")
            return parts
    except ValueError:  # of a port that is no number, of a name that no resolver takes
        pass
    what = "The endpoint's address" if "@" in url else f"`{url}`"  # what is before an @ may be a secret
    raise Invalid(
        f"{what} is not of the form http[s]://host[:port]/path", "Give one such as `https://api.openai.com/v1`."
    )


def _proxy(scheme: str) -> str | None:
    """As the environment says (`https_proxy`, `all_proxy`, ...)."""
    proxies = getproxies()
    return proxies.get(scheme) or proxies.get("all")


def _tls() -> ssl.SSLContext:
    """The system's certificates (or SSL_CERT_FILE's), else certifi's where a small image has none."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())
