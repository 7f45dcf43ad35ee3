"""Publish: check the results, export, prove that transformers loads the same model, deliver.

Nothing reaches the target before the exported folder has been verified.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pion.config.model_config import closest
from pion.errors import BadInput, no_room
from pion.formats.target_folder import check_replaceable, replace_folder
from pipeline.base.licence import Terms
from pipeline.console.messages import Note, Say
from pipeline.job import REQUIREMENT, Job
from pipeline.machine.folders import expand
from pipeline.report.card_sections import unknown_licence
from pipeline.report.history import RunHistory
from pipeline.report.model_card import front_matter
from pipeline.report.published_by import card_in, other_run, weights_sha256
from pipeline.stages.publish_folder import Finished, check_adapter, write_published
from pipeline.stages.publish_hub import Unreachable, card_of, check_repo, push, repo_of

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda measured, limit: measured < limit,
    "<=": lambda measured, limit: measured <= limit,
    ">": lambda measured, limit: measured > limit,
    ">=": lambda measured, limit: measured >= limit,
}
# Names in publish.require without a model: results of the published model.
MEASURES = (
    "loss",
    "perplexity",
    "bits_per_byte",
    "tokens",
    "bytes",
    "rows",
    "continuations",
    "packs",
)
SFT_MEASURES = ("response_loss", "stop_accuracy", "false_stop_rate")


def check_target(job: Job) -> list[str]:
    """Check before training that publishing can work after it; return notes for the user.

    Raises BadInput for an unknown name in publish.require, a folder that can't be written or holds
    something else, a Hub repository that this token can't publish to, and the model of another run.
    """
    if job.publish is None:
        return []
    _check_names(job)
    repo = repo_of(job.publish.to)
    _check_form(job, to_hub=repo is not None)
    if repo is None:
        _check_ours(job, "Nothing was started.")
        return []
    try:
        check_repo(repo, private=job.publish.private, card=front_matter(job))
        _check_ours(job, "Nothing was started.")
    except Unreachable as error:
        return [f"publish.to: {job.publish.to} could not be checked: {error}"]
    return []


def _check_form(job: Job, *, to_hub: bool) -> None:
    """Raise BadInput for a form of the model (dtype, adapter, GGUF) that can't be published."""
    assert job.publish is not None
    if job.publish.adapter:
        check_adapter(job, to_hub=to_hub)
    if job.publish.dtype == "bfloat16":
        from pion.formats.export import require_roundable

        try:
            require_roundable(job.model_config_resolved())
        except BadInput as error:
            raise BadInput(f"publish.{error}. Nothing was started.") from None
    if job.publish.gguf:
        from pion.formats.gguf.tensors import require_expressible

        if job.publish.adapter:
            raise BadInput(
                "publish.gguf: a GGUF file has a whole model, and publish.adapter publishes LoRA's "
                "additions alone. Nothing was started. Leave out one of the two."
            )
        try:
            require_expressible(job.model_config_resolved())
        except BadInput as error:
            raise BadInput(f"publish.gguf: {error}. Nothing was started.") from None


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

    job, to = history.job, _target(history.job)
    target, repo = expand(to), repo_of(to)
    safe = f"The trained model is safe in {model}."
    check_requirements(job, history.results, safe)
    _check_ours(job, f"Nothing was published. {safe}")
    finished = Finished(history, model, load_model_in(model), texts, base)
    _tell_licence(job, repo, finished, say)
    with _staging(target, repo) as staging:
        try:
            exported = write_published(finished, staging)
            _tell(exported, exported.pop("loaded_by"), model, say)
            confirm()
            if repo is not None:
                where = _upload(job, repo, staging, say, safe)
            else:
                where = _move(staging, target)
        except OSError as error:
            confirm()  # another owner removes this process's unfinished folder
            raise _unwritable(to, error, staging, safe) from error
    return {"target": to, **where, **exported}


def _tell_licence(job: Job, repo: str | None, finished: Finished, say: Say) -> None:
    if repo is not None and _needs_licence(job, finished.terms):
        say(Note(f"warning: {unknown_licence(job)}"))


def _unwritable(to: str, error: OSError, staging: Path, safe: str) -> BadInput:
    reason = no_room(error, staging) or error.strerror or error
    return BadInput(
        f"publish.to: {to}: can't write ({reason}). {safe} Free some "
        "disk space, or change publish.to. Then run the same command again. Pion will only "
        "repeat the publish stage."
    )


def _move(staging: Path, target: Path) -> dict[str, Any]:
    """Put the finished folder in its place, and return where it is."""
    replace_folder(staging, target)
    card = str(target / "README.md")
    return {"path": str(target), "card": card, "sha256": weights_sha256(target)}


