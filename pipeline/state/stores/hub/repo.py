"""One repository on the Hub, read and changed through the huggingface_hub client.

Requests that fail with transient errors are retried. Other errors become a `StoreError`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_url,
    set_client_factory,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    get_session,
    hf_raise_for_status,
)
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils._http import default_client_factory

from pion.errors import PionError
from pipeline.state.stores.base import Missing, StoreError, check_count, too_large
from pipeline.state.stores.clock import parse_date
from pipeline.state.stores.hub import errors
from pipeline.state.stores.retry import Retry, T, retrying

BRANCH = "main"
_PATHS_PER_REQUEST = 500
_PIECE_BYTES = 1 << 20
_WHOLE_BYTES = 16 << 20

Operation = CommitOperationAdd | CommitOperationDelete


@dataclass(frozen=True)
class Located:
    """Where the bytes of a file at `commit` can be fetched; `etag` names its content."""

    location: str
    commit: str
    etag: str
    size: int


# Seconds without a byte, not seconds for the whole request: a commit of many files takes a while.
TIMEOUT = httpx.Timeout(120.0, connect=10.0)


@functools.cache
def set_up_client() -> None:
    """Let requests time out when no byte arrives, send the token only to the Hub, and log only
    errors. Works once per process.

    By default the client waits forever. It asks whatever host a page of a list names for the next
    page, with the token. And its warning about a retried request shows the signed address of an
    upload.
    """
    set_client_factory(_client)
    disable_progress_bars()
    hub_logging.set_verbosity_error()


def _client() -> httpx.Client:
    """Return the default client, with time limits for requests that have none, and without the
    token for other hosts."""

    def limit(request: httpx.Request) -> None:
        if not _may_get_token(request.url):
            request.headers.pop("Authorization", None)
        timeouts = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            name: timeouts.get(name) or seconds for name, seconds in TIMEOUT.as_dict().items()
        }

    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks["request"], limit]}
    return client


def _may_get_token(url: httpx.URL) -> bool:
    """Return whether a request goes to the Hub: the one in HF_ENDPOINT, or huggingface.co, where a
    mirror's lists may continue."""
    at = httpx.URL(constants.ENDPOINT)
    if (url.scheme, url.host, url.port) == (at.scheme, at.host, at.port):
        return True
    return url.scheme == "https" and f".{url.host}".endswith(".huggingface.co")


