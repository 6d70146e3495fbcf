"""A small Hugging Face Hub on loopback: repositories as folders, behind the calls that `huggingface_hub` makes.

It speaks create_repo, branches, preupload, LFS batch and upload, commit, pull requests, model_info, tree, resolve with
revisions and ranges, and tokens for private repositories. `HubServer.fail` makes chosen calls fail, or misbehave in
one of `FAULTS`. Models and data sets share their names here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, READ_TOKEN, USER = "hf_loopback", "hf_readonly", "tester"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".zip", ".gz", ".tar")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class HubError(Exception):
    """An answer other than success, with the Hub's own error code and, where one was found, the commit."""

    def __init__(self, status: int, code: str, message: str = "", commit: str = "") -> None:
        super().__init__(message or code)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message or code}
        if commit:
            self.headers["X-Repo-Commit"] = commit  # the client then remembers that the file does not exist there


@dataclass
class Repo:
    """One repository: `folder/<commit>/` holds the files of each commit."""

    folder: Path
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    log: list[dict[str, str]] = field(default_factory=list)
    pull_requests: int = 0

    def resolve(self, revision: str) -> Path:
        commit = self.branches.get(revision, revision)
        if not commit or not (self.folder / commit).is_dir():
            raise HubError(404, "RevisionNotFound", f"no revision {revision}")
        return self.folder / commit

    def files(self, revision: str = "main") -> dict[str, Path]:
        root = self.resolve(revision)
        return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}

    def commit(self, branch: str, summary: str, changes: dict[str, bytes | None]) -> str:
        """A commit on top of `branch`; a change to None deletes the file."""
        parent = self.branches.get(branch, "")
        commit = hashlib.sha1(f"{parent} {summary} {len(self.log)}".encode()).hexdigest()
        target = self.folder / commit
        if parent:
            shutil.copytree(self.folder / parent, target)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in changes.items():
            path = target / name
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self.branches[branch] = commit
        self.log.append({"branch": branch, "commit": commit, "summary": summary})
        return commit


