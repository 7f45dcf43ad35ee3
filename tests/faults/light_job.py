"""A whole run with the real state layer, and with a trainer that needs neither torch nor Ray.

The stages are prepare, pretrain, sft, evaluate and publish, in the order of `pipeline.run.advance`
and `pipeline.training.loop`. Weights are the list of rows trained, in order. So a checkpoint shows
whether a row was trained twice or never, and two runs with the same weights trained the same rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pion.data.order import step_rows
from pion.errors import PionError, Trouble
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.layout import MANIFEST, MODEL, OPTIMIZER, STATE
from pipeline.state.checkpoints.restore import Found, check_entry, newest_good
from pipeline.state.checkpoints.retention import Keep, sweep, sweep_abandoned
from pipeline.state.checkpoints.snapshot import Snapshot, map_extents
from pipeline.state.checkpoints.upload_worker import Saved, SaveRequest, save
from pipeline.state.claim import Claim, claim_run
from pipeline.state.metrics import EventLog, MetricsLog, read_metrics
from pipeline.state.owner import Owner
from pipeline.state.records import Head
from pipeline.state.run_state import Clock, RunState
from pipeline.state.stop_requests import clear_stops, pending_stop
from pipeline.state.stores import Store, StoreError
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
    """Return what training on a row adds to the weights."""
    return hashlib.sha256(f"row {number}".encode()).hexdigest()[:8]


# By training stage: the rows trained, in order.
Weights = dict[str, list[str]]


def unbroken_weights(steps: int = STEPS) -> Weights:
    """Return the weights of a run without trouble."""
    return {stage: [data_row(i) for i in range(steps * BATCH)] for stage in TRAINING}


@dataclass
class Process:
    """One `pion run` of the light job. `cache` is the disk of its machine.

    `goes_wrong` says whether a step on these rows gives a loss spike. `between_steps` lets time
    pass. `said` collects the messages to the user, and `restored` the step that each stage resumed
    from. `epoch` is the epoch of the newest claim.
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
        sweep(claim)
        claim.release(forget_attempts=True)

    def _claim(self, take_over: bool = False) -> Claim:
        claim = claim_run(self.run, self.owner, take_over=take_over)
        self.epoch = claim.epoch
        return claim

    def finished_weights(self, head: Head, stage: str) -> bytes:
        """Return the verified weights at the end of a finished stage."""
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
        self.workspace.keep(f"data/{DATA}")
        claim.finish_stage("prepare", DIGESTS["prepare"], {})

    def _train(self) -> str:
        """Make one attempt; return "done", or "again" after a loss spike."""
        claim = self._claim()
        sweep_abandoned(claim)
        sweep(claim)
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


class _Rows(Snapshot):
    """A snapshot without tensors, with JSON instead of the safetensors files."""

    def take(self, model: Any, optimizer: Any, state: Mapping[str, Any]) -> None:
        contents = {
            MODEL: json.dumps(model).encode(),
            OPTIMIZER: json.dumps(optimizer).encode(),
        }
        os.ftruncate(self.fd, 0)
        offset = 0
        for name, content in contents.items():
            os.pwrite(self.fd, content, offset)
            self.extents[name] = (offset, len(content))
            offset += len(content)
        self.state = json.loads(json.dumps(state))

    def close(self) -> None:
        os.close(self.fd)


@dataclass
class _Uploader:
    """Uploads in this process, so that its store operations are counted and can fail."""

    store: Store
    snapshot: Snapshot = field(default_factory=_Rows)

    def save(self, request: SaveRequest) -> Saved:
        return save(self.store, request, map_extents(self.snapshot.fd, request.extents))

    def close(self) -> None:
        """Do nothing: there is no process to end."""