class HubRepo:
    """The repository `repo_id`. `sleep` waits before a failed request is retried.

    The methods raise the client's errors. `request` runs a method with retries, and explains its
    errors.
    """

    def __init__(self, repo_id: str, repo_type: str, sleep: Callable[[float], None]) -> None:
        set_up_client()
        self.api = HfApi()
        self.repo_id, self.repo_type = repo_id, repo_type
        kind = "" if repo_type == "model" else f"{repo_type}s/"
        self.url = f"hf://{kind}{repo_id}"
        self.create_command = f"hf repos create {repo_id} --private" + (
            "" if repo_type == "model" else f" --repo-type {repo_type}"
        )
        self.sleep = sleep
        self.retry: Retry = functools.partial(
            retrying,
            is_transient=errors.is_transient,
            retry_after=errors.retry_after,
            sleep=sleep,
        )

    def request(self, action: str, key: str, call: Callable[[], T]) -> T:
        """Return `call()`, with retries while its errors are transient.

        Raises `Missing` for a file that does not exist, else `StoreError`.
        """
        try:
            return self.retry(errors.readable()(call))
        except PionError:
            raise
        except errors.ERRORS as error:
            raise self.explained(error, action, key) from None  # the cause may hold signed URLs

    def explained(self, error: Exception, action: str, key: str) -> Missing | StoreError:
        """Return what to raise instead of the client's error."""
        if isinstance(error, EntryNotFoundError):
            return Missing(key, self.url)
        where = f"{self.url}/{key}".rstrip("/")
        reason = errors.explain(error, self.url, self.create_command)
        return StoreError(action, where, reason, outage=errors.is_outage(error))

    # ------------------------------------------------------------ reading

    def refs(self) -> dict[str, str]:
        """Return the commit ids of all branches and tags."""
        refs = self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type)
        return {ref.name: ref.target_commit for ref in [*refs.tags, *refs.branches]}

    def main(self) -> str:
        """Return the commit that main is at."""
        commit = self.refs().get(BRANCH)
        if commit is None:
            raise StoreError("use", self.url, "there is no branch main; use a new repository")
        return commit

    def service_time(self) -> float | None:
        """Return Unix seconds by the Hub's clock; None if its answer has no readable date."""
        url = f"{self.api.endpoint}/api/{self.repo_type}s/{self.repo_id}/refs"
        response = get_session().get(url, headers=build_hf_headers())
        hf_raise_for_status(response)
        return parse_date(response.headers.get("Date"))

    def files(self, commit: str, folder: str = "") -> list[RepoFile]:
        """Return every file below `folder` at that commit."""
        tree = self._tree(commit, folder, recursive=True)
        return [entry for entry in tree if isinstance(entry, RepoFile)]

    def folders(self, commit: str) -> list[str]:
        """Return the names of the folders at the top of the repository at that commit."""
        folders = []
        for number, entry in enumerate(self._tree(commit, "", recursive=False), 1):
            check_count(number, self.url, "another repository")
            if isinstance(entry, RepoFolder):
                folders.append(entry.path)
        return folders

    def _tree(
        self, commit: str, folder: str, *, recursive: bool
    ) -> Iterator[RepoFile | RepoFolder]:
        """Yield what is in `folder` at that commit; nothing if there is no such folder."""
        with contextlib.suppress(EntryNotFoundError):
            yield from self.api.list_repo_tree(
                self.repo_id,
                folder or None,
                recursive=recursive,
                revision=commit,
                repo_type=self.repo_type,
            )

    def entries(self, commit: str, paths: Sequence[str]) -> dict[str, RepoFile]:
        """Return the files among `paths` at that commit, by path."""
        entries = {}
        for start in range(0, len(paths), _PATHS_PER_REQUEST):
            some = list(paths[start : start + _PATHS_PER_REQUEST])
            for entry in self.api.get_paths_info(
                self.repo_id, some, revision=commit, repo_type=self.repo_type
            ):
                if isinstance(entry, RepoFile):
                    entries[entry.path] = entry
        return entries

    def read(self, path: str, limit: int) -> bytes:
        """Return a file's bytes on main. Raises `Damaged` if there are more than `limit`."""
        content = bytearray()
        with get_session().stream(
            "GET", self.file_url(path, BRANCH), headers=_headers()
        ) as response:
            hf_raise_for_status(response)
            if "ETag" not in response.headers:  # the Hub sends it with a file's bytes
                raise errors.NotFromTheHub("no ETag")
            for piece in response.iter_bytes(_PIECE_BYTES):
                content += piece
                if len(content) > limit:
                    raise too_large(f"{self.url}/{path}", limit)
        return bytes(content)

    def file_url(self, path: str, revision: str) -> str:
        return hf_hub_url(
            self.repo_id,
            path,
            repo_type=self.repo_type,
            revision=revision,
            endpoint=self.api.endpoint,
        )

    def locate(self, path: str, revision: str) -> Located:
        """Return where a file's bytes can be fetched. Later commits don't change these bytes."""
        metadata = self.api.get_hf_file_metadata(url=self.file_url(path, revision))
        if metadata.commit_hash is None or metadata.etag is None or metadata.size is None:
            raise errors.NotFromTheHub("no X-Repo-Commit, ETag or size")
        here = self._is_at_the_hub(metadata.location)
        location = self.file_url(path, metadata.commit_hash) if here else metadata.location
        return Located(location, metadata.commit_hash, metadata.etag, metadata.size)

    def locate_again(self, path: str, before: Located) -> Located:
        """Return a fresh address of the same bytes. Raises `StoreError` if they are gone."""
        try:
            located = self.locate(path, before.commit)
        except RevisionNotFoundError:  # squashed away
            located = self.locate(path, BRANCH)
        if located.etag != before.etag:
            reason = "the file was replaced during the download; run the same command again"
            raise StoreError("read", f"{self.url}/{path}", reason, outage=True)
        return located

    def fetch(self, location: str, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes `start` up to `stop` of the file at `location`.

        The token is sent only to the Hub, not to the host of its large files.
        """
        token = None if self._is_at_the_hub(location) else False
        headers = _headers(token) | {"Range": f"bytes={start}-{stop - 1}"}
        with get_session().stream("GET", location, headers=headers) as response:
            hf_raise_for_status(response)
            if response.status_code == 206:
                yield from response.iter_bytes(_PIECE_BYTES)
            elif int(response.headers.get("Content-Length", 0)) <= _WHOLE_BYTES:
                yield response.read()[start:stop]  # the Hub may send a small file whole
            else:
                raise ConnectionError("the Hub sent the whole file instead of a range")

    def _is_at_the_hub(self, location: str) -> bool:
        return urlsplit(location).netloc == urlsplit(self.api.endpoint).netloc

    # ------------------------------------------------------------ writing

    def prepare(self, additions: Sequence[CommitOperationAdd]) -> None:
        """Upload the additions that the Hub keeps as LFS objects, before their commit.

        Raises `StoreError` for an addition that the repository's .gitignore excludes.
        """
        self.api.preupload_lfs_files(self.repo_id, additions, repo_type=self.repo_type)
        for addition in additions:
            if addition._should_ignore:
                reason = "the repository's .gitignore excludes this file; remove that line"
                raise StoreError("write", f"{self.url}/{addition.path_in_repo}", reason)
            # Without this the client leaves out a file that looked unchanged a moment ago, although
            # the parent may differ.
            addition._remote_oid = None

    def commit(self, operations: Sequence[Operation], parent: str, message: str) -> None:
        """Make one commit on main. If main is not at `parent`, the Hub answers 412."""
        for operation in operations:
            if isinstance(operation, CommitOperationAdd):
                # The client sets this before it reads the answer, and then refuses another try.
                operation._is_committed = False
        with errors.readable():
            self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                repo_type=self.repo_type,
                parent_commit=parent,
            )

    def takes_any_parent(self, path: str) -> bool:
        """Return whether the Hub commits on a parent that does not exist. `path` is not kept."""
        try:
            self.commit([CommitOperationAdd(path, b"refuse this")], "0" * 40, "Refuse this")
        except HfHubHTTPError as error:
            if error.response.status_code in (400, 409, 412):
                return False
            raise
        self.commit([CommitOperationDelete(path, is_folder=False)], self.main(), "Probe removed")
        return True


def at_main(repo: HubRepo, look: Callable[[str], T]) -> T:
    """Return `look(commit)` at main's commit. Retry if the commit was squashed away in the
    meantime."""
    for _ in range(3):
        try:
            return look(repo.main())
        except RevisionNotFoundError:
            continue
    return look(repo.main())


def _headers(token: bool | None = None) -> dict[str, str]:
    """Return the headers of a request for a file's stored bytes. If `token` is False, leave the
    token out."""
    return build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
