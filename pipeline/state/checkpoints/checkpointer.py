"""Save training state durably while training goes on, under one claim.

A checkpoint is a folder `checkpoints/<stage>/<step>-<epoch>/` holding `model.safetensors`,
`optimizer.safetensors`, `state.json`, small files such as `config.json`, and, written last,
`manifest.json` with every file's size and sha256. It counts once HEAD lists it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.state.checkpoints.retention import Keep, delete_due, forget, sweep_unused
from pipeline.state.checkpoints.snapshot import Snapshot, Tensors
from pipeline.state.checkpoints.upload_worker import SaveJob
from pipeline.state.checkpoints.uploader import Uploader, UploaderDied, UploaderProcess
from pipeline.state.claim import Claim
from pipeline.state.records import CheckpointEntry, Head
from pipeline.state.stores import StoreError
from pipeline.state.workspace import Workspace

STATE = "state.json"
METRICS = "metrics.jsonl"
SAVES_PER_SWEEP = 20
UPLOADER_DEATHS = 3
"""So many saves in a row may lose their uploader before training stops for it."""


@dataclass
class SaveStats:
    """What saving costs and how far it has come. Times are in seconds.

    `write_seconds` is from the snapshot to the commit. `outage` says why the last save did not
    become durable though trying again may help; None when it did.
    """

    stall_seconds: float = 0.0
    write_seconds: float = 0.0
    skipped: int = 0
    saved: int = 0
    durable_step: int | None = None
    outage: str | None = None


class Checkpointer:
    """Saves one stage's checkpoints under one claim.

    A snapshot is the only stall. A process of its own writes and uploads it (uploader.py), and a
    thread here then commits. `files` travel with every checkpoint (`config.json`,
    `tokenizer.json`). `ancestor` is the key of the checkpoint that training goes on from, `last`
    that checkpoint if HEAD lists it, `copy` the key of this machine's copy if it doesn't.
    `before_commit` runs in that thread just before a checkpoint is listed: what it flushes is
    durable when the checkpoint is. Should it never be listed, and this machine go on from its copy
    all the same, `unwritten` metrics are in that copy. `snapshot`, empty yet, is closed with this;
    `uploader` starts what uploads from its memory.
    """

    def __init__(
        self,
        claim: Claim,
        stage: str,
        digest: str,
        *,
        files: Mapping[str, bytes],
        keep: Keep | None = None,
        ancestor: str | None = None,
        last: CheckpointEntry | None = None,
        copy: str | None = None,
        before_commit: Callable[[], None] | None = None,
        unwritten: Callable[[], str] | None = None,
        workspace: Workspace | None = None,
        uploader: Callable[[int], Uploader] | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        self._claim = claim
        self._stage = stage
        self._digest = digest
        self._files = {name: data.decode() for name, data in files.items()}
        self._keep = keep or Keep()
        self._ancestor = ancestor
        self._before_commit = before_commit
        self._unwritten = unwritten
        self._workspace = workspace or Workspace(claim.store, claim.state.name)
        self._snapshot = snapshot or Snapshot()
        self._uploader = (uploader or UploaderProcess)(self._snapshot.fd)
        self.deaths = 0  # of the uploader, in a row
        self._reserving: threading.Thread | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.last = last
        self.attempted = copy  # the key of the save begun last
        self._uploaded: CheckpointEntry | None = None  # and not known to be listed
        self._unlisted: set[str] = set()  # keys of saves begun since the last that was listed
        self.stats = SaveStats()

    def reserve(self, model: Tensors, optimizer: Tensors) -> None:
        """Allocate the snapshot's memory in the background: the first save is then a copy too."""

        def reserve() -> None:
            with contextlib.suppress(StoreError):  # the first save meets it too, and says so
                self._snapshot.reserve(model, optimizer)

        self._reserving = threading.Thread(target=reserve, daemon=True)
        self._reserving.start()

    def save(
        self,
        model: Tensors,
        optimizer: Tensors,
        state: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Snapshot now, write in the background; False if the previous save is still on its way.

        `state` is JSON and has `step`. Raises what the previous save failed with, as `wait` does.
        """
        if self.busy:
            self.stats.skipped += 1
            return False
        self.wait()
        if self.last is not None and self.last.step == state["step"]:
            return True
        started = time.perf_counter()
        if self._reserving is not None:
            self._reserving.join()
            self._reserving = None
        self._snapshot.take(
            model, optimizer, {**state, "stage": self._stage, "digest": self._digest}
        )
        self.stats.stall_seconds = time.perf_counter() - started
        self._thread = threading.Thread(
            target=self._run, args=(dict(metrics or {}),), name="checkpoint", daemon=True
        )
        self._thread.start()
        return True

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write `metrics` into the entry of the checkpoint of `step`, in the background, when it is
        listed; nothing, if it never is or the store is down then."""
        saving = self._thread

        def write() -> None:
            if saving is not None:
                saving.join()
            saved = self.last
            if saved is None or saved.step != step:
                return
            try:
                self._claim.commit(lambda head: head.with_metrics(saved.key, metrics))
            except BaseException as error:
                if not (isinstance(error, StoreError) and error.outage):
                    self._failure = error  # raised to the training thread by `wait`

        self._thread = threading.Thread(target=write, name="checkpoint metrics", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a save or a note is on its way, so that `save` would skip."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until no save or note is on its way.

        Raises what it failed with, once: `Fenced`, or a `StoreError` that trying again won't mend.
        An outage is only noted in `stats`: training goes on, and the next save tries again.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """`wait`, unless another process owns the run now; then end the uploader."""
        try:
            self._claim.check()
            self.wait()
        finally:
            self._uploader.close()
            if self._reserving is not None:
                self._reserving.join()
            with contextlib.suppress(BaseException):
                self.wait()
            self._snapshot.close()

    def _run(self, metrics: dict[str, float]) -> None:
        started = time.perf_counter()
        try:
            entry, head = self._save(metrics)
        except UploaderDied as error:
            self.deaths += 1
            self.stats.outage = str(error)
            if self.deaths >= UPLOADER_DEATHS:
                self._failure = error
            return
        except BaseException as error:
            if isinstance(error, StoreError) and error.outage:
                self.stats.outage = str(error)
            else:
                self._failure = error  # raised to the training thread by `wait`
            return
        self._listed(entry)
        self._uploaded = None
        self._unlisted.clear()
        self.deaths = 0
        stats = self.stats
        stats.write_seconds = time.perf_counter() - started
        stats.saved += 1
        stats.outage = None
        self._forget_copies(head)
        if self._claim.store.commits and stats.saved % SAVES_PER_SWEEP == 0:
            sweep_unused(self._claim)  # each commit keeps what it replaced

    def _save(self, metrics: dict[str, float]) -> tuple[CheckpointEntry, Head]:
        claim, step = self._claim, self._snapshot.state["step"]
        claim.check()
        key = f"checkpoints/{self._stage}/{step}-{claim.epoch}"
        # A commit that gave up may have landed: what HEAD may list is never written again.
        if self._uploaded is None or self._uploaded.key != key:
            self._find_out()
            # While the store is down, saves of this machine pile up: the latest is enough.
            self._forget_copies(claim.head)
            self.attempted = key
            self._unlisted.add(key)
            self._uploaded = self._upload(key, step)
        entry = dataclasses.replace(self._uploaded, metrics=metrics)
        if self._before_commit is not None:
            self._before_commit()
        deleted = delete_due(claim)
        # On the Hub, what these have staged goes along with this commit. Dropping it would empty
        # a checkpoint whose own commit, given up as lost, lands after all.
        failed = sorted(self._unlisted - {key})
        clock = claim.state.clock  # the upload may have taken long, and readers have an hour

        def listed(head: Head) -> Head:
            now = clock.now()
            head = head.with_checkpoint(entry).without_trash(deleted).with_trash(failed, now)
            return forget(head, self._keep, now)

        return entry, claim.commit(listed)

    def _find_out(self) -> None:
        """Whether a commit that gave up has landed: what is saved next goes on from it then."""
        if self._uploaded is None:
            return
        claim = self._claim
        try:
            head = claim.state.read()
        except StoreError:
            return  # a copy on this machine can be made all the same
        for entry in head.checkpoints if head else ():
            if (entry.stage, entry.epoch) == (self._stage, claim.epoch):
                self._listed(entry)
                return

    def _listed(self, entry: CheckpointEntry) -> None:
        self.last, self._ancestor, self.stats.durable_step = entry, entry.key, entry.step

    def _upload(self, key: str, step: int) -> CheckpointEntry:
        """Have the snapshot in the store, verified; what is left to do is the commit."""
        claim = self._claim
        about = {
            "stage": self._stage,
            "step": step,
            "epoch": claim.epoch,
            "digest": self._digest,
            "at": claim.state.clock.now(),
            "ancestor": self._ancestor,
        }
        remote = self._workspace.remote
        texts = {STATE: _json(self._snapshot.state), **self._files}
        if remote and self._unwritten is not None:
            texts[METRICS] = self._unwritten()
        saved = self._uploader.save(
            SaveJob(
                store=claim.store.url,
                key=claim.state.key(key),
                copy=str(self._workspace.folder(key)) if remote else None,
                extents=self._snapshot.extents,
                texts=texts,
                about=about,
            )
        )
        claim.store.adopt(saved.staged)
        return saved.entry(about, key)

    def _forget_copies(self, head: Head) -> None:
        """Keep on this machine what a restart here would want, and no more."""
        wanted = [entry.key for entry in head.checkpoints[:2]]
        self._workspace.forget(keep=[*wanted, self.attempted or ""])


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
