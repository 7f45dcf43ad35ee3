"""Publish: check the results, export, prove that transformers loads the same model, deliver.

Nothing reaches the target before the exported folder has been verified.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pion.errors import BadInput, no_room
from pion.files import expand
from pion.formats.target_folder import check_replaceable, replace_folder
from pipeline.console.messages import Note, Say
from pipeline.job import Job
from pipeline.report.card_sections import unknown_licence
from pipeline.report.history import RunHistory
from pipeline.report.published_by import card_in, other_run, weights_sha256
from pipeline.stages.publish_folder import Finished, write_published
from pipeline.stages.publish_hub import card_of, push, repo_of
from pipeline.stages.requirements import check_requirements


def publish_run(
    history: RunHistory,
    model: Path,
    texts: Sequence[str],
    say: Say,
    base: Path | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Publish the model of a run to the job's `publish.to`.

    Args:
        history: the run, after its evaluation: for publish.require, the card and its plot.
        model: the folder of the checkpoint to publish.
        texts: held-out texts to compare the exported model on.
        say: called with progress messages.
        base: the folder with the small files of the model that the run started from, if any.
        confirm: raises Fenced if another process owns the run by now, after hours of a stop.

    Returns:
        `target` as the job names it, `path` and the `sha256` of its weights, or `url` and `commit`
        (Hub), `card`, `parameters` and `max_logit_difference`; of publish.gguf, `gguf` (the file)
        or `gguf_failed` (why not).

    Raises:
        BadInput: publish.require is not met, or the target refuses or belongs to another run.
        PionError: the exported folder does not load as the same model; nothing was published.
        Interrupted: the Hub stayed unreachable.
    """
    from pipeline.models.load import load_model_in

    job, publish = history.job, history.job.publish
    assert publish is not None
    repo = repo_of(publish.to)
    safe = f"The trained model is safe in {model}."
    check_requirements(job, publish, history.results, safe)
    check_ours(job, publish.to, repo, f"Nothing was published. {safe}")
    finished = Finished(history, publish, model, load_model_in(model), texts, base)
    terms = finished.terms
    named = terms is None or terms.known or publish.license is not None
    if repo is not None and not publish.private and not named:
        say(Note(f"warning: {unknown_licence(job)}"))
    with _staging(expand(publish.to), repo) as staging:
        try:
            exported = write_published(finished, staging, say)
            confirm()
            where = _deliver(finished, repo, staging, say, safe)
        except OSError as error:
            confirm()  # another owner removes this process's unfinished folder
            raise _unwritable(publish.to, error, staging, safe) from error
    return {"target": publish.to, **where, **exported}


def _unwritable(to: str, error: OSError, staging: Path, safe: str) -> BadInput:
    return BadInput(
        f"publish.to: {to}: can't write ({no_room(error, staging) or error.strerror or error}). "
        f"{safe} Free some disk space, or change publish.to. Then run the same command again. Pion "
        "will only repeat the publish stage."
    )


def _deliver(
    finished: Finished, repo: str | None, staging: Path, say: Say, safe: str
) -> dict[str, Any]:
    """Upload the folder to `repo`, or put it in its place; return where it is."""
    publish = finished.publish
    if repo is not None:
        say(Note(f"uploading to {publish.to}"))
        title = f"Publish {finished.history.job.name}"
        return push(repo, staging, private=publish.private, title=title, safe=safe)
    target = expand(publish.to)
    replace_folder(staging, target)
    card = str(target / "README.md")
    return {"path": str(target), "card": card, "sha256": weights_sha256(target)}


def _check_folder(to: str) -> None:
    target = expand(to).absolute()
    check_replaceable(target)
    existing = next(parent for parent in target.parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise BadInput(
            f"publish.to: {to}: nothing can be written in {existing} ({error.strerror}). "
            "Name a folder that can be written."
        ) from None


def check_ours(job: Job, to: str, repo: str | None, safe: str) -> None:
    """Raise BadInput if another run published what is at the target: it would be replaced."""
    if repo is None:
        _check_folder(to)
    other = other_run(job, card_in(expand(to)) if repo is None else card_of(repo))
    if other is None:
        return
    where = "the same name in another store" if other == job.name else f"the name {other}"
    raise BadInput(
        f"publish.to: {to} is the model of another run, with {where}. {safe} To keep both, publish "
        f"somewhere else: publish.to={to.rstrip('/')}-2. To replace that model, or if this is the "
        f"same run in a store that was moved, remove the lines model_name and pion_run from the "
        "README.md there."
    )


@contextmanager
def _staging(target: Path, repo: str | None) -> Iterator[Path]:
    """Yield the path at which to build the folder: next to `target`, or temporary for a `repo`.

    Unfinished folders of other processes are removed: if one of these was only stopped, it can
    then no longer replace the target.
    """
    if repo is not None:
        with tempfile.TemporaryDirectory(prefix="pion-publish-") as folder:
            yield Path(folder) / "model"
        return
    unfinished = re.compile(re.escape(f".{target.name}.new") + "(-[0-9a-f]{8})?")
    for other in list(target.parent.glob(".*")):
        if unfinished.fullmatch(other.name):
            shutil.rmtree(other, ignore_errors=True)
    staging = target.with_name(f".{target.name}.new-{uuid.uuid4().hex[:8]}")
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
