"""A whole run by the real state layer, with a trainer that needs neither torch nor Ray.

Prepare, pretrain, sft, evaluate, publish, as `pipeline.advance` and `pipeline.training.loop` go
through them. Weights are the rows trained into them, in order: a checkpoint itself shows whether a
row was trained twice or never, and two runs that end with the same weights trained the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pion.data.order import step_rows
from pion.errors import PionError, Trouble
from pipeline.state.claim import Claim
from pipeline.state.head import Clock, RunState
from pipeline.state.metrics import EventLog, MetricsLog, read_metrics
from pipeline.state.owner import Owner
from pipeline.state.records import CheckpointEntry, Head
from pipeline.state.requests import clear_stops, pending_stop
from pipeline.state.restore import check_entry, newest_good
from pipeline.state.retention import Keep, forget, sweep, sweep_abandoned
from pipeline.state.snapshot import MODEL, OPTIMIZER
from pipeline.state.stores import Store, StoreError
from pipeline.state.uploader import MANIFEST, SaveJob, save
from pipeline.state.workspace import Workspace
from pipeline.training.rewind import plan_rewind, rows_to_skip

RUN = "light"
TRAINING = ("pretrain", "sft")
STEPS, BATCH, SAVE_EVERY = 4, 3, 2
DIGESTS = {name: f"{name}-digest" for name in ("prepare", *TRAINING, "evaluate", "publish")}
DATA = "data-digest"
DATA_ROWS = 60
MAX_REWINDS = 3


def data_row(number: int) -> str:
    """What training on a row leaves in the weights."""
    return hashlib.sha256(f"row {number}".encode()).hexdigest()[:8]


Weights = dict[str, list[str]]
"""By training stage: the rows trained, in order."""


def unbroken_weights(steps: int = STEPS) -> Weights:
    """What a run gives whose every step went well."""
    return {stage: [data_row(i) for i in range(steps * BATCH)] for stage in TRAINING}


@dataclass
class Process:
    """One `pion run` of the light job. `cache` is the disk of its machine.

    `goes_wrong` says whether a step on these rows gives a loss spike; `between_steps` lets time
    pass. `said` collects what the user reads, `restored` the step each stage went on from; `epoch`
    is that of the newest claim.
    """

    store: Store
    cache: Path
    publish: Callable[[bytes], None] = lambda content: None
    clock: Clock = field(default_factory=Clock)
    owner: Owner = field(default_factory=Owner.me)
    keep: Keep = field(default_factory=Keep)
    steps: int = STEPS
    training: tuple[str, ...] = TRAINING
    goes_wrong: Callable[[str, list[int]], bool] = lambda stage, rows: False
    between_steps: Callable[[], None] = lambda: None
    said: list[str] = field(default_factory=list)
    restored: dict[str, int] = field(default_factory=dict)
    epoch: int = 0

    def __post_init__(self) -> None:
        self.run = RunState(self.store, RUN, self.clock)
        self.workspace = Workspace(self.store, RUN, self.cache)

    def go(self) -> None:
        """Advance the run until it is done."""
        head = self.run.read()
        if head is not None and not self._unfinished(head, DIGESTS):
            return
        if pending_stop(self.run):
            clear_stops(self.run)
        claim = self._claim(take_over=True)
        events = EventLog(self.store, RUN, claim.epoch, self.clock.now)
        events.append("started")
        self.run.write_job("job-digest", "name: light\n")
        claim.set_job("job-digest")
        for stage, digest in DIGESTS.items():
            self.run.write_stage(stage, digest, {"format": 1, "inputs": {}})
        if self._unfinished(claim.head, ["prepare"]):
            self._prepare(claim)
        if self._unfinished(claim.head, self.training):
            while self._train() == "again":
                continue
            claim = self._claim()
        if self._unfinished(claim.head, ["evaluate"]):
            rows = [read_metrics(self.store, RUN, claim.head, stage) for stage in self.training]
            result = {"rows": sum(map(len, rows))}
            claim.finish_stage("evaluate", DIGESTS["evaluate"], result)
        if self._unfinished(claim.head, ["publish"]):
            claim.check()
            self.publish(self.finished_weights(claim.head, self.training[-1]))
            claim.finish_stage("publish", DIGESTS["publish"], {})
        events.flush()
        claim.release(forget_attempts=True)

    def _claim(self, take_over: bool = False) -> Claim:
        claim = self.run.claim(self.owner, take_over=take_over)
        self.epoch = claim.epoch
        return claim

    def finished_weights(self, head: Head, stage: str) -> bytes:
        """The verified weights that a finished stage ended with."""
        key = head.stages[stage].checkpoint
        entry = next(entry for entry in head.checkpoints if entry.key == key)
        problem = check_entry(self.workspace, entry)
        if problem is not None:
            raise PionError(f"{key} can't be used: {problem}")
        return (self.workspace.folder(entry.key) / MODEL).read_bytes()

    def _unfinished(self, head: Head, stages: Any) -> list[str]:
        wanted = [s for s in stages if s not in TRAINING or s in self.training]
        done = head.stages
        return [s for s in wanted if s not in done or done[s].digest != DIGESTS[s]]

    def _prepare(self, claim: Claim) -> None:
        folder = self.workspace.folder(f"data/{DATA}")
        folder.mkdir(parents=True, exist_ok=True)
        rows = [data_row(i) for i in range(DATA_ROWS)]
        (folder / "rows.json").write_text(json.dumps(rows))
        (folder / "tokenizer.json").write_text("{}")
        self.workspace.keep_data(DATA)
        claim.finish_stage("prepare", DIGESTS["prepare"], {})

    def _train(self) -> str:
        """One attempt: "done", or "again" after a loss spike."""
        claim = self._claim()
        sweep_abandoned(claim)
        stage = ""
        try:
            for stage in self._unfinished(claim.head, self.training):
                _Training(self, claim, stage).go()
        except Trouble as trouble:
            digest, now = DIGESTS[stage], self.clock.now()
            rows = plan_rewind(claim.head, stage, digest, trouble, MAX_REWINDS, now)
            claim.skip_rows(stage, rows)
            return "again"
        return "done"


class _Training:
    """One attempt at one stage."""

    def __init__(self, process: Process, claim: Claim, stage: str) -> None:
        self.process, self.claim, self.stage = process, claim, stage
        self.digest = DIGESTS[stage]
        self.weights: Weights = {}
        self.step = self.next_row = 0
        self.skipped: list[tuple[int, int]] = []
        self.ancestor: str | None = None
        self.saved: CheckpointEntry | None = None

    def go(self) -> None:
        process, claim = self.process, self.claim
        rows = json.loads((process.workspace.bring_data(DATA) / "rows.json").read_text())
        self._restore()
        claim.set_restore(self.stage, self.step)
        self.metrics = MetricsLog(
            process.store, RUN, self.stage, claim.epoch, now=process.clock.now
        )
        while self.step < process.steps:
            claim.check()
            numbers, next_row = step_rows(self.next_row, BATCH, self.skipped)
            if process.goes_wrong(self.stage, numbers):
                raise Trouble(self.step + 1, (self.next_row, next_row), "a loss spike")
            self.weights.setdefault(self.stage, []).extend(rows[i] for i in numbers)
            self.step, self.next_row = self.step + 1, next_row
            self.metrics.append({"step": self.step, "rows": numbers})
            process.between_steps()
            last = self.step == process.steps
            if last or self.step % SAVE_EVERY == 0:
                try:
                    self._save()
                except StoreError as error:
                    if not error.outage or last:
                        raise
                    process.said.append(f"nothing can be saved now: {error}")
        if self.saved is None:  # the step before the last crash was already the last
            self._save()
        assert self.saved is not None
        claim.finish_stage(self.stage, self.digest, {"steps": self.step}, self.saved.key)

    def _restore(self) -> None:
        process = self.process
        head = process.run.read()
        assert head is not None
        found = newest_good(process.workspace, head, self.stage, self.digest)
        process.said += map(str, found.skipped)
        self.ancestor = found.listed_key
        skipped: list[tuple[int, int]] = []
        if found.folder is not None:
            self.weights = json.loads((found.folder / MODEL).read_bytes())
            state = json.loads((found.folder / "state.json").read_bytes())
            self.step, self.next_row = state["step"], state["next_row"]
            skipped = [(first, stop) for first, stop in state["skipped"]]
        elif self.stage == "sft":
            self.weights = json.loads(process.finished_weights(head, "pretrain"))
        self.skipped = rows_to_skip(head, self.stage, self.digest, self.next_row, skipped)
        process.restored[self.stage] = self.step

    def _save(self) -> None:
        """As `Checkpointer` does, but in this thread."""
        process, claim = self.process, self.claim
        claim.check()
        now = process.clock.now()
        key = f"checkpoints/{self.stage}/{self.step}-{claim.epoch}"
        self._forget_copies(claim.head, key)
        about = {
            "stage": self.stage,
            "step": self.step,
            "epoch": claim.epoch,
            "digest": self.digest,
            "at": now,
            "ancestor": self.ancestor,
        }
        state = {"step": self.step, "next_row": self.next_row, "skipped": self.skipped}
        workspace = process.workspace
        job = SaveJob(
            store=process.store.url,
            key=claim.state.key(key),
            copy=str(workspace.folder(key)) if workspace.remote else None,
            extents={},
            texts={"state.json": json.dumps(state)},
            about=about,
        )
        memory = {MODEL: json.dumps(self.weights).encode(), OPTIMIZER: key.encode()}
        entry = save(process.store, job, memory).entry(about, key)
        self.metrics.flush()
        head = claim.commit(
            lambda head: forget(head.with_checkpoint(entry), process.keep, process.clock.now())
        )
        self.saved, self.ancestor = entry, entry.key
        sweep(claim)
        self._forget_copies(head, key)

    def _forget_copies(self, head: Head, key: str) -> None:
        wanted = [entry.key for entry in head.checkpoints[:2]]
        self.process.workspace.forget(keep=[*wanted, key])


# ---------------------------------------------------------------- looking behind a run's back


def read_head(store: Store) -> Head | None:
    """HEAD of the light run."""
    return RunState(store, RUN).read()


def what_is_wrong(store: Store, key: str, model_sha256: str | None = None) -> str | None:
    """What keeps a checkpoint in `store` from being complete, verified, and of rows trained once
    each; None if nothing does."""
    try:
        manifest = json.loads(store.read(f"{RUN}/{key}/{MANIFEST}"))
        content = {name: store.read(f"{RUN}/{key}/{name}") for name in manifest["files"]}
    except PionError as error:
        return str(error)
    for name, data in content.items():
        wanted = manifest["files"][name]
        if (len(data), hashlib.sha256(data).hexdigest()) != (wanted["size"], wanted["sha256"]):
            return f"{key}/{name} is not what its manifest says"
    if model_sha256 not in (None, manifest["files"][MODEL]["sha256"]):
        return f"{key}/{MODEL} is not what HEAD says"
    return _wrong_rows(manifest, json.loads(content[MODEL]), json.loads(content["state.json"]))


def _wrong_rows(about: dict[str, Any], weights: Weights, state: dict[str, Any]) -> str | None:
    trained: list[str] = []
    next_row = 0
    for _ in range(state["step"]):
        numbers, next_row = step_rows(next_row, BATCH, state["skipped"])
        trained += [data_row(i) for i in numbers]
    if about["step"] != state["step"] or next_row != state["next_row"]:
        return f"{about['stage']} step {about['step']} does not go on where its rows end"
    if weights.get(about["stage"], []) != trained:
        return f"{about['stage']} step {about['step']} has trained a row twice or never"
    return None


def wrong_in(store: Store, head: Head) -> list[str]:
    """What is wrong with the checkpoints that HEAD lists."""
    entries = {entry.key: entry.model_sha256 for entry in head.checkpoints}
    wanted = {**dict.fromkeys(head.listed()), **entries}
    return [bad for key, sha in wanted.items() if (bad := what_is_wrong(store, key, sha))]


def left_over(store: Store, head: Head) -> set[str]:
    """Checkpoint folders in the store that HEAD does not list."""
    start = len(f"{RUN}/")
    keys = [entry.key[start:] for entry in store.list(f"{RUN}/checkpoints/")]
    return {key.rpartition("/")[0] for key in keys} - head.listed()
