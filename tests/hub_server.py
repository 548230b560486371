"""A Hugging Face Hub small enough for one test: repositories in memory, served over real HTTP.

It speaks what huggingface_hub, timm and Transformers ask for: model info, tree, resolve with ETag, commit and Range,
large files behind a redirect to another host name, and pushes (create, preupload, LFS batch, PUT, commit). `Faults`
make it lie. huggingface_hub reads its endpoint while it is imported, so clients run in processes of their own:
`HubServer.run`.
"""

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY_ROOT = Path(__file__).parents[1]
LARGE_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".joblib")


@dataclass
class Repository:
    """Commits by hash (each a complete set of files), and the branches and tags that point to them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False
    is_private: bool = False
    messages: list[str] = field(default_factory=list)  # of the commits that were pushed

    def commit(self, files: dict[str, bytes], branch: str = "main", deleted: Collection[str] = ()) -> str:
        parent = self.refs.get(branch, "")
        content = {**self.commits.get(parent, {}), **files}
        content = {path: text for path, text in content.items() if path not in deleted}
        digest = hashlib.sha1(f"{parent}{len(self.commits)}".encode())
        for path in sorted(content):
            digest.update(path.encode() + content[path])
        self.commits[digest.hexdigest()] = content
        self.refs[branch] = digest.hexdigest()
        return digest.hexdigest()


@dataclass
class Faults:
    """What the server does wrong; everything off by default."""

    extra_size: int = 0  # announced bytes beyond the real size of large files
    spoiled_body: bool = False  # right size, last byte flipped
    missing_bytes: int = 0  # large files end early, and the answer's own Content-Length agrees with that
    wrong_hash: bool = False  # the announced hash of large files is another one
    wrong_commit: bool = False  # files are said to be of another commit than asked for
    delay: float = 0  # seconds before the body of a file, or the answer about it, is sent
    interruptions: int = 0  # so many downloads of large files break off: the first half way, resumed ones at once
    body_delay: float = 0  # seconds between the halves of a large file
    status: int | None = None  # every request is answered with this status
    status_of_files: int | None = None  # the same, but the API still answers
    refused_pushes: dict[str, tuple[int, str]] = field(default_factory=dict)  # by repository's name: status, error code


class HubServer(ThreadingHTTPServer):
    """The server, its repositories and faults, the log of requests, and a way to run clients."""

    daemon_threads = True

    def __init__(self, home: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.home = home
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.faults = Faults()
        self.requests: list[str] = []  # "METHOD /path" in order of arrival
        self.hosts: list[str] = []  # the host name of each request
        self.with_token: list[str] = []  # those of the requests that carried a token
        self.user_agents: set[str] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that hang up in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def large_file_endpoint(self) -> str:
        # Another host name: clients follow a redirect on the same host while they only look for metadata.
        return f"http://localhost:{self.server_port}"

    def add(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files to a repository, made when needed; returns the commit's hash."""
        return self.repositories.setdefault(repo_id, Repository()).commit(files, branch)

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in a new process whose Hub is this server; keyword arguments are environment variables."""
        inherited = {k: v for k, v in os.environ.items() if not re.match(r"(?i)HF_|HUGGING|TRANSFORMERS_|.*_proxy", k)}
        client = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY_ROOT), os.environ.get("PYTHONPATH")])),
        }
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**inherited, **client, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )


def closed_endpoint() -> str:
    """Address of a port on which nothing listens, for a Hub that is down."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def start(home: Path) -> HubServer:
    server = HubServer(home)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _RefusedError(Exception):
    """An answer other than success: status, and the Hub's error code."""

    def __init__(self, status: int, code: str = "", commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Repo-Commit": commit}
        self.status, self.headers = status, {name: value for name, value in headers.items() if value}


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    ROUTES = (
        ("GET", r"/api/models/(?P<repo_id>[^/]+/[^/]+)", "model_info"),
        ("GET", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/revision/(?P<revision>.+)", "model_info"),
        ("GET", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("GET|HEAD", r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/large-files/(?P<oid>\w+)", "large_file"),
        ("PUT", r"/large-files/(?P<oid>\w+)", "put_large_file"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/branch/(?P<branch>.+)", "create_branch"),
        ("POST", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/preupload/(?P<revision>.+)", "preupload"),
        ("POST", r"/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "large_file_batch"),
        ("POST", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/commit/(?P<revision>.+)", "push_commit"),
    )

    def answer(self) -> None:
        path, self.query = urlsplit(self.path)[2:4]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {path}")
        self.server.hosts.append(self.headers["Host"].partition(":")[0])
        if "Authorization" in self.headers:
            self.server.with_token.append(self.server.requests[-1])
        self.server.user_agents.add(self.headers.get("User-Agent", ""))
        try:
            if self.server.faults.status is not None:
                raise _RefusedError(self.server.faults.status)
            if self.command in ("POST", "PUT"):
                self.require_permission(path)
            for methods, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, path)
                if match and re.fullmatch(methods, self.command):
                    return getattr(self, name)(**{key: unquote(value) for key, value in match.groupdict().items()})
            raise _RefusedError(404)
        except _RefusedError as refusal:
            self.send(b"{}", refusal.status, refusal.headers)

    do_GET = do_HEAD = do_PUT = do_POST = answer  # noqa: N815 (names that http.server looks up)

    def require_permission(self, path: str) -> None:
        for name, (status, code) in self.server.faults.refused_pushes.items():
            if f"/{name}/" in path or f'"{name}"'.encode() in self.body:
                raise _RefusedError(status, code)
        if "Authorization" not in self.headers and not path.startswith(("/large-files/", "/api/validate-yaml")):
            raise _RefusedError(401)

    def send(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, breaks_off: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if breaks_off:
            body = b"" if status == 206 else body[: len(body) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2])
            time.sleep(self.server.faults.body_delay if "/large-files/" in self.path else 0)
            self.wfile.write(body[len(body) // 2 :])

    def send_json(self, content: Any, status: int = 200) -> None:
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def send_range(self, body: bytes, headers: dict[str, str], breaks_off: bool = False) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None:
            return self.send(body, 200, headers, breaks_off)
        first = int(asked[1])
        headers = {**headers, "Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
        self.send(body[first:], 206, headers, breaks_off)

    def files_at(self, repo_id: str, revision: str = "main") -> tuple[str, dict[str, bytes]]:
        if repo_id not in self.server.repositories:
            raise _RefusedError(401, "RepoNotFound")  # the Hub does not tell a stranger a private repository from none
        repository = self.server.repositories[repo_id]
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            raise _RefusedError(404, "RevisionNotFound")
        return commit, repository.commits[commit]

    def model_info(self, repo_id: str, revision: str = "main") -> None:
        commit, files = self.files_at(repo_id, revision)
        self.send_json({"id": repo_id, "sha": commit, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, repo_id: str, revision: str) -> None:
        _, files = self.files_at(repo_id, revision)
        self.send_json([_tree_entry(path, content) for path, content in files.items()])

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit, files = self.files_at(repo_id, revision)
        if self.server.repositories[repo_id].is_gated and "Authorization" not in self.headers:
            raise _RefusedError(403, "GatedRepo")
        if self.server.faults.status_of_files is not None:
            raise _RefusedError(self.server.faults.status_of_files)
        if path not in files:
            raise _RefusedError(404, "EntryNotFound", commit)
        faults = self.server.faults
        headers = {"X-Repo-Commit": commit[::-1] if faults.wrong_commit else commit}
        if not path.endswith(LARGE_FILE_SUFFIXES):
            time.sleep(faults.delay)
            return self.send_range(self.spoiled(files[path]), {**headers, "ETag": f'"{_git_oid(files[path])}"'})
        oid = hashlib.sha256(files[path]).hexdigest()
        self.server.large_files[oid] = files[path]
        headers["X-Linked-Etag"] = f'"{oid[::-1] if faults.wrong_hash else oid}"'
        headers["X-Linked-Size"] = str(len(files[path]) + faults.extra_size)
        headers["Location"] = f"{self.server.large_file_endpoint}/large-files/{oid}"
        self.send(b"", 302, headers)

    def large_file(self, oid: str) -> None:
        content = self.server.large_files[oid]
        faults = self.server.faults
        time.sleep(faults.delay)
        content = self.spoiled(content[: len(content) - faults.missing_bytes])
        faults.interruptions -= 1
        self.send_range(content, {"ETag": f'"{oid}"'}, breaks_off=faults.interruptions >= 0)

    def spoiled(self, content: bytes) -> bytes:
        return content[:-1] + bytes([content[-1] ^ 1]) if self.server.faults.spoiled_body else content

    def put_large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(422)
        self.server.large_files[oid] = self.body
        self.send(b"")

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        is_new = repo_id not in self.server.repositories
        if is_new:
            self.server.add(repo_id, {".gitattributes": b""})
            self.server.repositories[repo_id].is_private = wanted.get("visibility") == "private"
        self.send_json({"url": f"{self.server.endpoint}/{repo_id}"}, 200 if is_new else 409)

    def create_branch(self, repo_id: str, branch: str) -> None:
        commit, _ = self.files_at(repo_id)
        if branch in self.server.repositories[repo_id].refs:
            raise _RefusedError(409)
        self.server.repositories[repo_id].refs[branch] = commit
        self.send(b"")

    def validate_yaml(self) -> None:
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        _, present = self.files_at(repo_id, revision)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE_FILE_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": _oid(file["path"], present[file["path"]]) if file["path"] in present else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.send_json({"files": modes})

    def large_file_batch(self, repo_id: str) -> None:
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.server.large_file_endpoint}/large-files/{entry['oid']}"}}
        self.send_json({"transfer": "basic", "objects": objects})

    def push_commit(self, repo_id: str, revision: str) -> None:
        self.files_at(repo_id, revision)
        added: dict[str, bytes] = {}
        deleted = set()
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self.server.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                deleted.add(value["path"])
            elif line["key"] == "header":
                self.server.repositories[repo_id].messages.append(value["summary"])
        repository, answer = self.server.repositories[repo_id], {}
        if "create_pr=1" in self.query:
            number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
            repository.refs[f"refs/pr/{number}"] = repository.refs[revision]
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.server.endpoint}/{repo_id}/discussions/{number}"
        commit = repository.commit(added, revision, deleted)
        self.send_json(
            {"commitOid": commit, "commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{commit}", **answer}
        )

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: `HubServer.requests` is the log."""


def _oid(path: str, content: bytes) -> str:
    """What the Hub calls a file's content: SHA-256 of a large file, git's blob hash of a small one."""
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE_FILE_SUFFIXES) else _git_oid(content)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if path.endswith(LARGE_FILE_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
