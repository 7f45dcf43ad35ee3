"""Measure the model that a run starts from, once, before the first step, and find the model that
`prefer` has started from, for the evaluation after it.

What is measured of the first depends on this model and on held-out data alone, so it is kept under
their hashes: a restart finds it again, and so does a run whose training or evaluation is redone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pion.errors import PionError
from pipeline.console.messages import Note, Say
from pipeline.data.compared_text import find_text
from pipeline.job import Job
from pipeline.job.digest import Digests, Inputs, digest_of
from pipeline.job.model_section import Base
from pipeline.report.result_tables import start_in_words
from pipeline.stages.evaluate import BASE, LABELS, LEARNED, MeasuredStart, as_results
from pipeline.stages.measures import MeasuredOn, Measures, Parts, StageStart, TrainedRun
from pipeline.state.claim import taken_over
from pipeline.state.head import REFERENCE, Head
from pipeline.state.owner import Owner
from pipeline.state.record_json import finite_json, parse_record
from pipeline.state.run_state import RunState, part_path
from pipeline.state.shared.bases import bring_base
from pipeline.state.shared.folder import bring_data
from pipeline.state.stores import Missing
from pipeline.state.stores.errors import StoreError
from pipeline.state.stores.retry import Patience

Row = dict[str, Any]


@dataclass
class StoredParts(Parts):
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
        return self.run.key(part_path(self.digest, name))


def measure_base(
    job: Job, run: RunState, digests: Digests, say: Say, patiently: Patience
) -> MeasuredStart | None:
    """Return what is measured of the model that the run starts from; None if there is none.

    Only what is not kept yet is measured. The run's data must be prepared, and this process must
    own the run. Raises BadInput if the text can't be read, and what an evaluation raises.
    """
    if job.base is None:
        return None
    sha256 = find_text(job).sha256
    names = _names(job, job.base, digests, sha256)
    parts = StoredParts(say, run, job.base.hash[:16], Owner.me().session, patiently)
    kept = {kind: part for kind in names if (part := parts.load(names[kind])) is not None}
    if len(kept) == len(names):
        return MeasuredStart(kept, sha256)
    folders = patiently(partial(_folders, job.base, run, digests))
    with closing(Measures(job, folders, on_batch=lambda: run.clock.sleep(0.0))) as measures:
        measured = {
            kind: parts(
                name,
                f"{BASE} model on {LABELS[kind]}",
                partial(measures.on_rows, BASE, kind),
            )
            for kind, name in names.items()
        }
    say(Note(f"before training: {start_in_words(as_results(measured))}"))
    return MeasuredStart(measured, sha256)


def _names(job: Job, base: Base, digests: Digests, sha256: str) -> dict[MeasuredOn, str]:
    """Return the name of each part: what is measured, and the hash of all that decides it."""
    same: Inputs = {"model.from": base.hash, "evaluate.final_rows": job.evaluate.final_rows}
    order = {"seed": job.seed, "data.window": job.data.window}
    decides: dict[MeasuredOn, Inputs] = {}
    if "sft" in digests.data:
        decides["conversations"] = order | {"input.data.sft": digests.data["sft"]}
    if "pretrain" in digests.data:
        decides["held_out"] = order | {"input.data.pretrain": digests.data["pretrain"]}
    decides["text"] = {"data.seq_len": job.data.seq_len, "input.text": sha256}
    # Earlier versions kept parts `{kind}.…`, with the sums of documents in another form.
    return {kind: f"{BASE}.{kind}.{digest_of(same | of)}" for kind, of in decides.items()}


def _folders(base: Base, run: RunState, digests: Digests) -> TrainedRun:
    """Bring the model and the data to this machine."""
    head = run.read()
    assert head is not None
    data = bring_all_data(run, head, digests)
    return TrainedRun({BASE: bring_base(run.store, base.hash)}, data)


def bring_all_data(run: RunState, head: Head, digests: Digests) -> dict[str, Path]:
    """Bring each part of the run's data to this machine; return its folder."""
    return {part: bring_data(run, head, part) for part in digests.data}


# ---------------------------------------------------------------- the models before stages


def starts_of_stages(
    job: Job,
    run: RunState,
    head: Head,
    models: Mapping[str, Path],
    say: Say,
    patiently: Patience,
) -> dict[str, StageStart]:
    """Return the models that stages start from, by stage, of those whose start is measured, too;
    `models` are those of the run's stages.

    If the numbers of a reference are damaged, `say` gets a note. Raises StoreError.
    """
    starts = {}
    for stage in job.train_stages:
        if stage not in LEARNED:
            continue
        before, reference = job.stage_before(stage), None
        if job.section(stage).needs_reference:
            reference = patiently(partial(_reference, run, head, say))
        if before is not None:
            starts[stage] = StageStart(before, models[before], reference)
        else:
            assert job.base is not None  # a first stage starts from something
            folder = patiently(partial(bring_base, run.store, job.base.hash))
            starts[stage] = StageStart("base", folder, reference)
    return starts


def _reference(run: RunState, head: Head, say: Say) -> Path | None:
    """Return the folder with the numbers of the reference; None if there are none to be used."""
    if REFERENCE not in head.data:
        return None
    try:
        return bring_data(run, head, REFERENCE)
    except StoreError:
        raise
    except PionError as error:
        say(Note(f"the numbers of the reference are not used: {error}"))
        return None
