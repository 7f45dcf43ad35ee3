"""Commit what is published to a Hub repository.

The repository is private unless the job says otherwise. All files go into one commit. If nothing
has changed, there is no commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pion.errors import BadInput, Interrupted
from pipeline.state.stores.hub import TOKENS_PAGE
from pipeline.state.stores.retry import retrying

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf://"

Result = TypeVar("Result")


class Unreachable(Exception):
    """The Hub can't be reached or does not work; trying again later may help."""


def repo_of(to: str) -> str | None:
    """Return the repository that `publish.to` names as `hf://user/name`; None for a folder.

    Raises BadInput if it is neither.
    """
    if "://" not in to:
        return None

    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo = to.removeprefix(PREFIX)
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if not to.startswith(PREFIX) or repo.count("/") != 1:
        raise BadInput(f"publish.to: {to!r} is neither a folder nor hf://user/name.")
    return repo


def card_of(repo: str) -> str:
    """Return the card in a repository; "" if there is none.

    Raises Unreachable, and BadInput if the Hub refuses.
    """
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    api = api_of(repo)

    def read() -> str:
        try:
            return Path(api.hf_hub_download(repo, "README.md")).read_text(
                encoding="utf-8", errors="replace"
            )
        except EntryNotFoundError:
            return ""

    with suppress(RepositoryNotFoundError):
        return call(repo, read)
    return ""


def push(repo: str, folder: Path, *, private: bool, title: str, safe: str) -> dict[str, Any]:
    """Commit every file of `folder` to `repo`; return its `url`, also as `card`, and its new
    `commit`.

    `safe` says in the errors what is not lost.

    Raises:
        BadInput: the Hub refuses; the message says what to change.
        Interrupted: the Hub stayed unreachable; the same command resumes publishing.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import RepositoryNotFoundError

    api, attempts = api_of(repo), 0

    def commit() -> dict[str, Any]:
        nonlocal attempts
        attempts += 1
        url = api.create_repo(repo, private=private, exist_ok=True)
        check_visibility(repo, api.repo_info(repo).private, private)
        # The client leaves out unchanged files, and makes no empty commit.
        files = [
            CommitOperationAdd(path.relative_to(folder).as_posix(), str(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        info = api.create_commit(repo, files, commit_message=title)
        return {"url": str(url), "card": str(url), "commit": str(info.oid)}

    try:
        return retrying(
            lambda: call(repo, commit),
            lambda error: isinstance(error, Unreachable),
            sleep=time.sleep,
        )
    except RepositoryNotFoundError:
        raise BadInput(
            f"publish.to: hf://{repo}: the Hub says that this token has no such repository (404). "
            f"{safe} Use a token with write access ({TOKENS_PAGE}), or a different repository."
        ) from None
    except Unreachable as error:
        raise Interrupted(
            f"publish.to: hf://{repo}: {error} ({attempts} attempts). {safe} Run the same command "
            "again. Pion will only repeat the publish stage."
        ) from error


def api_of(repo: str) -> HfApi:
    """Return the Hub with the person's token. Raises BadInput if there is none."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise BadInput(
            f"publish.to: hf://{repo}: there is no Hub token. Set HF_TOKEN or run `hf auth login` "
            f"with a token that has write access ({TOKENS_PAGE}), or publish to a folder."
        )
    return HfApi(token=token)


def check_visibility(repo: str, is_private: bool | None, wanted_private: bool) -> None:
    """Raise BadInput if the repository is public and the job wants a private repository."""
    if wanted_private and is_private is False:
        raise BadInput(
            f"publish.to: hf://{repo} exists and is public, and publish.private is true (the "
            "default). Set publish.private to false, make the repository private on the Hub, or "
            "use a different repository."
        )


def call(repo: str, ask: Callable[[], Result]) -> Result:
    """Return `ask()`; turn the Hub's refusals into BadInput and its outages into Unreachable.

    RepositoryNotFoundError passes: before training it only means "not yet".
    """
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    from pipeline.state.stores.hub.errors import explain_publishing, status_of

    try:
        return ask()
    except RepositoryNotFoundError:
        raise
    except (HTTPError, ConnectionError, TimeoutError, ValueError) as error:
        refusal = explain_publishing(error)
        if refusal is not None:
            raise BadInput(f"publish.to: hf://{repo}: {refusal}") from None
        if status := status_of(error):
            raise Unreachable(f"the Hub answered {status}") from None
        raise Unreachable(f"the Hub can't be reached ({type(error).__name__})") from None
