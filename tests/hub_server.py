"""A Hugging Face Hub on loopback, real enough for the huggingface_hub and datasets clients.

Repositories with commits, branches, private and gated access, LFS, ranged downloads, and commits
with `parent_commit` as compare-and-swap. Faults are values: `server.fail("/resolve/", status=503)`.

    with hub_server() as hub:
        hub.add_repo("user/data", "dataset", {"a.npy": content})
        hub.use(monkeypatch, tmp_path / "hf")           # this process's clients talk to it
        subprocess.run(…, env=os.environ | hub.environment(tmp_path / "hf"))
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITE_TOKEN = "hf_test_write"
READ_TOKEN = "hf_test_read"
USER = "tester"
LFS_SIZE = 1 << 20
LFS_SUFFIXES = (".npy", ".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".gz", ".zst")
REPO = r"(?P<owner>[^/]+)/(?P<name>[^/]+)"


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else _git_oid(self.content)

    def entry(self, path: str) -> dict[str, Any]:
        """This file as the tree and paths-info calls describe it."""
        size = len(self.content)
        entry = {"type": "file", "path": path, "size": size, "oid": _git_oid(self.content)}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": 130}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, StoredFile]


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """The commit a branch, tag or full commit id names."""
        oid = self.refs.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def commit(self, branch: str, files: dict[str, StoredFile], title: str) -> str:
        oid = hashlib.sha1(f"{id(self)} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits.append(Commit(oid, title, files))
        self.refs[branch] = oid
        return oid


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches the pattern."""

    match: str
    kind: str  # "status" | "truncate" | "corrupt"
    status: int
    times: int


