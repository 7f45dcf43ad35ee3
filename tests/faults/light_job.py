"""A whole run with the real state layer and training loop, and with a trainer without tensors.

The stages are prepare, pretrain, sft, evaluate and publish, in the order of `pipeline.run.advance`.
Weights are the list of rows trained, in order. So a checkpoint shows whether a row was trained
twice or never, and two runs with the same weights trained the same rows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pion.data.order import step_rows
from pion.errors import PionError, Trouble
from pipeline.console.messages import Note, Shown
from pipeline.job import Job
from pipeline.state.checkpoints.checkpointer import Checkpointer
from pipeline.state.checkpoints.layout import MANIFEST, MODEL, OPTIMIZER, STATE
from pipeline.state.checkpoints.restore import check_entry, newest_good
from pipeline.state.checkpoints.retention import Keep, sweep
from pipeline.state.checkpoints.snapshot import Snapshot
from pipeline.state.claim import Claim, claim_run
from pipeline.state.head import Head
from pipeline.state.notes.stop_requests import clear_stops, pending_stop
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import EventLog, read_metrics
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store
from pipeline.state.stores.clock import Clock
from pipeline.state.workspace import Workspace
from pipeline.training.context import TrainingContext
from pipeline.training.loop import train_stages
from pipeline.training.rewind import rows_to_skip
from pipeline.training.setup import Restored, Setup
from pipeline.training.train_request import Group, TrainRequest
from tests.support.in_process_uploader import InProcessUploader
from tests.support.jobs import tiny_dict
from tests.support.states import read

RUN = "light"
TRAINING = ("pretrain", "sft")
STEPS, BATCH, SAVE_EVERY = 4, 3, 2
DIGESTS = {name: f"{name}-digest" for name in ("prepare", *TRAINING, "evaluate", "publish")}
DATA = "data-digest"
DATA_ROWS = 60


@functools.cache
def light_job(steps: int, keep: int) -> Job:
    """Return the job: it logs each step, saves every second one, and evaluates after the last."""
    return Job.model_validate(
        tiny_dict(
            name=RUN,
            pretrain__steps=steps,
            sft__steps=steps,
            evaluate__every=1000,
            evaluate__prompts=[],
            checkpoint={"every_steps": SAVE_EVERY, "keep": {"last": keep}, "linger": 0}
            | {"max_undurable": 1e8},
            log={"every": 1},
        )
    )


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
    from. `epoch` is the epoch of the newest claim. `is_resized` asks it to stop for a group of
    another size.
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
    is_resized: Callable[[], bool] = lambda: False
    said: list[str] = field(default_factory=list)
    restored: dict[str, int] = field(default_factory=dict)
    epoch: int = 0

    def __post_init__(self) -> None:
        self.run = RunState(self.store, RUN, self.clock)
        self.workspace = Workspace(self.store, RUN, self.cache)

    def hear(self, message: Shown) -> None:
        """Keep what the user must know about checkpoints."""
        if isinstance(message, Note) and message.text.startswith(("Skipped", "nothing can be")):
            self.said.append(message.text)

    def go(self) -> None:
        """Advance the run until it is done, or a group of another size continues it."""
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
            if self._train() == "stopped":
                return
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
        """Train as workers do, with a light trainer; return "done" or "stopped"."""
        request = _Request(
            job={"steps": self.steps, "keep": self.keep.last},
            job_folder="",
            store=self.store.url,
            owner=dataclasses.asdict(self.owner),
            stages=list(self.training),
            digests=DIGESTS,
        )
        return train_stages(_Context(self, request), _start)


class _Request(TrainRequest):
    def load_job(self) -> Job:
        return light_job(**self.job)


class _Rows(Snapshot):
    """A snapshot without tensors, with JSON instead of the safetensors files."""

    def take(self, model: Any, optimizer: Any, state: Mapping[str, Any], *rest: Any) -> None:
        contents = {MODEL: json.dumps(model).encode(), OPTIMIZER: json.dumps(optimizer).encode()}
        os.ftruncate(self.fd, 0)
        offset = 0
        for name, content in contents.items():
            os.pwrite(self.fd, content, offset)
            self.extents[name] = (offset, len(content))
            offset += len(content)
        self.state = json.loads(json.dumps(state))

    def reserve(self, model: Any, optimizer: Any, *rest: Any) -> None:
        """Do nothing: `take` writes as much as there is."""

    def close(self) -> None:
        os.close(self.fd)


class _Checkpointer(Checkpointer):
    """Ends each save before the next step, so that operations have an order."""

    def save(self, model: Any, optimizer: Any, state: Mapping[str, Any], *rest: Any) -> bool:
        begun = super().save(model, optimizer, state, *rest)
        if self._thread is not None:
            self._thread.join()
        return begun


class _Context(TrainingContext):
    """What the stages of a process share. There is no heartbeat: one thread uses the store."""

    checkpointer = _Checkpointer

    def __init__(self, process: Process, request: TrainRequest) -> None:
        self.process = process
        super().__init__(
            request,
            Group(),
            process.hear,
            process.is_resized,
            workspace=process.workspace,
            clock=process.clock,
        )
        self.is_resized = process.is_resized

    def keep_alive(self, claim: Claim) -> None:
        self.process.epoch = claim.epoch

    def uploader(self) -> Any:
        return InProcessUploader(self.process.store, _Rows())  # its operations are counted

    def free_memory(self) -> None:
        """Do nothing: rows take no memory."""


class _Trainer:
    """Trains by adding rows to the weights, as `pion.train.trainer.Trainer` would use them."""

    def __init__(self, process: Process, stage: str, rows: list[str], epoch: int) -> None:
        self._process, self._stage, self._rows, self._epoch = process, stage, rows, epoch
        self.weights: Weights = {}
        self.step = self.next_row = 0
        self.skipped: list[tuple[int, int]] = []
        self.on_step_down: Any = None
        self._metrics: list[dict[str, Any]] = []
        self._trouble: Trouble | None = None

    def train_step(self, should_stop: Callable[[], bool]) -> bool:
        if should_stop():
            return False
        numbers, next_row = step_rows(self.next_row, BATCH, self.skipped)
        if self._process.goes_wrong(self._stage, numbers):
            self._trouble = Trouble(self.step + 1, (self.next_row, next_row), "a loss spike")
        self.weights.setdefault(self._stage, []).extend(self._rows[i] for i in numbers)
        self.step, self.next_row = self.step + 1, next_row
        numbered = {"step": self.step, "trained_on": numbers, "loss": 1.0, "tokens_per_second": 9.0}
        self._metrics.append(numbered | dict.fromkeys(("lr", "grad_norm", "mfu", "memory"), 0.0))
        self._process.between_steps()
        return True

    def drain_metrics(self) -> list[dict[str, Any]]:
        if self._trouble is not None:
            raise self._trouble
        rows, self._metrics = self._metrics, []
        return rows

    def trouble(self) -> Trouble | None:
        return self._trouble

    def state(self) -> Any:
        meta = {"step": self.step, "next_row": self.next_row, "skipped": self.skipped}
        optimizer = {"step": self.step, "epoch": self._epoch}
        return SimpleNamespace(
            model=self.weights, optimizer=optimizer, meta=meta, side_copy=None, pieces=()
        )

    def close(self) -> None:
        """Do nothing: there is no thread."""


class _Setup(Setup):
    """A stage with a light trainer. It has no model to sample from, and no machine to compare."""

    on_cpu = True

    def files(self, state: Mapping[str, Any]) -> dict[str, bytes]:
        return {}

    def evaluate(self, on_batch: Callable[[], None]) -> Any:
        return SimpleNamespace(loss=1.0, sem=0.1, measures={}, by_source={})

    def samples(self, prompts: Sequence[str], on_token: Callable[[], None]) -> list[Any]:
        return []

    def busy_cores(self) -> None:
        return None

    def keep_speed(self, tokens_per_second: float) -> None:
        pass

    def record_machine(self, epoch: int, change: Any = None) -> list[str]:
        return []

    def close(self) -> None:
        self.trainer.close()


def _start(context: _Context, stage: str) -> Setup:
    """Set a stage up, as `pipeline.training.setup` does."""
    process = context.process

    def bring() -> tuple[list[str], Restored]:
        head = read(context.run)
        rows = json.loads((process.workspace.bring(f"data/{DATA}") / "rows.json").read_text())
        found = newest_good(context.workspace, head, stage, DIGESTS[stage])
        return rows, Restored(head, found, saved=None)

    rows, restored = context.fetch(bring)
    trainer = _Trainer(process, stage, rows, restored.head.epoch)
    folder = restored.found.folder
    skipped: list[tuple[int, int]] = []
    if folder is not None:
        trainer.weights = json.loads((folder / MODEL).read_bytes())
        state = json.loads((folder / STATE).read_bytes())
        trainer.step, trainer.next_row = state["step"], state["next_row"]
        skipped = [(first, stop) for first, stop in state["skipped"]]
    elif stage == "sft":
        trainer.weights = json.loads(process.finished_weights(restored.head, "pretrain"))
    trainer.skipped = rows_to_skip(restored.head, stage, DIGESTS[stage], trainer.next_row, skipped)
    process.restored[stage] = trainer.step
    return _Setup(context, stage, trainer, SimpleNamespace(prompts=None), restored, "")


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
