"""A model hub on this machine: a folder per repository, spoken to over HTTP as `huggingface_hub` speaks to the real one."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`repositories` maps an id to a folder. `requests` are the paths that were asked for; `cut` names a file that breaks
    off in its middle, once; `gated` are ids that ask for consent."""

    def __init__(self, repositories: dict[str, Path]):
        self.repositories, self.requests = repositories, []
        self.cut, self.gated, self.address = "", set(), ""

    def environment(self, home: Path) -> dict[str, str]:
        """What a program needs to speak to this hub alone, with a cache of its own, whatever its parent was told."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}

    def asked_for(self, name: str) -> int:
        """How often a file was fetched."""
        return sum(path.endswith(f"/{name}") for method, path in self.requests if method == "GET")


@contextmanager
def serving(repositories: dict[str, Path]):
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
            words = path.strip("/").split("/")
            if words[:2] == ["api", "models"]:
                self.describe("/".join(words[2:4]), words[4])
            elif "resolve" in words:
                self.send_file("/".join(words[:2]), "/".join(words[4:]), with_body)
            else:
                self.refuse(404, "EntryNotFound")

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def describe(self, name: str, what: str) -> None:
            if name in hub.gated:
                return self.refuse(403, "GatedRepo")
            if name not in hub.repositories:
                return self.refuse(404, "RepoNotFound")
            folder = hub.repositories[name]
            files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
            if what == "tree":
                said = [{"type": "file", "oid": "0", "path": path, "size": size} for path, size in files.items()]
            else:
                siblings = [{"rfilename": path, "blobId": "0", "size": size} for path, size in files.items()]
                said = {"id": name, "sha": REVISION, "siblings": siblings, "cardData": {"license": "apache-2.0"}}
            body = json.dumps(said).encode()
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
