"""A server that stands for the Hugging Face hub: one data set at one commit, from a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def small_hub(folder: Path, repository: str) -> Iterator[tuple[str, list[str]]]:
    """Its address for HF_ENDPOINT, and the list of files that were downloaded, which grows."""
    downloaded: list[str] = []
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    api, resolve = f"/api/datasets/{repository}/", f"/datasets/{repository}/resolve/{COMMIT}/"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"{api}tree/{COMMIT}"):
                entries = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": digest(file)}
                    for name, file in files.items()
                ]
                self.send(json.dumps(entries).encode(), with_body)
            elif path == f"{api}revision/{COMMIT}":
                siblings = [{"rfilename": name} for name in files]
                content = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False}
                self.send(json.dumps(content).encode(), with_body)
            elif path.startswith(resolve) and path.removeprefix(resolve) in files:
                name = path.removeprefix(resolve)
                downloaded.extend([name] if with_body else [])
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(files[name])}"'}
                self.send(files[name].read_bytes(), with_body, **headers)
            else:
                self.send(b"{}", with_body, status=404, **{"X-Error-Code": "RepoNotFound"})

        def send(self, content: bytes, with_body: bool, *, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloaded
    finally:
        server.shutdown()


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
