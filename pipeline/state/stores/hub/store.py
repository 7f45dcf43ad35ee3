"""A store in a repository on the Hugging Face Hub.

On the Hub only a commit can decide between writers, and only about 128 commits an hour are allowed.
So writes and deletes wait: small contents in memory, large contents uploaded as LFS objects. The
next `compare_and_swap` or `flush` makes all of them, with HEAD, in one commit. The parent of that
commit must be the commit that we read. Old commits keep deleted files, so the history is squashed,
and LFS objects that no path uses any more are deleted.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from pion.errors import BadInput
from pion.untrusted import LARGEST_RECORD
from pipeline.state.stores.base import (
    Data,
    Entries,
    Entry,
    Missing,
    Names,
    Staged,
    Store,
    StoreError,
    check_key,
    is_key,
    too_large,
)
from pipeline.state.stores.hub import errors
from pipeline.state.stores.hub.commit import (
    Change,
    Commit,
    Delete,
    Put,
    Uploaded,
    from_json,
    to_json,
    version_of,
)
from pipeline.state.stores.hub.repo import BRANCH, HubRepo, at_main
from pipeline.state.stores.transfer import download_parallel

LARGE_BYTES = 1 << 20
COMMITS_KEPT = 50


class HubStore(Store):
    """Keys are files in the repository `repo_id`. Safe with any number of processes and threads.

    Reading a large file before its commit makes the commit. `sleep` waits before a failed request
    is retried.
    """

    commits = True
    # This is 30 of the 128 commits an hour. Claims, ends of stages and other runs in the repository
    # need some too.
    save_seconds = 120.0

    def __init__(
        self,
        repo_id: str,
        repo_type: str = "model",
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._repo = HubRepo(repo_id, repo_type, sleep)
        self.url = self._repo.url
        self._staged: dict[str, Change] = {}
        self._guard = threading.Lock()  # of `_staged`
        self._committing = threading.RLock()
        # The commit listed last, and its files by folder.
        self._listed: tuple[str, dict[str, Sequence[RepoFile]]] = ("", {})

    @classmethod
    def open(cls, rest: str) -> "HubStore":
        """Return the store that `user/repo` or `datasets/user/repo` names; nothing is requested.

        Raises `BadInput` for other forms.
        """
        repo_id, repo_type = rest.rstrip("/"), "model"
        if repo_id.startswith("datasets/"):
            repo_id, repo_type = repo_id.removeprefix("datasets/"), "dataset"
        try:
            validate_repo_id(repo_id)
        except HFValidationError:
            repo_id = ""
        if repo_id.count("/") != 1:
            raise BadInput(
                f"store {'hf://' + rest!r}: use hf://user/repo (a model repository) or "
                "hf://datasets/user/repo. Runs are folders in it."
            )
        return cls(repo_id, repo_type)

    # ------------------------------------------------------------ writing

    def write(self, key: str, data: Data) -> None:
        check_key(key)
        try:
            change = self._staged_write(key, data)
        except OSError as error:
            raise StoreError("write", f"{self.url}/{key}", error.strerror or str(error)) from error
        with self._guard:
            self._staged[key] = change

    def delete(self, key: str) -> None:
        with self._guard:
            self._staged[check_key(key)] = Delete(key)

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        check_key(key)
        with self._committing:
            if any(change.key == key for change in self._changes()):
                self.flush()
            self._commit(Put(key, data), expected)
        return version_of(data)

    def flush(self) -> None:
        with self._committing:
            if self._changes():
                self._commit()

    def staged(self) -> list[Staged]:
        return [to_json(change) for change in self._changes()]

    def adopt(self, staged: list[Staged]) -> None:
        with self._guard:
            self._staged.update({raw["key"]: from_json(raw) for raw in staged})

    # ------------------------------------------------------------ reading

    def read(self, key: str, limit: int = LARGEST_RECORD) -> bytes:
        change = self._own(key)
        if isinstance(change, Put):
            return change.content
        return self._repo.request("read", key, lambda: self._repo.read(key, limit))

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        data = self.read(key)
        return data, version_of(data)

    def download(self, key: str, path: Path, limit: int | None = None) -> str:
        repo, change = self._repo, self._own(key)
        if isinstance(change, Put):
            content = change.content
            return download_parallel(
                lambda start, stop: [content[start:stop]], len(content), path, repo.retry
            )
        located = repo.request("read", key, lambda: repo.locate(key, BRANCH))
        if limit is not None and located.size > limit:
            raise too_large(f"{self.url}/{key}", limit)
        location = located.location

        def fetch(start: int, stop: int) -> Iterable[bytes]:
            nonlocal location
            try:
                yield from repo.fetch(location, start, stop)
            except HfHubHTTPError as error:
                if errors.status_of(error) not in (401, 403, 404, 410):
                    raise
                location = repo.locate_again(key, located).location
                raise ConnectionError("its address had expired") from None

        try:
            return download_parallel(fetch, located.size, path, repo.retry)
        except errors.ERRORS as error:
            raise repo.explained(error, "read", key) from None

    def list(self, prefix: str = "") -> Entries:
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder)
        files = self._repo.request(
            "list", prefix, lambda: at_main(self._repo, lambda main: self._files(main, folder))
        )
        sizes = {file.path: file.lfs.size if file.lfs else file.size for file in files}
        for change in self._changes():
            if isinstance(change, Delete):
                sizes.pop(change.key, None)
            else:
                sizes[change.key] = change.size
        return [Entry(k, sizes[k]) for k in sorted(sizes) if k.startswith(prefix) and is_key(k)]

    def folders(self) -> Names:
        list_folders = partial(at_main, self._repo, self._repo.folders)
        names = set(self._repo.request("list", "", list_folders))
        for change in self._changes():
            name, slash, _ = change.key.partition("/")
            if slash and not isinstance(change, Delete):
                names.add(name)
        return sorted(name for name in names if is_key(name))

    def service_time(self) -> float | None:
        return self._repo.request("read the time of", "", self._repo.service_time)

    # ------------------------------------------------------------ tidying up

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        """See `Store`. Squashes the history of the whole repository once it is long.

        Deletes only LFS objects that no branch or tag uses, and whose name, if the Hub knows it,
        starts with `prefix`. Another process may have uploaded an object that waits for its commit.
        Such an object is safe if it was uploaded after `before`, unless the same bytes were
        uploaded earlier. So don't upload to the same run during the sweep.
        """
        with self._committing:
            return self._repo.request("clean up", prefix, lambda: self._sweep(prefix, before))

    def probe(self, prefix: str) -> str:
        """See `Store`. Makes no commit except one that the Hub must refuse. Raises `StoreError`,
        not `BadInput`, if the Hub is down."""
        repo = self._repo
        if get_token() is None:
            raise BadInput(
                f"store {self.url}: there is no Hub token. Set HF_TOKEN to a token with write "
                f"access ({errors.TOKENS_PAGE}), or run `hf auth login`. Nothing was started."
            )
        key = f"{prefix}probe-{uuid.uuid4().hex}"
        try:
            me = repo.request("use", "", lambda: repo.api.whoami(cache=True))
            if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
                reason = (
                    f"the token of {me['name']} is read-only; set HF_TOKEN to a token with write "
                    f"access ({errors.TOKENS_PAGE})"
                )
                raise StoreError("write to", self.url, reason)
            repo.request("read", "", repo.main)
            if repo.request("write to", "", lambda: repo.takes_any_parent(key)):
                raise BadInput(
                    f"{self.url} can't store a run, because it ignores a commit's parent. Two "
                    "machines could then both think that they own the run. Nothing was started. "
                    "Use hf://user/repo on huggingface.co, or s3://bucket/prefix."
                )
            return ""
        except StoreError as error:
            if error.outage:
                raise
            raise BadInput(f"{error} Nothing was started.") from error

    def _changes(self) -> tuple[Change, ...]:
        with self._guard:
            return tuple(self._staged.values())

    def _own(self, key: str) -> Change | None:
        """Return the change of `key` that waits for a commit; commit the change of a large file.

        Raises `Missing` if the change deletes the key.
        """
        with self._guard:
            change = self._staged.get(check_key(key))
        if isinstance(change, Uploaded):
            self.flush()
        if isinstance(change, Delete):
            raise Missing(key, self.url)
        return change

    def _staged_write(self, key: str, data: Data) -> Put | Uploaded:
        content = data if isinstance(data, Path) else bytes(data)
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size >= LARGE_BYTES:
            addition = CommitOperationAdd(key, content)
            self._repo.request("write", key, lambda: self._repo.prepare([addition]))
            if addition._upload_mode == "lfs":
                return Uploaded(key, size, addition.upload_info.sha256.hex())
        return Put(key, content.read_bytes() if isinstance(content, Path) else content)

    def _commit(self, put: Put | None = None, expected: str | None = None) -> None:
        """Make every staged change, and `put` if its key has version `expected`; if that fails, the
        changes stay staged."""
        changes = self._changes()
        making = Commit(self._repo, changes, put, expected)
        self._repo.request("write", put.key if put else "", making.try_once)
        with self._guard:
            for change in changes:
                if self._staged.get(change.key) is change:
                    del self._staged[change.key]

    def _files(self, main: str, folder: str) -> Sequence[RepoFile]:
        listed, folders = self._listed
        if listed != main:
            folders = {}
            self._listed = (main, folders)
        if folder not in folders:
            folders[folder] = self._repo.files(main, folder)
        return folders[folder]

    def _sweep(self, prefix: str, before: float) -> int:
        repo = self._repo
        if len(repo.api.list_repo_commits(repo.repo_id, repo_type=repo.repo_type)) > COMMITS_KEPT:
            repo.api.super_squash_history(
                repo.repo_id, commit_message="History squashed", repo_type=repo.repo_type
            )
        # List the objects first. Then an object that is committed after this counts as used below.
        objects = list(repo.api.list_lfs_files(repo.repo_id, repo_type=repo.repo_type))
        used = {change.sha256 for change in self._changes() if isinstance(change, Uploaded)}
        for tip in set(repo.refs().values()):
            used |= {file.lfs.sha256 for file in repo.files(tip) if file.lfs}
        unused = [
            item
            for item in objects
            if item.file_oid not in used
            and item.pushed_at.timestamp() < before
            and (not item.filename or item.filename.startswith(prefix))
        ]
        # They are deleted forever, even if old commits name them. The commits don't change.
        repo.api.permanently_delete_lfs_files(
            repo.repo_id, unused, rewrite_history=False, repo_type=repo.repo_type
        )
        return len(unused)
