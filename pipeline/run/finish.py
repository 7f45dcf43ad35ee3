"""What follows training: evaluation, publishing and the closing summary of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pion.config.model_config import RESULTS
from pipeline.console.messages import Say
from pipeline.job import Job
from pipeline.job.digest import Digests
from pipeline.models.bring import bring_model
from pipeline.report.benchmarks import core_in_brief
from pipeline.report.cleaning import cleaning_in_words
from pipeline.report.preferences import preferences_in_brief
from pipeline.report.published_by import is_still_there
from pipeline.report.reading import read_history
from pipeline.report.report_file import REPORT
from pipeline.report.result_tables import calibration_in_brief, part_in_brief
from pipeline.report.rewards import rewards_in_brief
from pipeline.report.worse import made_worse
from pipeline.state.checkpoints.retention import final_checkpoint, selected
from pipeline.state.head import Head
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import bring_base
from pipeline.state.shared.folder import bring_data
from pipeline.state.stores import DEFAULT_STORE
from pipeline.state.stores.retry import Patience

Row = dict[str, Any]

COMPARED_TEXTS = 4
# What is measured of a model: what the closing summary calls it, and the result in words.
IN_BRIEF: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "calibration": ("calibration", calibration_in_brief),
    "core": ("CORE", core_in_brief),
    **{part.name: (part.name, partial(part_in_brief, part)) for part in RESULTS.values()},
}


# After an outage, only requests to the store are repeated: nothing is measured twice. While it
# writes, publishing asks the store only whether the run is still ours.


def finish_evaluate(
    job: Job, run: RunState, digests: Digests, say: Say, patiently: Patience
) -> Row:
    """Measure the models of the finished training stages."""
    from pipeline.data.shard_cache import fetching_from
    from pipeline.run.measure_base import (
        StoredParts,
        bring_all_data,
        measure_base,
        starts_of_stages,
    )
    from pipeline.stages.evaluate import evaluate_run
    from pipeline.stages.measures import TrainedRun

    head = patiently(run.read)
    assert head is not None
    chosen = selected(job, head)
    keys = {stage: _last_checkpoint(head, stage) for stage in job.train_stages}
    if chosen is not None:
        keys[job.train_stages[-1]] = chosen.best.key
    models = patiently(lambda: {stage: bring_model(run, head, key) for stage, key in keys.items()})
    data = patiently(lambda: bring_all_data(run, head, digests))
    fetch = fetching_from(run.store, head.data.get("pretrain", ""), patiently)
    began = starts_of_stages(job, run, head, models, say, patiently)
    trained = TrainedRun(models, data, fetch, began)
    parts = StoredParts(say, run, digests.stages["evaluate"], Owner.me().session, patiently)
    start = measure_base(job, run, digests, say, patiently)
    results = evaluate_run(job, trained, parts, run.clock.sleep, start)
    return results | ({} if chosen is None else {"checkpoint": chosen.result()})


def finish_publish(
    job: Job,
    run: RunState,
    digests: Digests,
    say: Say,
    patiently: Patience,
    confirm: Callable[[], None],
) -> Row:
    """Publish the model of the last training stage. `confirm` raises Fenced if the run is no longer
    this process's."""
    from pipeline.stages.publish import publish_run

    history = patiently(lambda: read_history(run, job))
    head = history.head
    model = patiently(lambda: bring_model(run, head, final_checkpoint(job, head)))
    texts = patiently(lambda: _held_out_texts(job, run, head, digests))
    base = None
    if job.base is not None:
        base = patiently(partial(bring_base, run.store, job.base.hash, weights=False))
    return publish_run(history, model, texts, say, base, lambda: patiently(confirm))


def summary_rows(job: Job, run: RunState) -> list[list[str]]:
    """Return the closing summary's [label, value] pairs: where everything is, how to use it."""
    history = read_history(run, job)
    rows = [["run", run.url]]
    local = run.store.local_path(run.key(REPORT))
    if run.store.list(run.key(REPORT)):
        rows.append(["report", _shown(local) if local else f"{run.store.url}/{run.key(REPORT)}"])
    results, published = history.results, history.published
    if cleaned := cleaning_in_words(history.text):
        rows.append(["cleaning", cleaned])
    for name in (*job.train_stages, "base", "ngram", "untrained"):
        result = results.get(name, {})
        if result.get("bits_per_byte") is not None:
            rows.append([f"{name} bits per byte", f"{result['bits_per_byte']:.3f}"])
        elif result.get("response_loss") is not None:  # of a run without text
            rows.append([f"{name} response loss", f"{result['response_loss']:.3f}"])
    prefer = history.head.stages.get("prefer")
    accuracy = None if prefer is None else prefer.result.get("held_out_accuracy")
    if preferred := preferences_in_brief(results.get("prefer", {})):
        rows.append(["held-out preferences", preferred])
    elif isinstance(accuracy, float):
        rows.append(["held-out preferences", f"{100 * accuracy:.1f} % right"])
    for name in job.train_stages:
        for measure, (title, in_brief) in IN_BRIEF.items():
            if found := results.get(name, {}).get(measure):
                rows.append([f"{name} {title}", in_brief(found)])
    if rewarded := rewards_in_brief(results.get("reinforce", {})):
        rows.append(["held-out rewards", rewarded])
    rows += [["warning", words] for words in made_worse(results)]
    costs = history.costs
    rows.append(["time" if costs.dollars is None else "cost", costs.describe()])
    if published:
        rows += _model_rows(published)
    where = "" if job.store == DEFAULT_STORE else f"{run.store.url}/"
    return [*rows, ["try it", f"pion chat {where}{job.name}"]]


def _model_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the published model and its card. A folder that has changed since is no longer it."""
    if url := result.get("url"):
        return [["model", url], ["card", str(result.get("card"))]]
    folder = Path(result.get("path") or "?")
    if is_still_there(result, folder):
        return [["model", _shown(folder)], ["card", str(result.get("card"))]]
    return [["model", f"{_shown(folder)} no longer has this run's model; the run still has it"]]


def _last_checkpoint(head: Head, stage: str) -> str:
    """Return the key of a finished training stage's last checkpoint."""
    key = head.stages[stage].checkpoint
    assert key is not None
    return key


def _held_out_texts(job: Job, run: RunState, head: Head, digests: Digests) -> list[str]:
    """Return a few held-out rows as text: real input to compare the exported model on."""
    from pion.data.tokens.tokenizer import Tokenizer
    from pipeline.data.prepared import open_data

    data = open_data(bring_data(run, head, next(iter(digests.data))))
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    stream = data.stream("held_out", seed=job.seed, window=job.data.window)
    rows = [stream.row(i) for i in range(min(COMPARED_TEXTS, stream.total_rows))]
    return [tokenizer.decode(row.tokens.tolist()) for row in rows]


def _shown(path: Path) -> str:
    """Return the path, relative to the working directory if it is inside."""
    full, here = path.resolve(), Path.cwd()
    return str(full.relative_to(here) if full.is_relative_to(here) else path)
