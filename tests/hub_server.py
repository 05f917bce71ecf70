"""A small Hub: it answers the HTTP with which huggingface_hub creates a repository, commits to it and downloads from
it.

It keeps repositories in memory, takes every file inside the commit (as the real one takes small ones), and accepts
commits that carry the token. It answers any other request with 404 and an `X-Error-Code`, as the real one does.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """Serve repositories: `repositories["models/me/digits"]["main"]` lists a branch's commits, each a dict of files."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, list[dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.gated: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[repository][revision][-1]


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def commit_id(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def entries_of(files: dict[str, bytes], folder: str = "") -> list[dict[str, Any]]:
    """Return the entries of a folder: its files and subfolders."""
    inside = {path: content for path, content in files.items() if path.startswith(folder)}
    folders = {"/".join(path.split("/")[:depth]) for path in inside for depth in range(1, path.count("/") + 1)}
    return [
        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for path, content in inside.items()
    ] + [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders) if path.startswith(folder)]


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self, value: Any = None, status: int = 200, body: bytes | None = None, **headers: str) -> None:
        content = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.answer({"error": message or code}, status, X_Error_Code=code)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        asked_for = re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/paths-info/(.+)", path)
        if asked_for:
            files = self.revision(*asked_for.groups())
            paths = parse_qs(body.decode()).get("paths", [])
            return self.answer([entry for entry in entries_of(files or {}) if entry["path"] in paths])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            known = "Authorization" in self.headers
            return self.refuse(
                403 if known else 401, message="no write token" if known else "Invalid username or password."
            )
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
            if name in self.server.repositories:
                return self.answer({"url": f"{self.server.url}/{name}"}, 409)
            self.server.repositories[name] = {"main": [{".gitattributes": b""}]}
            self.server.private[name] = asked.get("visibility") == "private"
            return self.answer({"url": f"{self.server.url}/{name.removeprefix('models/')}"})
        found = re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        if not found:
            return self.refuse(404)
        name, what, revision = found.groups()
        branches = self.server.repositories[name]
        if what == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if what == "branch":
            branches.setdefault(revision, [branches["main"][-1]])
            return self.answer({})
        return self.commit(name, revision, [json.loads(line) for line in body.splitlines()])

    def commit(self, name: str, revision: str, lines: list[dict[str, Any]]) -> None:
        proposed = "create_pr=1" in self.path
        branches = self.server.repositories[name]
        files = dict(branches[revision][-1])
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        branches.setdefault("refs/pr/1" if proposed else revision, []).append(files)
        page = f"{self.server.url}/{name.removeprefix('models/')}"
        self.answer(
            {
                "commitUrl": f"{page}/commit/{commit_id(files)}",
                "commitOid": commit_id(files),
                "pullRequestUrl": f"{page}/discussions/1" if proposed else None,
            }
        )

    def revision(self, name: str, revision: str) -> dict[str, bytes] | None:
        commits = {commit_id(files): files for all_ in self.server.repositories[name].values() for files in all_}
        commits |= {branch: all_[-1] for branch, all_ in self.server.repositories[name].items()}
        return commits.get(revision)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)(?:/(revision|tree)/([^/]+|refs/pr/\d+))?(?:/(.*))?", path)
        file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+|refs/pr/\d+)/(.+)", path)
        if not api and not file:
            return self.refuse(404)
        name = api[1] if api else file[1] if file[1].startswith("datasets/") else f"models/{file[1]}"
        if name in self.server.gated:
            return self.refuse(403, "GatedRepo")
        hidden = self.server.private.get(name) and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if name not in self.server.repositories or hidden:
            return self.refuse(401 if hidden else 404, "RepoNotFound")
        wanted = (api[3] or "main") if api else file[2]
        files = self.revision(name, wanted)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        if file:
            if file[3] not in files:
                return self.refuse(404, "EntryNotFound")
            content = files[file[3]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self.answer(body=content, ETag=etag, X_Repo_Commit=commit_id(files))
        if api[2] == "tree":
            return self.answer(entries_of(files, f"{api[4]}/" if api[4] else ""))
        siblings = [{"rfilename": path} for path in files]
        return self.answer(
            {"id": name.partition("/")[2], "sha": commit_id(files), "siblings": siblings, "private": False}
        )

    do_HEAD = do_GET
