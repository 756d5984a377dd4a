"""`python -m understudy.service.probe /healthz`: asks this container's own HTTP API, for images that have no curl.

Exit code 0 when it answers with success, 1 otherwise. Knows no settings but the ports: UNDERSTUDY_INTERNAL_PORT, else
UNDERSTUDY_PORT.
"""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException


def main(path: str) -> int:
    """Exit code of the probe; says on stderr why it failed."""
    internal, port = (int(os.environ.get(f"UNDERSTUDY_{name}") or 0) for name in ("INTERNAL_PORT", "PORT"))
    connection = HTTPConnection("127.0.0.1", internal or port or 8000, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status < 300:
            return 0
        reason = f"{response.status} {response.read(500).decode(errors='replace')}"
    except (OSError, HTTPException) as error:
        reason = str(error)
    finally:
        connection.close()
    print(f"{path}: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
