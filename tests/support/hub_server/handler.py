"""The Hub's HTTP: reading requests, answering them, large files, and which call a path means."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.http_body import read_body
from tests.support.hub_server.hub import (
    FINE_GRAINED_TOKEN,
    READ_TOKEN,
    USER,
    WRITE_TOKEN,
    Failure,
    Fault,
    HubServer,
)
from tests.support.hub_server.repo_calls import CALLS
from tests.support.hub_server.repos import Repo, StoredFile

REPO = r"(?P<owner>[^/]+)/(?P<name>[^/]+)"
OF_A_KIND = r"(?:(?P<kind>datasets|spaces)/)?"
ROLES = {WRITE_TOKEN: "write", READ_TOKEN: "read", FINE_GRAINED_TOKEN: "fineGrained"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Nagle delays each body by 40 ms
    hub: HubServer
    fault: Fault | None

    def log_message(self, *args):
        pass

    def date_time_string(self, timestamp=None):
        return self.hub.date()

    # ------------------------------------------------------------ reading and answering

    def _handle(self):
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.payload = read_body(self)
        self.route = unquote(url.path)
        request = f"{self.command} {self.route}"
        self.hub.requests.append(request)
        self.fault = self.hub.take_fault(request)
        try:
            if self.fault and self.fault.kind == "drop":
                self.close_connection = True
                return
            if self.fault and self.fault.kind == "before":
                self.fault.call()
            if self.fault and self.fault.kind == "status":
                raise Failure(
                    self.fault.status, "Injected", "injected by the test", self.fault.retry_after
                )
            if self.fault and self.fault.kind == "page":
                return self.answer(self.fault.page)
            self._authenticate()
            self._find_route()
        except Failure as failure:
            headers = {"X-Error-Code": failure.code, "X-Error-Message": failure.message}
            if failure.retry_after is not None:
                headers["Retry-After"] = failure.retry_after
            self.answer({"error": failure.message}, failure.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def answer(self, body=b"", status=200, headers=None):
        if self.fault and self.fault.kind == "drop_after":
            self.close_connection = True
            return
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

    def answer_page(self, items, size):
        """Answer with one page of a list, with a link to the next page."""
        start = int(self.query.get("cursor", 0))
        headers = {}
        if start + size < len(items):
            query = "&".join(
                f"{key}={quote(value)}" for key, value in self.query.items() if key != "cursor"
            )
            host = self.hub.other_host if self.hub.links_elsewhere else self.hub.url
            link = f"{host}{quote(self.route)}?{query}&cursor={start + size}"
            headers["Link"] = f'<{link}>; rel="next"'
        self.answer(items[start : start + size], 200, headers)

    def send_content(self, content, headers):
        """Answer with a file, or with the requested range of it."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self.answer(content, 200, headers | {"Accept-Ranges": "bytes"})
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(content[first : last + 1], 206, headers)

    def _authenticate(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in ROLES:
            raise Failure(401, "", "Invalid credentials in Authorization header")
        if token and self.headers["Host"].startswith("localhost"):
            raise Failure(400, "", "a token was sent to another host")
        self.token = token

    def must_write(self):
        if not self.token:
            raise Failure(401, "", "Invalid username or password.")
        fine = self.token == FINE_GRAINED_TOKEN and any(
            "repo.write" in s[2] for s in self.hub.scoped
        )
        if self.token != WRITE_TOKEN and not fine:
            raise Failure(403, "", "You don't have the rights to create or change this repository")

    def must_have_access(self, repo):
        """Refuse the files of a gated repository to a token that was not granted access."""
        if repo.gated and self.token not in self.hub.granted:
            status, message = (403, "not on the list") if self.token else (401, "log in first")
            raise Failure(
                status, "GatedRepo", f"Access to this repository is restricted: {message}"
            )

    # ------------------------------------------------------------ routes

    def _find_route(self):
        actions = "|".join(CALLS)
        routes = {
            r"/api/whoami-v2": self._whoami,
            r"/api/validate-yaml": lambda: self.answer({"errors": [], "warnings": []}),
            r"/api/repos/create": self._create,
            r"/lfs/(?P<sha>[0-9a-f]{64})": self._lfs_object,
            r"/cdn/(?P<sha>[0-9a-f]{64})": self._cdn_object,
            r"/lfs-verify": self.answer,
            rf"/{OF_A_KIND}{REPO}\.git/info/lfs/objects/batch": self._lfs_batch,
            rf"/{OF_A_KIND}{REPO}/resolve/(?P<rev>[^/]+)/(?P<rest>.+)": self._resolve,
            rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
            rf"(?:/(?P<action>{actions})(?:/(?P<rev>[^/]+))?(?:/(?P<rest>.*))?)?": self._repo_call,
        }
        for pattern, call in routes.items():
            if match := re.fullmatch(pattern, self.route):
                self.parts = match.groupdict()
                call()
                return
        raise Failure(404, "NotFound", f"no route {self.command} {self.route}")

    def repo(self):
        """Return the repository that the path names, if this token can see it."""
        kind = (self.parts["kind"] or "models")[:-1]
        repo = self.hub.repos.get((kind, f"{self.parts['owner']}/{self.parts['name']}"))
        if repo is None or (repo.private and not self.token):
            raise Failure(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repo

    def commit_at(self, repo, revision):
        if (commit := repo.at(revision)) is None:
            raise Failure(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _repo_call(self):
        CALLS[self.parts["action"] or ""](self, self.repo())

    def _whoami(self):
        if not self.token:
            raise Failure(401, "", "Invalid username or password.")
        token = {"displayName": "test", "role": ROLES[self.token]}
        if self.token == FINE_GRAINED_TOKEN:
            scoped = [
                {"entity": {"type": kind, "name": name}, "permissions": permissions}
                for kind, name, permissions in self.hub.scoped
            ]
            token["fineGrained"] = {"global": ["discussion.write"], "scoped": scoped}
        access = {"accessToken": token}
        self.answer({"type": "user", "name": USER, "orgs": [], "auth": access})

    def _create(self):
        self.must_write()
        wanted = json.loads(self.payload)
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        key = (wanted.get("type") or "model", repo_id)
        prefix = "" if key[0] == "model" else f"{key[0]}s/"
        answer = {"url": f"{self.hub.url}/{prefix}{repo_id}", "id": repo_id, "name": repo_id}
        with self.hub.lock:
            if key in self.hub.repos:
                self.answer({"error": "You already created this repo", **answer}, 409)
                return
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            self.hub.repos[key] = repo = Repo(private)
            files = {".gitattributes": StoredFile(b"*.npy filter=lfs\n", False)}
            repo.commit("main", files, "new", self.hub.now())
        self.answer(answer)

    # ------------------------------------------------------------ files

    def _resolve(self):
        repo = self.repo()
        self.must_have_access(repo)
        commit = self.commit_at(repo, self.parts["rev"])
        stored = commit.files.get(self.parts["rest"])
        if stored is None or (stored.lfs and stored.sha256 not in repo.lfs):
            raise Failure(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{stored.etag}"'}
        if stored.lfs:
            headers["X-Linked-Etag"] = f'"{stored.etag}"'
            headers["X-Linked-Size"] = str(len(stored.content))
            if self.hub.cdn:
                headers["Location"] = f"{self.hub.other_host}/cdn/{stored.sha256}?signature=signed"
                self.answer(b"", 302, headers)
                return
        self.send_content(stored.content, headers)

    def _cdn_object(self):
        self.send_content(self.hub.blobs[self.parts["sha"]], {})

    def _lfs_object(self):
        sha = self.parts["sha"]
        if self.command == "PUT":
            if hashlib.sha256(self.payload).hexdigest() != sha:
                raise Failure(400, "BadDigest", "content does not have the announced sha256")
            with self.hub.lock:
                self.hub.blobs[sha] = self.payload
            self.answer()
        else:
            self.send_content(self.hub.blobs[sha], {"ETag": f'"{sha}"'})

    def _lfs_batch(self):
        self.must_write()
        repo = self.repo()
        objects = []
        for wanted in json.loads(self.payload)["objects"]:
            sha = wanted["oid"]
            upload = {
                "upload": {"href": f"{self.hub.url}/lfs/{sha}", "header": {}},
                "verify": {"href": f"{self.hub.url}/lfs-verify", "header": {}},
            }
            known = sha in repo.lfs and sha in self.hub.blobs
            if not known:
                repo.lfs[sha] = self.hub.now()
            objects.append(wanted | ({} if known else {"actions": upload}))
        self.answer({"transfer": "basic", "objects": objects})
