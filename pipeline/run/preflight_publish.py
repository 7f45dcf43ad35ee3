"""Check before anything is started that a run can publish: the folder, or the Hub repository."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, told
from pipeline.job import Job, Publish
from pipeline.report.model_card import front_matter
from pipeline.stages.publish import check_ours
from pipeline.stages.publish_folder import check_adapter
from pipeline.stages.publish_hub import Unreachable, api_of, call, check_visibility, repo_of
from pipeline.stages.requirements import check_names
from pipeline.state.stores.hub import TOKENS_PAGE

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def check_target(job: Job) -> list[str]:
    """Check before training that publishing can work after it; return notes for the user.

    Raises BadInput for an unknown name in publish.require, a folder that can't be written or holds
    something else, a Hub repository that this token can't publish to, and the model of another run.
    """
    publish = job.publish
    if publish is None:
        return []
    check_names(job, publish)
    repo = repo_of(publish.to)
    _check_form(job, publish, to_hub=repo is not None)
    try:
        if repo is not None:
            _check_repo(repo, private=publish.private, card=front_matter(job))
        check_ours(job, publish.to, repo, "Nothing was started.")
    except Unreachable as error:
        return [f"publish.to: {publish.to} could not be checked: {error}"]
    return []


def _check_form(job: Job, publish: Publish, *, to_hub: bool) -> None:
    """Raise BadInput for a form of the model (dtype, adapter, GGUF) that can't be published."""
    if publish.adapter:
        check_adapter(job, to_hub=to_hub)
    if publish.dtype == "bfloat16":
        from pion.formats.export import require_roundable

        with told("publish.", ". Nothing was started."):
            require_roundable(job.model_config_resolved())
    if publish.gguf:
        from pion.formats.gguf.tensors import require_expressible

        if publish.adapter:
            raise BadInput(
                "publish.gguf: a GGUF file has a whole model, and publish.adapter publishes LoRA's "
                "additions alone. Nothing was started. Leave out one of the two."
            )
        with told("publish.gguf: ", ". Nothing was started."):
            require_expressible(job.model_config_resolved())


def _check_repo(repo: str, *, private: bool, card: str) -> None:
    """Check that this token may publish to `repo`, and that the Hub accepts the card's metadata.

    Raises:
        BadInput: there is no token, the token can't write there, the repository is public
            although the job wants it private, or the Hub refuses the metadata (such as an unknown
            license).
        Unreachable: nothing could be checked.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    api = api_of(repo)
    me = call(repo, api.whoami)
    token = me.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise BadInput(
            f"publish.to: hf://{repo}: the Hub token of {me['name']} is read-only. Create a "
            f"token with write access at {TOKENS_PAGE}. Then set HF_TOKEN to this token, or run "
            "`hf auth login`."
        )
    owner = repo.split("/")[0]
    mine = [me["name"], *(org["name"] for org in me.get("orgs", ()))]
    if owner.lower() not in [name.lower() for name in mine]:
        raise BadInput(
            f"publish.to: hf://{repo}: the Hub token belongs to {me['name']}, who can't publish as "
            f"{owner}. Publish as {' or '.join(mine)}, or use a different token."
        )
    if token.get("role") == "fineGrained" and not _may_write(token.get("fineGrained") or {}, repo):
        raise BadInput(
            f"publish.to: hf://{repo}: the fine-grained Hub token of {me['name']} can't write "
            f"there. Give it write access to the repositories of {owner} at {TOKENS_PAGE}, or set "
            "HF_TOKEN to a token that has write access."
        )
    with suppress(RepositoryNotFoundError):  # then it will be created
        check_visibility(repo, call(repo, lambda: api.repo_info(repo)).private, private)
    call(repo, lambda: _check_card(api, card))


def _may_write(rights: dict[str, Any], repo: str) -> bool:
    """Return whether a fine-grained token's `rights` let it write to the model repository."""
    name = repo.lower()
    owner = name.split("/")[0]
    within = {("user", owner), ("org", owner), ("model", name)}
    granted = set(rights.get("global", ()))
    for scope in rights.get("scoped", ()):
        entity = scope.get("entity", {})
        if (entity.get("type"), str(entity.get("name")).lower()) in within:
            granted.update(scope.get("permissions", ()))
    return "repo.write" in granted


def _check_card(api: HfApi, card: str) -> None:
    """Raise ValueError if the Hub refuses the card's YAML, as it would refuse it in a commit."""
    from huggingface_hub.utils import get_session, hf_raise_for_status

    asked = {"repoType": "model", "content": card}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=asked)
    if response.status_code == 400:
        mistakes = [error["message"] for error in response.json().get("errors", [])]
        raise ValueError("; ".join(mistakes) or "it gives no reason")
    hf_raise_for_status(response)
