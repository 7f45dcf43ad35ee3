"""The Hub's state, and the methods that tests call."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from tests.support.hub_server.clients import read_at_import
from tests.support.hub_server.repos import Repo, StoredFile

WRITE_TOKEN = "hf_test_write"
READ_TOKEN = "hf_test_read"
FINE_GRAINED_TOKEN = "hf_test_fine_grained"  # can read everything, and do what `scoped` allows
USER = "tester"


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches the pattern.

    Kinds: "status", "truncate", "corrupt", "drop" (the connection breaks before the request is
    performed), "drop_after" (it is performed, but its answer is lost), "before" (`call` runs
    first, then the request succeeds), "page" (200 with `page`, from a proxy on the way).
    """

    match: str
    kind: str
    times: int
    status: int = 200
    retry_after: str | None = None
    call: Callable[[], Any] = lambda: None
    page: bytes = b""


class Failure(Exception):
    """An error in the Hub's words: status, X-Error-Code, message."""

    def __init__(self, status, code, message, retry_after=None):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after = retry_after


class HubServer:
    """`now` is the server's clock, and `date` the Date header of every answer.
    `commit_limit`: commits an hour that a repository takes, then 429.
    `cdn`: large files are downloaded from another host, as from the real Hub.
    `links_elsewhere`: lists continue on another host, as no list of the real Hub does. A request to
    another host that brings a token is refused.
    `granted`: the tokens that may read gated repositories.
    `ignores_parents`: a commit's parent may be anything, as on no real Hub. `scoped`: what the
    fine-grained token may do, as (type, name, permissions) of users, organisations and
    repositories."""

    def __init__(self):
        self.lock = threading.RLock()
        self.repos = {}  # (model|dataset|space, "user/name")
        self.blobs = {}  # LFS objects by sha256
        self.requests = []  # "GET /user/name/resolve/main/a.npy"
        self.faults = []
        self.url = ""
        self.now = time.time
        self.date = lambda: formatdate(self.now(), usegmt=True)
        self.commit_limit = None
        self.cdn = False
        self.links_elsewhere = False
        self.ignores_parents = False
        self.granted = set()
        self.scoped = [("user", USER, ["repo.content.read"])]

    def add_repo(self, repo_id, repo_type="model", files=None, *, private=False, gated=False):
        """Create a repository, or add a commit with more files; return the commit's id."""
        with self.lock:
            repo = self.repos.setdefault((repo_type, repo_id), Repo(private, gated))
            now = repo.at("main")
            added = {p: StoredFile.of(p, content) for p, content in (files or {}).items()}
            for stored in added.values():
                if stored.lfs:
                    self.blobs[stored.sha256] = stored.content
                    repo.lfs[stored.sha256] = self.now()
            files_now = (now.files if now else {}) | added
            return repo.commit("main", files_now, "added by the test", self.now())

    def files(self, repo_id, repo_type="model"):
        """Return path → content on the main branch."""
        commit = self.repos[repo_type, repo_id].at("main")
        return {path: stored.content for path, stored in commit.files.items()}

    def commits(self, repo_id, repo_type="model"):
        """Return the titles of all commits, oldest first."""
        return [commit.title for commit in self.repos[repo_type, repo_id].commits]

    def lfs_bytes(self, repo_id, repo_type="model"):
        """Return the bytes of the repository's large files, used or not."""
        stored = self.repos[repo_type, repo_id].lfs
        return sum(len(self.blobs[sha]) for sha in stored if sha in self.blobs)

    def count(self, match):
        """Return how many requests so far match the pattern ("METHOD /path")."""
        return sum(bool(re.search(match, request)) for request in self.requests)

    def fail(self, match, *, status=503, times=1, retry_after=None):
        """Answer the next `times` matching requests with an error."""
        self.faults.append(Fault(match, "status", times, status, retry_after))

    def answer_page(self, match, page, *, times=1):
        """Answer the next matching requests 200 with this, like a proxy on the way."""
        self.faults.append(Fault(match, "page", times, page=page))

    def truncate(self, match, *, times=1):
        """Break the connection halfway through the body of the next matching downloads."""
        self.faults.append(Fault(match, "truncate", times))

    def corrupt(self, match, *, times=1):
        """Flip the last byte of the next matching downloads."""
        self.faults.append(Fault(match, "corrupt", times))

    def drop(self, match, *, times=1):
        """Break the connection instead of performing the next matching requests."""
        self.faults.append(Fault(match, "drop", times))

    def drop_after(self, match, *, times=1):
        """Perform the next matching requests and break the connection instead of answering."""
        self.faults.append(Fault(match, "drop_after", times))

    def before(self, match, call, *, times=1):
        """Run `call` just before performing the next matching requests."""
        self.faults.append(Fault(match, "before", times, call=call))

    def take_fault(self, request):
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    fault.times -= 1
                    return fault
        return None

    @property
    def other_host(self):
        """The address of this server under another name."""
        return self.url.replace("127.0.0.1", "localhost")

    def environment(self, home, token=WRITE_TOKEN):
        """Return variables that make another process's Hub clients use this server."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def use(self, monkeypatch, home, token=WRITE_TOKEN):
        """Make this process's Hub clients use this server until the test ends.

        The clients read most of their environment when imported, so their constants change too.
        """
        import datasets.config  # noqa: F401  (its constants change, whoever imports it later)

        monkeypatch.delenv("HF_TOKEN", raising=False)
        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        for module, constant, now in read_at_import(self.environment(home, token)):
            monkeypatch.setattr(module, constant, now)
