"""What follows training: evaluation, publishing and the closing summary of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.console.messages import Say
from pipeline.cost.by_cause import costs_of
from pipeline.job import Job
from pipeline.job.digest import Digests
from pipeline.models.bring import bring_model
from pipeline.report.history import read_history
from pipeline.report.of_run import REPORT
from pipeline.report.results import evaluated, published
from pipeline.state.bases import bring_base
from pipeline.state.claim import taken_over
from pipeline.state.owner import Owner
from pipeline.state.patience import Patience
from pipeline.state.record_json import finite_json, parse_record
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.stores import DEFAULT_STORE, Missing
from pipeline.state.workspace import Workspace

Row = dict[str, Any]

COMPARED_TEXTS = 4


@dataclass(frozen=True)
class _StoredParts:
    """Finished parts of an evaluation, one write-once object each under its digest.

    Only the owner of the run adds parts. `session` identifies this process.
    """

    run: RunState
    digest: str
    session: str
    patiently: Patience

    def load(self, name: str) -> Row | None:
        try:
            return self._read(name, self.patiently(lambda: self.run.store.read(self._key(name))))
        except Missing:
            return None

    def save(self, name: str, result: Row) -> Row:
        """Keep a part and return it; if the part is already stored, return the stored one.

        The previous owner may have stored it just before the run was taken over. The two are
        equivalent. Raises Fenced, with nothing stored, if another process owns the run.
        """
        return self.patiently(lambda: self._save(name, result))

    def _save(self, name: str, result: Row) -> Row:
        head = self.run.read()  # the heartbeat notices a new owner only seconds later
        if head is None or not head.claims or head.claims[0].owner.session != self.session:
            raise taken_over(self.run, head)
        try:
            return self._read(name, self.run.store.read(self._key(name)))
        except Missing:
            written = finite_json(result).encode()
            self.run.store.write(self._key(name), written)
            return self._read(name, written)

    def _read(self, name: str, data: bytes) -> Row:
        return parse_record(data, f"{self.run.store.url}/{self._key(name)}")

    def _key(self, name: str) -> str:
        return self.run.key(f"stages/evaluate/{self.digest}-parts/{name}.json")


# After an outage, only requests to the store are repeated: nothing is measured twice. Publishing
# does not use the store.


def finish_evaluate(
    job: Job, run: RunState, digests: Digests, say: Say, patiently: Patience
) -> Row:
    """Measure the models of the finished training stages."""
    from pipeline.stages.evaluate import evaluate_run
    from pipeline.stages.measures import TrainedRun

    head = patiently(lambda: _head(run))
    trained = TrainedRun(
        patiently(lambda: {s: model_folder(run, head, s) for s in job.train_stages}),
        patiently(lambda: _data_folder(run, digests, "pretrain")),
        patiently(lambda: _data_folder(run, digests, "sft")),
    )
    parts = _StoredParts(run, digests.stages["evaluate"], Owner.me().session, patiently)
    return evaluate_run(job, trained, parts, say, run.clock.sleep)


def finish_publish(job: Job, run: RunState, digests: Digests, say: Say, patiently: Patience) -> Row:
    """Publish the model of the last training stage."""
    from pipeline.stages.publish import publish_run

    history = patiently(lambda: read_history(job, run))
    model = patiently(lambda: model_folder(run, history.head, job.train_stages[-1]))
    texts = patiently(lambda: _held_out_texts(job, run, digests))
    base = None
    if job.base is not None:
        base = patiently(partial(bring_base, run.store, job.base, weights=False))
    return publish_run(history, model, texts, say, base)


def summary_rows(job: Job, run: RunState) -> list[list[str]]:
    """Return the closing summary's [label, value] pairs: where everything is, how to use it."""
    head = _head(run)
    rows = [["run", run.url]]
    local = run.store.local_path(run.key(REPORT))
    if run.store.list(run.key(REPORT)):
        rows.append(["report", _shown(local) if local else f"{run.store.url}/{run.key(REPORT)}"])
    results: Mapping[str, Any] = evaluated(head, run.url)
    for name in (*job.train_stages, "ngram", "untrained"):
        result = results.get(name, {})
        if result.get("bits_per_byte") is not None:
            rows.append([f"{name} bits per byte", f"{result['bits_per_byte']:.3f}"])
        elif result.get("response_loss") is not None:  # of a run without text
            rows.append([f"{name} response loss", f"{result['response_loss']:.3f}"])
    costs = costs_of(run, head, time.time())
    rows.append(["time" if costs.dollars is None else "cost", costs.describe()])
    result = published(head, run.url)
    if result:
        rows.append(["model", result.get("url") or _shown(Path(result.get("path") or "?"))])
        rows.append(["card", str(result.get("card"))])
    default = job.store == DEFAULT_STORE
    rows.append(["try it", f"pion chat {'' if default else run.store.url + '/'}{job.name}"])
    return rows


def model_folder(run: RunState, head: Head, stage: str) -> Path:
    """Return the folder of a finished training stage's last checkpoint, on this machine."""
    key = head.stages[stage].checkpoint
    assert key is not None
    return bring_model(run, key)


def _head(run: RunState) -> Head:
    head = run.read()
    assert head is not None
    return head


def _data_folder(run: RunState, digests: Digests, part: str) -> Path | None:
    if part not in digests.data:
        return None
    return Workspace(run.store, run.name).bring_data(digests.data[part])


def _held_out_texts(job: Job, run: RunState, digests: Digests) -> list[str]:
    """Return a few held-out rows as text: real input to compare the exported model on."""
    from pion.data.tokenizer import Tokenizer
    from pipeline.data.prepared import open_data

    folder = _data_folder(run, digests, "pretrain") or _data_folder(run, digests, "sft")
    assert folder is not None
    data = open_data(folder)
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    stream = data.stream("held_out", seed=job.seed, window=job.data.window)
    rows = [stream.row(i) for i in range(min(COMPARED_TEXTS, stream.total_rows))]
    return [tokenizer.decode(row.tokens.tolist()) for row in rows]


def _shown(path: Path) -> str:
    """Return the path, relative to the working directory if it is inside."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
