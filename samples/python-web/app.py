"""A small web service in Python: it says which version it is.

`stead deploy ./samples/python-web --app hello` packs it: Procfile says how it is started,
requirements.txt what it needs.
"""

import os
import signal
import sys

VERSION = os.environ.get("VERSION", "1")

PAGES = {
    "/": f"hello from {VERSION}\n",
    "/version": f"{VERSION}\n",
    "/healthz": "ok\n",
}


def stop(_signal, _frame):
    """Python ignores SIGTERM where it is the first process; this one ends, as waitress knows."""
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)


def app(environ, start_response):
    """The WSGI application."""
    # Always read to its end, so that the connection can be used again.
    received = sum(map(len, iter(lambda: environ["wsgi.input"].read(65536), b"")))
    path = environ["PATH_INFO"]
    body = f"{received} bytes\n" if path == "/upload" else PAGES.get(path)
    status = "200 OK" if body else "404 Not Found"
    body = (body or "no such page\n").encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("X-Version", VERSION),
    ]
    start_response(status, headers)
    return [body]
