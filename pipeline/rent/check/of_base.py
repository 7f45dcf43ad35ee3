"""Checks of the model that a run starts from (`model.from`), on any machine and on a rented one."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pion.errors import BadInput
from pipeline.data.hub import OnHub, explained
from pipeline.job import Job
from pipeline.job.model_section import Base
from pipeline.models.find import Listed, locate_model
from pipeline.rent.check.row import CheckRow
from pipeline.rent.credentials import names_given, wanted_secrets
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import read_pin
from pipeline.state.stores import FileStore, open_store


def check_base(
    job: Job, sky_yaml: SkyYaml | None, environment: Mapping[str, str] = os.environ
) -> list[CheckRow]:
    """Check that the machine of the run can read the model that the run starts from.

    Once the run has recorded the model, its store has it, and nobody asks its source again.
    """
    base = job.base
    if base is None:
        return []
    if is_pinned(job, base):
        return [CheckRow("model.from", True, f"{base}: in the run's store")]
    if sky_yaml is not None and _is_here(job, base) and not job.input_path(base.source).exists():
        raise BadInput(
            f"model.from: {base.source} is on this machine only. Use a run in a store that both "
            "machines can read (s3://bucket/prefix/run), a Hub repository (user/name), or a folder "
            "inside the rental's workdir, as a path relative to the job file."
        )
    if sky_yaml is None or base.commit is None:
        return [CheckRow("model.from", True, str(base))]
    repo = base.source.removeprefix("hf://").partition("@")[0]
    given = names_given(sky_yaml.secrets, wanted_secrets(job, environment), environment)
    token = None
    if "HF_TOKEN" in given:
        token = sky_yaml.secrets["HF_TOKEN"] or environment["HF_TOKEN"]
    _require_access(repo, base, token)
    words = "with the token that the rental gets" if token else "without a token"
    return [CheckRow("model.from", True, f"{base}: can be read {words}")]


def is_pinned(job: Job, base: Base) -> bool:
    """Return whether the run has recorded this model as the one that it starts from."""
    pinned = read_pin(RunState(open_store(job.store), job.name), base.source)
    return pinned is not None and pinned.hash == base.hash


def _is_here(job: Job, base: Base) -> bool:
    """Return whether only this machine has the model."""
    if base.commit is not None:
        return False
    found = locate_model(job.model_name(base.source))
    return not isinstance(found, Listed) or isinstance(found.state.store, FileStore)


def _require_access(repo: str, base: Base, token: str | None) -> None:
    """Raise BadInput if a repository can't be read with the rental's token."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    try:
        with explained(OnHub(repo, base.commit, "model", "config.json")):
            try:
                HfApi().auth_check(repo, token=token or False)
            except GatedRepoError:
                raise BadInput(_gated(repo, token)) from None
    except BadInput as error:
        raise BadInput(f"{error} Nothing was rented.") from None


def _gated(repo: str, token: str | None) -> str:
    page = OnHub(repo, repo_type="model").page
    if token is None:
        return (
            f"model.from {repo} is gated, and the rental would have no Hub token: accept its terms "
            f"on {page}, then export HF_TOKEN=hf_…, and declare HF_TOKEN under `secrets:`."
        )
    return (
        f"model.from {repo} is gated, and the HF_TOKEN that the rental would get has no access: "
        f"accept its terms on {page} with that token's account, or use another token."
    )
