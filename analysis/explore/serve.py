"""Serves one file to this machine alone."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_OURS = ("127.0.0.1", "localhost")


def page_server(path: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback address that knows the one page, under ``/``; `serve_forever` runs it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page of the web could reach a loopback server under a name of its own that leads here.
            host = self.headers.get("Host", "").partition(":")[0]
            if self.path != "/" or host not in _OURS:
                self.send_error(404)
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)
