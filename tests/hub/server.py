"""As much of the Hugging Face hub as downloading needs, served from local folders.

With HF_ENDPOINT set to a server's address the real clients take their files from it.
"""

import json
import re
from collections.abc import Iterable
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = r"(?P<repository>[\w.-]+/[\w.-]+)"
FILE = re.compile(rf"/(?P<kind>datasets/)?{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
API = re.compile(
    rf"/api/(?P<kind>models/|datasets/){REPOSITORY}"
    r"(/(?P<asked>revision|tree|paths-info)/(?P<revision>[^/]+)(/(?P<path>.*))?)?"
)


class Commit:
    """The files of a folder as they are now."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
        self.hashes = {name: sha1(content).hexdigest() for name, content in self.files.items()}
        self.hash = sha1(json.dumps(self.hashes).encode()).hexdigest()

    def info(self, repository: str) -> dict[str, Any]:
        files = [{"rfilename": name} for name in self.files]
        return {"_id": "0", "id": repository, "sha": self.hash, "tags": [], "siblings": files}

    def listing(self, paths: Iterable[str]) -> list[dict[str, Any]]:
        below = tuple(f"{path}/" if path else "" for path in paths)
        return [
            {"type": "file", "path": name, "oid": self.hashes[name], "size": len(content)}
            for name, content in self.files.items()
            if f"{name}/".startswith(below)
        ]


class Hub:
    """Repositories, and which of their files were sent."""

    def __init__(self) -> None:
        self.commits: dict[str, list[Commit]] = {}
        self.gated: set[str] = set()
        self.sent: list[tuple[str, str]] = []
        self.parts: list[tuple[str, str]] = []

    def publish(self, repository: str, folder: Path) -> str:
        """Make a folder the newest commit of models/OWNER/NAME or datasets/OWNER/NAME."""
        self.commits.setdefault(repository, []).append(Commit(folder))
        return self.commits[repository][-1].hash

    def downloaded(self, repository: str) -> set[str]:
        """Return the files of a repository that were sent."""
        return {file for sender, file in self.sent if sender == repository}


class HubServer(ThreadingHTTPServer):
    """Serves a hub at an address of this machine."""

    daemon_threads = True

    def __init__(self, hub: Hub, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.hub = hub
        Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def close(self) -> None:
        """Refuse connections from now on."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one client's requests."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        path = unquote(urlsplit(self.path).path)
        match = FILE.fullmatch(path) or API.fullmatch(path)
        repository = f"{match['kind'] or 'models/'}{match['repository']}" if match else ""
        commits = self.server.hub.commits.get(repository)
        if match is None or commits is None:
            return self.answer(404, error="RepoNotFound")
        if repository in self.server.hub.gated:
            return self.answer(403, error="GatedRepo")
        named = {"main": commits[-1], None: commits[-1], **{c.hash: c for c in commits}}
        commit = named.get(match["revision"])
        if commit is None:
            return self.answer(404, error="RevisionNotFound")
        if match.re is FILE:
            return self.send_file(repository, commit, match["path"])
        answers = {
            "tree": lambda: commit.listing([match["path"] or ""]),
            "paths-info": lambda: commit.listing(parse_qs(body)["paths"]),
        }
        found = answers.get(match["asked"], lambda: commit.info(match["repository"]))()
        return self.answer(200, json.dumps(found).encode())

    do_HEAD = do_POST = do_GET  # noqa: N815

    def send_file(self, repository: str, commit: Commit, name: str) -> None:
        head = {"X-Repo-Commit": commit.hash}
        if name not in commit.files:
            return self.answer(404, error="EntryNotFound", **head)
        head["ETag"] = f'"{commit.hashes[name]}"'
        content = commit.files[name]
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self.server.hub.parts.append((repository, name))
            part = content[int(asked[1]) : int(asked[2]) + 1]
            return self.answer(206, part, **head)
        if self.command == "GET":
            self.server.hub.sent.append((repository, name))
        return self.answer(200, content, **head)

    def answer(self, status: int, body: bytes = b"", *, error: str = "", **head: str) -> None:
        self.send_response(status)
        for key, value in (
            head | {"Content-Length": str(len(body)), "X-Error-Code": error}
        ).items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the console quiet."""
