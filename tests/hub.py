"""A model hub on this machine: a folder per repository, behind the HTTP interface that `huggingface_hub` uses."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`repositories` maps an id to a folder. `requests` are the received methods and paths. `cut` names a file whose next
    transfer ends in the middle. `gated` are ids that require consent."""

    def __init__(self, repositories: dict[str, Path]):
        self.repositories, self.requests = repositories, []
        self.cut, self.gated, self.address = "", set(), ""

    def environment(self, home: Path) -> dict[str, str]:
        """Variables with which a program uses only this hub, with its own cache, whatever its parent's variables are."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}

    def count_fetches(self, name: str) -> int:
        """Number of times that a file was fetched."""
        return sum(path.endswith(f"/{name}") for method, path in self.requests if method == "GET")


@contextmanager
def serve(repositories: dict[str, Path]):
    hub = Hub(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.describe("/".join(parts[2:4]), parts[4])
            elif "resolve" in parts:
                self.send_file("/".join(parts[:2]), "/".join(parts[4:]), with_body)
            else:
                self.refuse(404, "EntryNotFound")

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def describe(self, name: str, view: str) -> None:
            if name in hub.gated:
                return self.refuse(403, "GatedRepo")
            if name not in hub.repositories:
                return self.refuse(404, "RepoNotFound")
            folder = hub.repositories[name]
            files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
            if view == "tree":
                answer_body = [{"type": "file", "oid": "0", "path": path, "size": size} for path, size in files.items()]
            else:
                siblings = [{"rfilename": path, "blobId": "0", "size": size} for path, size in files.items()]
                answer_body = {"id": name, "sha": REVISION, "siblings": siblings, "cardData": {"license": "apache-2.0"}}
            body = json.dumps(answer_body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, name: str, file: str, with_body: bool) -> None:
            path = hub.repositories[name] / file
            if not path.is_file():
                return self.refuse(404, "EntryNotFound")
            content = path.read_bytes()
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if with_body and hub.cut == file:
                hub.cut = ""
                self.wfile.write(content[start : start + len(content) // 2])
                self.wfile.flush()
                self.connection.close()
            elif with_body:
                self.wfile.write(content[start:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