class Failure(Exception):
    """An error answer, as the Hub words it: status, X-Error-Code, message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class HubServer:
    """The Hub's state, and what a test asks or demands of it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}  # (model|dataset|space, "user/name")
        self.blobs: dict[str, bytes] = {}  # LFS objects by sha256
        self.requests: list[str] = []  # "GET /user/name/resolve/main/a.npy"
        self.faults: list[Fault] = []
        self.url = ""

    def add_repo(
        self,
        repo_id: str,
        repo_type: str = "model",
        files: dict[str, bytes] | None = None,
        *,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Create a repository, or put a commit with more files on it; returns the commit's id."""
        with self.lock:
            repo = self.repos.setdefault((repo_type, repo_id), Repo(private, gated))
            now = repo.at("main")
            added = {
                path: StoredFile(content, len(content) >= LFS_SIZE or path.endswith(LFS_SUFFIXES))
                for path, content in (files or {}).items()
            }
            self.blobs |= {f.sha256: f.content for f in added.values() if f.lfs}
            return repo.commit("main", (now.files if now else {}) | added, "added by the test")

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """Path → content on the main branch."""
        commit = self.repos[repo_type, repo_id].at("main")
        assert commit is not None
        return {path: stored.content for path, stored in commit.files.items()}

    def commits(self, repo_id: str, repo_type: str = "model") -> list[str]:
        """Titles of all commits, oldest first."""
        return [commit.title for commit in self.repos[repo_type, repo_id].commits]

    def count(self, match: str) -> int:
        """How many requests so far match the pattern ("METHOD /path")."""
        return sum(bool(re.search(match, request)) for request in self.requests)

    def fail(self, match: str, *, status: int = 503, times: int = 1) -> None:
        """Answer the next `times` matching requests with an error."""
        self.faults.append(Fault(match, "status", status, times))

    def truncate(self, match: str, *, times: int = 1) -> None:
        """Break the connection halfway through the body of the next matching downloads."""
        self.faults.append(Fault(match, "truncate", 200, times))

    def corrupt(self, match: str, *, times: int = 1) -> None:
        """Flip the last byte of the next matching downloads."""
        self.faults.append(Fault(match, "corrupt", 200, times))

    def take_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    fault.times -= 1
                    return fault
        return None

    def environment(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Variables that make another process's Hub clients use this server."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def use(self, monkeypatch: Any, home: Path, token: str | None = WRITE_TOKEN) -> None:
        """Make this process's Hub clients use this server until the test ends.

        The clients read most of their environment when imported, so that is undone here too.
        """
        import datasets.config
        import huggingface_hub.constants as constants

        monkeypatch.delenv("HF_TOKEN", raising=False)
        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HOME", str(home))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(home / "modules"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    # ------------------------------------------------------------ reading and answering

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.payload = self._read_body()
        path = unquote(url.path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        self.fault = self.hub.take_fault(request)
        try:
            if self.fault and self.fault.kind == "status":
                raise Failure(self.fault.status, "Injected", "injected by the test")
            self._authenticate()
            self._route(path)
        except Failure as failure:
            self._answer(
                {"error": failure.message},
                failure.status,
                {"X-Error-Code": failure.code, "X-Error-Message": failure.message},
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, body: Any = b"", status: int = 200, headers: dict[str, Any] | None = None
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if content and self.fault and self.fault.kind == "truncate":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        if content and self.fault and self.fault.kind == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.wfile.write(content)

    def _authenticate(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", READ_TOKEN, WRITE_TOKEN):
            raise Failure(401, "", "Invalid credentials in Authorization header")
        self.token = token

    def _must_write(self) -> None:
        if not self.token:
            raise Failure(401, "", "Invalid username or password.")
        if self.token != WRITE_TOKEN:
            raise Failure(403, "", "You don't have the rights to create or change this repository")

    # ------------------------------------------------------------ routes

    def _route(self, path: str) -> None:
        routes = {
            r"/api/whoami-v2": self._whoami,
            r"/api/validate-yaml": lambda: self._answer({"errors": [], "warnings": []}),
            r"/api/repos/create": self._create,
            r"/lfs/(?P<sha>[0-9a-f]{64})": self._lfs_object,
            r"/lfs-verify": self._answer,
            rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}\.git/info/lfs/objects/batch": self._lfs_batch,
            rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}/resolve/(?P<rev>[^/]+)/(?P<rest>.+)": (
                self._resolve
            ),
            rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
            r"(?:/(?P<action>preupload|commit|revision|tree|paths-info|commits|refs|branch)"
            r"(?:/(?P<rev>[^/]+))?(?:/(?P<rest>.*))?)?": self._repo_call,
        }
        for pattern, call in routes.items():
            if match := re.fullmatch(pattern, path):
                self.parts = match.groupdict()
                call()
                return
        raise Failure(404, "NotFound", f"no route {self.command} {path}")

    def _whoami(self) -> None:
        if not self.token:
            raise Failure(401, "", "Invalid username or password.")
        role = "write" if self.token == WRITE_TOKEN else "read"
        access = {"accessToken": {"displayName": "test", "role": role}}
        self._answer({"type": "user", "name": USER, "orgs": [], "auth": access})

    def _create(self) -> None:
        self._must_write()
        wanted = json.loads(self.payload)
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        key = (wanted.get("type") or "model", repo_id)
        prefix = "" if key[0] == "model" else f"{key[0]}s/"
        answer = {"url": f"{self.hub.url}/{prefix}{repo_id}", "id": repo_id, "name": repo_id}
        with self.hub.lock:
            if key in self.hub.repos:
                self._answer({"error": "You already created this repo", **answer}, 409)
                return
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            self.hub.repos[key] = repo = Repo(private)
            repo.commit("main", {".gitattributes": StoredFile(b"*.npy filter=lfs\n", False)}, "new")
        self._answer(answer)

    def _repo(self) -> Repo:
        kind = (self.parts["kind"] or "models")[:-1]
        repo = self.hub.repos.get((kind, f"{self.parts['owner']}/{self.parts['name']}"))
        if repo is None or (repo.private and not self.token):
            raise Failure(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        if (commit := repo.at(revision)) is None:
            raise Failure(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _resolve(self) -> None:
        repo = self._repo()
        if repo.gated:
            status, message = (403, "not on the list") if self.token else (401, "log in first")
            raise Failure(
                status, "GatedRepo", f"Access to this repository is restricted: {message}"
            )
        commit = self._commit(repo, self.parts["rev"])
        stored = commit.files.get(self.parts["rest"])
        if stored is None:
            raise Failure(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{stored.etag}"'}
        if stored.lfs:
            headers["X-Linked-Etag"] = f'"{stored.etag}"'
            headers["X-Linked-Size"] = str(len(stored.content))
        self._send_content(stored.content, headers)

    def _send_content(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self._answer(content, 200, headers | {"Accept-Ranges": "bytes"})
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(content[first : last + 1], 206, headers)

    def _lfs_object(self) -> None:
        sha = self.parts["sha"]
        if self.command == "PUT":
            if hashlib.sha256(self.payload).hexdigest() != sha:
                raise Failure(400, "BadDigest", "content does not have the announced sha256")
            with self.hub.lock:
                self.hub.blobs[sha] = self.payload
            self._answer()
        else:
            self._send_content(self.hub.blobs[sha], {"ETag": f'"{sha}"'})

    def _lfs_batch(self) -> None:
        self._must_write()
        objects = []
        for wanted in json.loads(self.payload)["objects"]:
            upload = {
                "upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/lfs-verify", "header": {}},
            }
            known = wanted["oid"] in self.hub.blobs
            objects.append(wanted | ({} if known else {"actions": upload}))
        self._answer({"transfer": "basic", "objects": objects})

    def _repo_call(self) -> None:
        repo = self._repo()
        commit = self._commit(repo, self.parts["rev"] or "main")
        match self.parts["action"]:
            case "preupload":
                self._preupload(commit)
            case "commit":
                self._make_commit(repo, self.parts["rev"])
            case "tree":
                self._tree(commit)
            case "paths-info":
                self._paths_info(commit)
            case "branch":
                self._must_write()
                repo.refs[self.parts["rev"]] = commit.oid
                self._answer({})
            case "commits":
                self._answer(
                    [
                        {"id": c.oid, "title": c.title, "message": "", "authors": []}
                        | {"date": "2026-01-01T00:00:00.000Z"}
                        for c in reversed(repo.commits)
                    ]
                )
            case "refs":
                branches = [
                    {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                    for name, oid in repo.refs.items()
                ]
                self._answer({"branches": branches, "tags": [], "converts": []})
            case _:
                self._info(repo, commit)

    def _info(self, repo: Repo, commit: Commit) -> None:
        repo_id = f"{self.parts['owner']}/{self.parts['name']}"
        self._answer(
            {
                "id": repo_id,
                "modelId": repo_id,
                "sha": commit.oid,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def _preupload(self, commit: Commit) -> None:
        self._must_write()
        answers = []
        for wanted in json.loads(self.payload)["files"]:
            lfs = wanted["size"] >= LFS_SIZE or wanted["path"].endswith(LFS_SUFFIXES)
            known = commit.files.get(wanted["path"])
            answers.append(
                {
                    "path": wanted["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": known.etag if known else None,
                }
            )
        self._answer({"files": answers, "commitOid": commit.oid})

    def _make_commit(self, repo: Repo, branch: str) -> None:
        self._must_write()
        header, *changes = [json.loads(line) for line in self.payload.splitlines() if line.strip()]
        with self.hub.lock:
            now = self._commit(repo, branch)
            if header["value"].get("parentCommit", now.oid) != now.oid:
                raise Failure(412, "", "A commit has happened since. Please refresh and try again.")
            files = dict(now.files)
            for change in changes:
                self._apply(change["key"], change["value"], files)
            oid = repo.commit(branch, files, header["value"]["summary"])
        url = f"{self.hub.url}/{self.parts['owner']}/{self.parts['name']}/commit/{oid}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _apply(self, key: str, value: dict[str, Any], files: dict[str, StoredFile]) -> None:
        path = value["path"]
        match key:
            case "file":
                files[path] = StoredFile(base64.b64decode(value["content"]), False)
            case "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Failure(400, "", f"{path}: no LFS object {value['oid']}")
                files[path] = StoredFile(self.hub.blobs[value["oid"]], True)
            case "deletedFile":
                files.pop(path, None)
            case "deletedFolder":
                for inside in [p for p in files if p.startswith(path.rstrip("/") + "/")]:
                    del files[inside]
            case _:
                raise Failure(400, "", f"unknown operation {key}")

    def _tree(self, commit: Commit) -> None:
        root = f"{self.parts['rest'].rstrip('/')}/" if self.parts["rest"] else ""
        inside = {p: f for p, f in sorted(commit.files.items()) if p.startswith(root)}
        if root and not inside:
            raise Failure(404, "EntryNotFound", f"{root} does not exist")
        deep = self.query.get("recursive", "false").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, stored in inside.items():
            *folders, _ = path.removeprefix(root).split("/")
            for depth in range(1, len(folders) + 1):
                if deep or depth == 1:
                    folder = root + "/".join(folders[:depth])
                    entries[folder] = self._folder_entry(folder)
            if deep or not folders:
                entries[path] = stored.entry(path)
        self._answer(list(entries.values()))

    def _paths_info(self, commit: Commit) -> None:
        try:
            paths = json.loads(self.payload)["paths"]
        except ValueError:
            paths = parse_qs(self.payload.decode()).get("paths", [])
        entries = []
        for path in paths:
            if path in commit.files:
                entries.append(commit.files[path].entry(path))
            elif any(p.startswith(f"{path}/") for p in commit.files):
                entries.append(self._folder_entry(path))
        self._answer(entries)

    @staticmethod
    def _folder_entry(path: str) -> dict[str, Any]:
        return {"type": "directory", "path": path, "size": 0, "oid": _git_oid(path.encode())}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A Hub of your own on a free loopback port, gone when the block ends."""
    hub = HubServer()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
