"""Serves one file, and the images that belong to it, to this machine alone."""

from __future__ import annotations

import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

_OURS = ("127.0.0.1", "localhost")


def page_server(path: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback address that knows the one page, under ``/``, and the images beside it.

    `serve_forever` runs it.
    """
    image = re.compile(rf"/{re.escape(path.stem)}_images/([0-9]+-[0-9]+\.png)")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page of the web could reach a loopback server under a name of its own that leads here.
            host = self.headers.get("Host", "").partition(":")[0]
            match = image.fullmatch(unquote(self.path))
            file = path if self.path == "/" else path.with_name(f"{path.stem}_images") / match[1] if match else None
            if file is None or host not in _OURS or not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "image/png" if match else "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)