def _tell(exported: Mapping[str, Any], loaded_by: str, model: Path, say: Say) -> None:
    """Say how the export in `write_published`'s result was checked, and what of it failed."""
    worst = exported["max_logit_difference"]
    say(Note(f"{loaded_by} loads the same model: logits differ by {worst:.1g}"))
    if "gguf" in exported:
        say(Note(f"{exported['gguf']} was read back: its tensors are the model's"))
    elif "gguf_failed" in exported:
        say(
            Note(
                f"warning: publish.gguf: the model is published without a GGUF file: "
                f"{exported['gguf_failed']}. To try again: pion export {model} model.gguf"
            )
        )


def _target(job: Job) -> str:
    assert job.publish is not None
    return job.publish.to


def _upload(job: Job, repo: str, folder: Path, say: Say, safe: str) -> dict[str, Any]:
    assert job.publish is not None
    say(Note(f"uploading to {job.publish.to}"))
    title = f"Publish {job.name}"
    where = push(repo, folder, private=job.publish.private, title=title, safe=safe)
    return {**where, "card": where["url"]}


def _needs_licence(job: Job, terms: Terms | None) -> bool:
    """Return whether a public model is trained from one whose licence nobody names."""
    assert job.publish is not None
    named = terms is None or terms.known or job.publish.license is not None
    return not job.publish.private and not named


def check_requirements(job: Job, results: Mapping[str, Any], safe: str) -> None:
    """Raise BadInput unless every condition of publish.require is met.

    A name is looked up first in the published model's results, then in all results
    (`ngram.bits_per_byte`). `safe` says what is not lost.
    """
    assert job.publish is not None
    published = _numbers(results.get(job.train_stages[-1], {}))
    measured = _numbers(results) | published
    missed = []
    for condition in job.publish.require:
        name, comparison, limit = _parse(condition)
        if name not in measured:
            raise BadInput(
                f"publish.require: {condition!r}: there is no result {name!r}"
                f"{closest(name, measured)}; there are {', '.join(sorted(measured))}. {safe} "
                "Nothing was published. Correct publish.require and run the same command again."
            )
        if not COMPARE[comparison](measured[name], limit):
            missed.append(f"{condition.strip()} (measured: {measured[name]:.4g})")
    if missed:
        raise BadInput(
            f"publish.require is not met: {'; '.join(missed)}. Nothing was published, and "
            f"{job.publish.to} was not changed. {safe} Train longer or change publish.require, "
            "then run the same command again."
        )


def _parse(condition: str) -> tuple[str, str, float]:
    match = REQUIREMENT.match(condition)
    assert match is not None  # the job's validator has checked it
    try:
        return match[1], match[2], float(match[3])
    except ValueError:
        raise BadInput(f"publish.require: {condition!r}: {match[3]} is not a number.") from None


def _numbers(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return dotted name → value of every number in nested results."""
    found: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value) if math.isfinite(value) else math.nan
        elif value is None:  # it was measured, and was not finite
            found[f"{prefix}{key}"] = math.nan
    return found


def _check_names(job: Job) -> None:
    """Raise BadInput before training for a name in publish.require that will not exist after it."""
    assert job.publish is not None
    measures = [*MEASURES, *(SFT_MEASURES if job.sft else ())]
    others = [*job.train_stages, "untrained", "ngram", "lm_eval"]
    if job.base is not None:
        measures.append("text")
        others = [*job.train_stages, "base", "change", "ngram", "lm_eval"]
    names = [*measures, *(f"{name}_sem" for name in measures), *others]
    for condition in job.publish.require:
        name = _parse(condition)[0].split(".")[0]
        if name not in names:
            raise BadInput(
                f"publish.require: {condition!r}: nothing called {name!r} will be measured"
                f"{closest(name, names)}; there are {', '.join(measures)} of the published model, "
                f"and the results of {', '.join(others)} (ngram.loss). Nothing was started."
            )


def _check_folder(to: str) -> None:
    target = expand(to).absolute()
    check_replaceable(target)
    existing = next(parent for parent in target.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise BadInput(
            f"publish.to: {to}: nothing can be written in {existing} ({error.strerror}). "
            "Name a folder that can be written."
        ) from None


def _check_ours(job: Job, safe: str) -> None:
    """Raise BadInput if another run published what is at the target: it would be replaced."""
    to = _target(job)
    repo = repo_of(to)
    if repo is None:
        _check_folder(to)
    other = other_run(job, card_in(Path(to).expanduser()) if repo is None else card_of(repo))
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
