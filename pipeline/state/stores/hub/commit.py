"""Changes to a Hub repository that wait for a commit, and the one commit that makes them.

The Hub refuses a commit unless main is still at the commit that we read. This decides between
writers. Changes that main already has are left out, so a commit whose acknowledgement was lost can
be retried.
"""

import base64
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.lfs import UploadInfo
from huggingface_hub.utils.sha import git_hash

from pipeline.state.stores.base import Conflict, StoreError
from pipeline.state.stores.hub import errors
from pipeline.state.stores.hub.repo import HubRepo

TRIES = 20
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Put:
    """Write these bytes under `key`."""

    key: str
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def is_made(self, present: RepoFile | None) -> bool:
        if present is None:
            return False
        if present.lfs is not None:
            return bool(present.lfs.sha256 == hashlib.sha256(self.content).hexdigest())
        return bool(present.blob_id == git_hash(self.content))

    def operation(self) -> CommitOperationAdd:
        return CommitOperationAdd(self.key, self.content)


@dataclass(frozen=True)
class Uploaded:
    """Put an LFS object that the Hub already has under `key`."""

    key: str
    size: int
    sha256: str

    def is_made(self, present: RepoFile | None) -> bool:
        return present is not None and present.lfs is not None and self.sha256 == present.lfs.sha256

    def operation(self) -> CommitOperationAdd:
        """Return the addition as the client marks it after sending its content."""
        addition = CommitOperationAdd(self.key, b"")
        addition.upload_info = UploadInfo(
            size=self.size, sample=b"", sha256=bytes.fromhex(self.sha256)
        )
        addition._upload_mode = "lfs"
        addition._should_ignore = False
        addition._is_uploaded = True
        return addition


@dataclass(frozen=True)
class Delete:
    """Delete `key`."""

    key: str

    def is_made(self, present: RepoFile | None) -> bool:
        return present is None

    def operation(self) -> CommitOperationDelete:
        return CommitOperationDelete(self.key, is_folder=False)


Change = Put | Uploaded | Delete


def to_json(change: Change) -> dict[str, Any]:
    match change:
        case Put():
            return {"key": change.key, "content": base64.b64encode(change.content).decode()}
        case Uploaded():
            return {"key": change.key, "size": change.size, "sha256": change.sha256}
        case Delete():
            return {"key": change.key}


def from_json(raw: dict[str, Any]) -> Change:
    match raw:
        case {"key": key, "content": content}:
            return Put(key, base64.b64decode(content))
        case {"key": key, "size": size, "sha256": sha256}:
            return Uploaded(key, size, sha256)
    return Delete(raw["key"])


def version_of(content: bytes) -> str:
    """Return the version of a swapped key: its git blob id."""
    return str(git_hash(content))


class Commit:
    """One commit with all `changes`, through as many tries as it takes.

    It makes `put` (None: nothing) only if its key has version `expected` (None: the key does not
    exist).
    """

    def __init__(
        self, repo: HubRepo, changes: Sequence[Change], put: Put | None, expected: str | None
    ) -> None:
        self._repo, self._changes = repo, changes
        self._put, self._expected = put, expected
        swapped = [] if put is None else [put]
        self._paths = [change.key for change in (*changes, *swapped)]
        self._additions: dict[str, CommitOperationAdd] = {}
        self._unanswered = False

    def try_once(self) -> None:
        """Try until the commit is made or refused for good. Commit nothing if main has all changes
        already. `retry` calls this again after an outage.

        Raises `Conflict` when the key of `put` has another version, and what the client raises.
        After an error nothing was changed, unless the commit's answer was lost.
        """
        put = self._put
        for number in range(1, TRIES + 1):
            parent = self._repo.main()
            try:
                present = self._repo.entries(parent, self._paths)
            except RevisionNotFoundError:  # squashed away just now
                continue
            missing = [c for c in self._changes if not c.is_made(present.get(c.key))]
            if put is not None:
                file = present.get(put.key)
                if self._unanswered and not missing and put.is_made(file):
                    return  # an earlier try was made; only its acknowledgement was lost
                if (file.blob_id if file else None) != self._expected:
                    raise Conflict(put.key, self._repo.url)
                if not put.is_made(file):
                    missing.append(put)
            if not missing or self._made(missing, parent):
                return
            self._repo.sleep(random.uniform(0.0, _PAUSE_SECONDS * number))
        reason = f"others committed first, {TRIES} times in a row"
        raise StoreError("write to", self._repo.url, reason, outage=True)

    def _made(self, changes: Sequence[Change], parent: str) -> bool:
        """Commit on `parent`; return False if main is no longer there."""
        self._prepare(changes)
        operations = [self._additions.get(change.key) or change.operation() for change in changes]
        named = self._put.key if self._put else changes[0].key
        others = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        try:
            self._repo.commit(operations, parent, named + others)
        except EntryNotFoundError:  # a file to delete is gone already
            return False
        except errors.ERRORS as error:
            status = errors.status_of(error)
            if status == 412:
                return False
            if status == 408 or not 400 <= status < 500:
                self._unanswered = True  # the Hub may have made the commit
            raise
        return True

    def _prepare(self, changes: Sequence[Change]) -> None:
        """Create each addition once, and upload the contents that the Hub wants before the
        commit."""
        additions = {
            change.key: change.operation()
            for change in changes
            if not isinstance(change, Delete) and change.key not in self._additions
        }
        self._repo.prepare(list(additions.values()))
        self._additions.update(additions)
        key = self._put.key if self._put is not None else ""
        swapped = self._additions.get(key)
        if swapped is not None and swapped._upload_mode == "lfs":
            where = f"{self._repo.url}/{key}"
            reason = "the repository's .gitattributes makes this an LFS file; remove that line"
            raise StoreError("write", where, reason)