class HubServer:
    """The server; a context manager.

    Args:
        root (`Path`): where repositories are kept.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.repos, self.objects = root, dict[str, Repo](), dict[str, bytes]()
        self.failures: list[dict[str, Any]] = []
        self.cut_after: int | None = None  # bytes, after which the next file's connection breaks
        self.calls: list[str] = []
        self.lock = threading.Lock()
        server = self

        class Handler(_Handler):
            hub = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def create(self, repo_id: str, private: bool = False) -> Repo:
        repo = self.repos[repo_id] = Repo(self.root / repo_id, private)
        repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return repo

    def add(self, repo_id: str, folder: Path, private: bool = False) -> str:
        """A repository with the files of a folder; gives the commit."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.create(repo_id, private).commit("main", "add files", files)

    def fail(self, pattern: str, status: int = 503, times: int = 1000, fault: str = "") -> None:
        """Answer the next calls that match `METHOD /path` with a status, or else with a `FAULTS`."""
        assert not fault or fault in FAULTS
        self.failures.append({"pattern": re.compile(pattern), "status": status, "times": times, "fault": fault})

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """That of a process whose Hub is this one and whose cache is in `home`."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        env |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "PYTHONWARNINGS": "ignore"}
        return env | ({"HF_TOKEN": token} if token else {})

    def run(
        self, home: Path, *command: str, token: str | None = TOKEN, **environment: str
    ) -> subprocess.CompletedProcess:
        """Run `python *command` in a fresh process with [`environment`]."""
        env = self.environment(home, token) | environment
        return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=200)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *unused: object) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = url.path, {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.calls.append(f"{self.command} {path} {self.headers.get('Range', '')}".rstrip())
            fault = ""
            try:
                fault = self._check_failures(path)
                status, headers, content = self._route(path, query, body)
            except HubError as error:
                status, headers, content = error.status, error.headers, json.dumps({"error": str(error)}).encode()
        if fault:
            status, headers, content = FAULTS[fault](status, headers, content)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "reset":
            content, self.close_connection = content[: len(content) // 2], True
        if fault == "slow" and self.command != "HEAD":
            for byte in content[:200]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.002)
            content = content[200:]
        if self.command == "GET" and "/resolve/" in path and self.hub.cut_after is not None:
            content, self.hub.cut_after, self.close_connection = content[: self.hub.cut_after], None, True
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _check_failures(self, path: str) -> str:
        """Raise where this call is to fail; gives the other fault that it is to have."""
        for failure in self.hub.failures:
            if failure["times"] > 0 and failure["pattern"].search(f"{self.command} {path}"):
                failure["times"] -= 1
                if failure["fault"]:
                    return failure["fault"]
                raise HubError(failure["status"], "", "told to fail")
        return ""

    def faults(self, body: bytes, **unused: Any) -> Any:
        """Another process tells this server how to misbehave from now on, and asks what happened."""
        self.hub.failures.clear()
        for failure in json.loads(body):
            self.hub.fail(**failure)
        return {name: [len(repo.log), *repo.files()] for name, repo in self.hub.repos.items()}

    def _route(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        for pattern, handler in ROUTES:
            if match := re.fullmatch(f"(?:GET|HEAD|POST|PUT) {pattern}", f"{self.command} {path}"):
                groups = {name: unquote(value) for name, value in match.groupdict(default="main").items()}
                result = handler(self, body=body, query=query, **groups)
                return result if isinstance(result, tuple) else (200, {}, json.dumps(result).encode())
        raise HubError(404, "", f"no such call: {self.command} {path}")

    @property
    def _signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, repo_id: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get(repo_id)
        if repo is None or ((repo.private or write) and not self._signed_in):
            raise HubError(404 if self._signed_in else 401, "RepoNotFound", "Repository not found")
        return repo

    def whoami(self, **unused: Any) -> Any:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_TOKEN):
            raise HubError(401, "", "Invalid username or password.")
        role = "write" if token == TOKEN else "read"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return {"type": "user", "name": USER, "orgs": [{"type": "org", "name": "botanists"}], "auth": auth}

    def create_repo(self, body: bytes, **unused: Any) -> Any:
        if not self._signed_in:
            raise HubError(401, "", "Invalid username or password.")
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        answer = json.dumps({"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}).encode()
        if repo_id in self.hub.repos:
            return 409, {}, answer
        self.hub.create(repo_id, private=asked.get("visibility") == "private")
        return 200, {}, answer

    def validate_yaml(self, body: bytes, **unused: Any) -> Any:
        content = json.loads(body)["content"]
        metadata = yaml.safe_load(content.split("---\n")[1])
        base = metadata.get("base_model")
        if base is not None and not HUB_ID.fullmatch(base):
            message = f'"base_model" with value "{base}" is not valid'
            return 400, {}, json.dumps({"errors": [{"message": message}], "warnings": []}).encode()
        return {"errors": [], "warnings": []}

    def create_branch(self, repo: str, branch: str, **unused: Any) -> Any:
        found = self._repo(repo, write=True)
        if branch in found.branches:
            raise HubError(409, "", "Reference already exists")
        found.branches[branch] = found.branches["main"]
        return {}

    def preupload(self, repo: str, revision: str, body: bytes, **unused: Any) -> Any:
        files = self._repo(repo, write=True).files(revision)
        answers = []
        for asked in json.loads(body)["files"]:
            name = asked["path"]
            oid = _oid(name, files[name].read_bytes()) if name in files else None
            mode = "lfs" if name.endswith(LFS_SUFFIXES) else "regular"
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, repo: str, body: bytes, **unused: Any) -> Any:
        self._repo(repo, write=True)
        answers = []
        for asked in json.loads(body)["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}", "header": {}}}}
            answers.append({**asked, **({} if asked["oid"] in self.hub.objects else upload)})
        return {"transfer": "basic", "objects": answers}

    def lfs_upload(self, oid: str, body: bytes, **unused: Any) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "", "content and oid differ")
        self.hub.objects[oid] = body
        return {}

    def commit(self, repo: str, revision: str, body: bytes, query: dict[str, str], **unused: Any) -> Any:
        found = self._repo(repo, write=True)
        header, *rows = [json.loads(line) for line in body.splitlines()]
        changes: dict[str, bytes | None] = {}
        for row in rows:
            value = row["value"]
            if row["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                changes[value["path"]] = self.hub.objects[value["oid"]]
            else:
                changes[value["path"]] = None
        pr_url = None
        if query.get("create_pr"):
            found.pull_requests += 1
            base, revision = found.branches[revision], f"refs/pr/{found.pull_requests}"
            found.branches[revision] = base
            pr_url = f"{self.hub.endpoint}/{repo}/discussions/{found.pull_requests}"
        elif revision not in found.branches:
            raise HubError(404, "RevisionNotFound", f"no branch {revision}")
        commit = found.commit(revision, header["value"]["summary"], changes)
        return {
            "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}",
            "commitOid": commit,
            "pullRequestUrl": pr_url,
        }

    def model_info(self, repo: str, revision: str, **unused: Any) -> Any:
        found = self._repo(repo)
        files = [{"rfilename": name} for name in found.files(revision)]
        sha = found.resolve(revision).name
        return {"id": repo, "modelId": repo, "sha": sha, "private": found.private, "siblings": files, "tags": []}

    def tree(self, repo: str, revision: str, folder: str, **unused: Any) -> Any:
        files = self._repo(repo).files(revision)
        prefix = "" if folder == "main" else f"{folder}/"  # "main" stands for a group without a match
        found = {name: path.read_bytes() for name, path in files.items() if name.startswith(prefix)}
        if prefix and not found:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        return [
            {"type": "file", "path": name, "size": len(data), "oid": _oid(name, data)} for name, data in found.items()
        ]

    def resolve(self, repo: str, revision: str, name: str, **unused: Any) -> Any:
        found = self._repo(repo)
        files = found.files(revision)
        commit = found.resolve(revision).name
        if name not in files:
            raise HubError(404, "EntryNotFound", f"{name} does not exist", commit)
        content = files[name].read_bytes()
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(content)), "ETag": f'"{_oid(name, content)}"'}
        if (start := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and int(start[1]) < len(content):
            headers["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
            return 206, headers, content[int(start[1]) :]
        return 200, headers, content


def _oid(name: str, content: bytes) -> str:
    """As the Hub gives it: SHA-256 of an LFS file, git's hash of another."""
    if name.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