class _Training:
    """One attempt at one stage."""

    def __init__(self, process: Process, claim: Claim, stage: str) -> None:
        self.process, self.claim, self.stage = process, claim, stage
        self.digest = DIGESTS[stage]
        self.weights: Weights = {}
        self.step = self.next_row = 0
        self.skipped: list[tuple[int, int]] = []

    def go(self) -> None:
        process, claim = self.process, self.claim
        rows = json.loads((process.workspace.bring(f"data/{DATA}") / "rows.json").read_text())
        found = self._restore()
        claim.set_restore(self.stage, self.step)
        self.metrics = MetricsLog(
            process.store, RUN, self.stage, claim.epoch, now=process.clock.now
        )
        with contextlib.closing(self._open_checkpointer(found)) as self.checkpointer:
            self._loop(rows)
            self._finish()

    def _restore(self) -> Found:
        process = self.process
        head = process.run.read()
        assert head is not None
        found = newest_good(process.workspace, head, self.stage, self.digest)
        process.said += map(str, found.skipped)
        skipped: list[tuple[int, int]] = []
        if found.folder is not None:
            self.weights = json.loads((found.folder / MODEL).read_bytes())
            state = json.loads((found.folder / STATE).read_bytes())
            self.step, self.next_row = state["step"], state["next_row"]
            skipped = [(first, stop) for first, stop in state["skipped"]]
        elif self.stage == "sft":
            self.weights = json.loads(process.finished_weights(head, "pretrain"))
        self.skipped = rows_to_skip(head, self.stage, self.digest, self.next_row, skipped)
        process.restored[self.stage] = self.step
        return found

    def _open_checkpointer(self, found: Found) -> Checkpointer:
        process = self.process
        uploader: Any = _Uploader(process.store)
        return Checkpointer(
            self.claim,
            CheckpointSeries(self.stage, self.digest, files={}, keep=process.keep),
            resumed=found,
            metrics=self.metrics,
            uploader=uploader,
            workspace=process.workspace,
        )

    def _loop(self, rows: list[str]) -> None:
        process = self.process
        while self.step < process.steps:
            self.claim.check()
            numbers, next_row = step_rows(self.next_row, BATCH, self.skipped)
            if process.goes_wrong(self.stage, numbers):
                raise Trouble(self.step + 1, (self.next_row, next_row), "a loss spike")
            self.weights.setdefault(self.stage, []).extend(rows[i] for i in numbers)
            self.step, self.next_row = self.step + 1, next_row
            self.metrics.append({"step": self.step, "trained_on": numbers})
            process.between_steps()
            if self.step < process.steps and self.step % SAVE_EVERY == 0:
                outage = self._save()
                if outage is not None:
                    process.said.append(f"nothing can be saved now: {outage}")

    def _finish(self) -> None:
        outage = self._save()
        if outage is not None:
            raise outage
        last = self.checkpointer.last
        assert last is not None
        self.claim.finish_stage(self.stage, self.digest, {"steps": self.step}, last.key)

    def _save(self) -> StoreError | None:
        """Save the last finished step; return why the save is not durable, or None."""
        optimizer: Any = {"step": self.step, "epoch": self.claim.epoch}
        weights: Any = self.weights
        state = {"step": self.step, "next_row": self.next_row, "skipped": self.skipped}
        self.checkpointer.save(weights, optimizer, state)
        self.checkpointer.wait()
        return self.checkpointer.stats.outage


# ---------------------------------------------------------------- looking behind a run's back


def read_head(store: Store) -> Head | None:
    """Return HEAD of the light run."""
    return RunState(store, RUN).read()


def what_is_wrong(store: Store, key: str, model_sha256: str | None = None) -> str | None:
    """Return why a checkpoint in `store` is bad; None if it is complete and verified, and trained
    each row once."""
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
        return f"{about['stage']} step {about['step']} does not continue where its rows end"
    if weights.get(about["stage"], []) != trained:
        return f"{about['stage']} step {about['step']} has trained a row twice or never"
    return None


def wrong_in(store: Store, head: Head) -> list[str]:
    """Return what is wrong with the checkpoints that HEAD lists."""
    entries = {entry.key: entry.model_sha256 for entry in head.checkpoints}
    wanted = {**dict.fromkeys(head.listed()), **entries}
    return [bad for key, sha in wanted.items() if (bad := what_is_wrong(store, key, sha))]


def left_over(store: Store, head: Head) -> set[str]:
    """Return the checkpoint folders in the store that HEAD does not list."""
    start = len(f"{RUN}/")
    keys = [entry.key[start:] for entry in store.list(f"{RUN}/checkpoints/")]
    return {key.rpartition("/")[0] for key in keys} - head.listed()