Answer = tuple[int, dict[str, str], bytes]


def _other_bytes(status: int, headers: dict[str, str], content: bytes) -> Answer:
    return status, headers, bytes(byte ^ 1 for byte in content)


def _without_end(status: int, headers: dict[str, str], content: bytes) -> Answer:
    """A whole answer of a part, as a cache in between may give it."""
    return status, headers, content[: len(content) // 2]


def _web_page(status: int, headers: dict[str, str], content: bytes) -> Answer:
    """What the login page of a hotel's network answers to everything."""
    page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    return 200, {"Content-Type": "text/html", "Content-Length": str(len(page))}, page


def _redirect(status: int, headers: dict[str, str], content: bytes) -> Answer:
    return 302, {**headers, "Location": "http://127.0.0.1:9/elsewhere"}, b""


FAULTS: dict[str, Callable[[int, dict[str, str], bytes], Answer]] = {
    "reset": lambda *answer: answer,  # the connection breaks in the middle
    "slow": lambda *answer: answer,
    "truncated": _without_end,
    "other bytes": _other_bytes,
    "web page": _web_page,
    "redirect": _redirect,
}

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
API = f"/api/(?:models|datasets)/{REPO}"
ROUTES: list[tuple[str, Any]] = [
    ("/api/whoami-v2", _Handler.whoami),
    ("/api/repos/create", _Handler.create_repo),
    ("/faults", _Handler.faults),
    ("/api/validate-yaml", _Handler.validate_yaml),
    (f"{API}/branch/(?P<branch>.+)", _Handler.create_branch),
    (f"{API}/preupload/(?P<revision>.+)", _Handler.preupload),
    (f"{API}/commit/(?P<revision>.+)", _Handler.commit),
    (f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    (f"{API}(?:/revision/(?P<revision>.+))?", _Handler.model_info),
    (f"/{REPO}.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("/lfs/(?P<oid>.+)", _Handler.lfs_upload),
    (f"(?:/datasets)?/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
]
