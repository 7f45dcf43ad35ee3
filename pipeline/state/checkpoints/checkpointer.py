"""Save one stage's training state durably while training continues, under one claim.

layout.py lists the files of a checkpoint.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.train.side_copy import SideCopy
from pipeline.state.checkpoints.layout import (
    MANIFEST,
    METRICS,
    STATE,
    Provenance,
    checkpoint_key,
)
from pipeline.state.checkpoints.restore import FoundCheckpoint
from pipeline.state.checkpoints.retention import Keep, delete_due, forget, sweep_unused
from pipeline.state.checkpoints.snapshot import Snapshot, Tensors
from pipeline.state.checkpoints.uploader import SaveRequest, Uploader, UploaderDied
from pipeline.state.claim import Claim
from pipeline.state.head import CheckpointEntry, Head
from pipeline.state.record_json import to_json
from pipeline.state.rows.metrics import MetricsLog
from pipeline.state.stores import StoreError
from pipeline.state.workspace import Workspace

if TYPE_CHECKING:
    from pion.train.optimizer.state_pieces import Piece

SAVES_PER_SWEEP = 20
# A wait for an upload looks so often whether another process owns the run by now.
LOOK_SECONDS = 0.1
# Training stops when the uploader has died in this many saves in a row.
UPLOADER_DEATHS = 3


@dataclass(frozen=True)
class CheckpointSeries:
    """The settings that all checkpoints of one stage share.

    `files` returns the small files of the checkpoint of a state, such as `config.json`. `keep` says
    which checkpoints the run keeps.
    """

    stage: str
    digest: str
    files: Callable[[Mapping[str, Any]], Mapping[str, bytes]]
    keep: Keep = field(default_factory=Keep)


@dataclass
class SaveStats:
    """The cost and progress of saving. Times are in seconds.

    Training waited `stall_seconds` for the last save. Copying the state took `copy_seconds`: on a
    card, most of this runs next to the following step. None: no copy has ended yet.
    `write_seconds` is the time from the snapshot to the commit. `outage` says why the last save is
    not durable, if another try may succeed. `deaths` counts the saves in a row whose uploader died.
    """

    stall_seconds: float = 0.0
    copy_seconds: float | None = None
    write_seconds: float = 0.0
    saved: int = 0
    durable_step: int | None = None
    outage: StoreError | None = None
    deaths: int = 0


class PendingCommit:
    """The saves of one attempt at a stage: each is begun, then uploaded, then listed by HEAD.

    A save is begun when files may exist under its key. It is uploaded when the store has all of it,
    verified. It is listed when HEAD names it. A commit may land although the store never
    acknowledged it, so HEAD may already list an uploaded save. Such a save is never uploaded again
    under the same key.

    Attributes:
        last: the newest checkpoint that HEAD is known to list.
        ancestor: the key of the listed checkpoint that the next save descends from.
        newest_key: the key of the save that was begun last, listed or not. This machine may have a
            copy of that save.
    """

    def __init__(self, resumed: FoundCheckpoint | None = None) -> None:
        self.last: CheckpointEntry | None = None
        self.ancestor: str | None = None
        self.newest_key: str | None = None
        self._uploaded: CheckpointEntry | None = None  # not known to be listed
        self._unlisted: set[str] = set()  # keys begun since a commit was last acknowledged
        entry = resumed.entry if resumed is not None else None
        if resumed is not None and entry is not None:
            if resumed.listed:
                self.last, self.ancestor = entry, entry.key
            else:
                self.ancestor, self.newest_key = entry.ancestor, entry.key

    def begin(self, key: str) -> None:
        """Note that files may appear under `key` from now on."""
        self.newest_key = key
        self._unlisted.add(key)

    def uploaded(self, entry: CheckpointEntry) -> None:
        """Note that the store has all of `entry`, and that only its commit is missing."""
        self._uploaded = entry

    def uploaded_as(self, key: str) -> CheckpointEntry | None:
        """Return the uploaded save under `key` that is not known to be listed."""
        uploaded = self._uploaded
        return uploaded if uploaded is not None and uploaded.key == key else None

    @property
    def in_doubt(self) -> bool:
        """Whether a commit may have landed without an acknowledgement."""
        return self._uploaded is not None

    def look_for_landed(self, head: Head) -> CheckpointEntry | None:
        """Return the newest save of this attempt that `head`, just read, lists.

        That save counts as listed from now on, and the next save descends from it.
        """
        assert self._uploaded is not None
        attempt = (self._uploaded.stage, self._uploaded.epoch)
        mine = (entry for entry in head.checkpoints if (entry.stage, entry.epoch) == attempt)
        newest = next(mine, None)
        if newest is not None:
            self.last, self.ancestor = newest, newest.key
        return newest

    def given_up(self, key: str) -> list[str]:
        """Return the keys of the saves before `key` that no acknowledged commit lists."""
        return sorted(self._unlisted - {key})

    def acknowledged(self, entry: CheckpointEntry) -> None:
        """Note that the commit that lists `entry` has succeeded."""
        self.last, self.ancestor = entry, entry.key
        self._uploaded = None
        self._unlisted.clear()


class Checkpointer:
    """Saves one stage's checkpoints under one claim.

    Training waits only for the snapshot. Then the uploader's process writes and uploads the
    checkpoint, and a thread of this process commits it. `resumed` is the checkpoint that training
    continues from. `metrics` are flushed just before each commit, so they are durable when the
    checkpoint is. A copy on this machine includes the rows that are not flushed yet. `store_url` is
    the store that checkpoints go to.
    """

    def __init__(
        self,
        claim: Claim,
        series: CheckpointSeries,
        *,
        resumed: FoundCheckpoint | None = None,
        metrics: MetricsLog | None = None,
        uploader: Uploader | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self._claim = claim
        self.store_url = claim.store.url
        self.series = series
        self._metrics = metrics
        self._uploader = uploader or Uploader(Snapshot(), claim.store.url)
        self._workspace = workspace or Workspace(claim.store, claim.state.name)
        self._pending = PendingCommit(resumed)
        self._copied: str | None = None  # the newest save that this machine had whole when looked
        self._reserving: threading.Thread | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.stats = SaveStats()

    @property
    def last(self) -> CheckpointEntry | None:
        """The newest checkpoint that HEAD lists."""
        return self._pending.last

    def local_copy(self) -> Path | None:
        """Return the folder of this machine's copy of the newest save that HEAD does not list.

        None if there is no whole copy, or the store itself is on this machine.
        """
        key = self._newest_copy()
        listed = self.last is not None and self.last.key == key
        return self._workspace.folder(key) if key is not None and not listed else None

    def reserve(self, model: Tensors, optimizer: Tensors, pieces: Sequence[Piece] = ()) -> None:
        """Allocate the snapshot's memory in the background, so that the first save only copies."""

        def reserve() -> None:
            with contextlib.suppress(StoreError):  # the first save fails too, and reports it
                self._uploader.snapshot.reserve(model, optimizer, pieces)

        self._reserving = threading.Thread(target=reserve, daemon=True)
        self._reserving.start()

    def save(
        self,
        model: Tensors,
        optimizer: Tensors,
        state: Mapping[str, Any],
        side_copy: SideCopy | None = None,
        pieces: Sequence[Piece] = (),
    ) -> bool:
        """Take a snapshot now and write it in the background. While the previous save is still
        being written, take no snapshot and return False.

        The tensors are copied before this returns, or by `side_copy`. `state` is JSON and has
        `step`. Of several ranks, this one has `pieces` (see `Snapshot`). Raises the previous save's
        error, as `wait` does.
        """
        if self.busy:
            return False
        self.wait()
        if self.last is not None and self.last.step == state["step"]:
            return True
        started = time.perf_counter()
        if self._reserving is not None:
            self._reserving.join()
            self._reserving = None
        self._uploader.snapshot.take(
            model,
            optimizer,
            {**state, "stage": self.series.stage, "digest": self.series.digest},
            side_copy,
            pieces,
        )
        self.stats.stall_seconds = time.perf_counter() - started
        deferred = side_copy is not None and side_copy.deferred
        if not deferred:
            self.stats.copy_seconds = self.stats.stall_seconds
        self._thread = threading.Thread(
            target=self._run, args=(started if deferred else None,), name="checkpoint", daemon=True
        )
        self._thread.start()
        return True

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write `metrics` into HEAD's entry for the checkpoint of `step`, in the background.

        Does nothing if the save of that checkpoint fails, or if the store is down.
        """
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
        """Whether a save or a note is being written, so that `save` would skip."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Block until no save or note is being written.

        Raises the error of the save or note, once: `Fenced`, or a `StoreError` that is not an
        outage. An outage is only noted in `stats`: training continues, and the next save tries
        again. Raises `Fenced` at once if another process owns the run by now: what is uploaded
        would not be listed.
        """
        if self._thread is not None:
            while self._thread.is_alive():
                self._claim.check()
                self._thread.join(LOOK_SECONDS)
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Block like `wait`, unless another process now owns the run. Then end the uploader, whose
        files the owner deletes as those of an abandoned save."""
        try:
            self._claim.check()
            self.wait()
        finally:
            self._uploader.close()
            if self._reserving is not None:
                self._reserving.join()
            if self._thread is not None:
                self._thread.join()  # it has nothing to wait for any more
            self._uploader.snapshot.close()

    def _run(self, copy_begun: float | None) -> None:
        started = time.perf_counter()
        stats = self.stats
        try:
            self._uploader.snapshot.wait()
            if copy_begun is not None:
                stats.copy_seconds = time.perf_counter() - copy_begun
            entry, head = self._save()
        except UploaderDied as error:
            stats.deaths += 1
            stats.outage = error
            if stats.deaths >= UPLOADER_DEATHS:
                self._failure = error
            return
        except BaseException as error:
            if isinstance(error, StoreError) and error.outage:
                stats.outage = error
            else:
                self._failure = error  # raised to the training thread by `wait`
            return
        self._pending.acknowledged(entry)
        stats.durable_step = entry.step
        stats.deaths = 0
        stats.write_seconds = time.perf_counter() - started
        stats.saved += 1
        stats.outage = None
        self._forget_copies(head)
        if self._claim.store.commits and stats.saved % SAVES_PER_SWEEP == 0:
            sweep_unused(self._claim)  # the repository keeps the files that commits replaced

    def _save(self) -> tuple[CheckpointEntry, Head]:
        """Upload the snapshot and list it in HEAD."""
        claim, pending = self._claim, self._pending
        claim.check()
        step = self._uploader.snapshot.state["step"]
        key = checkpoint_key(self.series.stage, step, claim.epoch)
        entry = pending.uploaded_as(key)
        deleted = delete_due(claim)  # first, because the disk may need the room
        if entry is None:
            self._look_for_landed()
            # While the store is down, saves accumulate on this disk. Only the latest is needed.
            self._forget_copies(claim.head)
            pending.begin(key)
            entry = self._upload(step)
            pending.uploaded(entry)
        if self._metrics is not None:
            self._metrics.flush()
        return entry, self._commit(entry, deleted)

    def _commit(self, entry: CheckpointEntry, deleted: Collection[str]) -> Head:
        """List `entry` in HEAD, and unlist the checkpoints that are no longer kept, and the trash
        that was `deleted`."""
        claim = self._claim
        # On the Hub, this commit includes the staged files of saves that were given up. If we
        # dropped these files and the commit of such a save landed later, its checkpoint would be
        # empty.
        given_up = self._pending.given_up(entry.key)

        def listed(head: Head) -> Head:
            now = claim.store_now()  # readers have an hour from the commit, not from the upload
            head = head.with_checkpoint(entry).without_trash(deleted).with_trash(given_up, now)
            return forget(head, self.series.keep, now)

        return claim.commit(listed)

    def _look_for_landed(self) -> None:
        """Check whether a commit that seemed to fail has landed."""
        if not self._pending.in_doubt:
            return
        try:
            head = self._claim.state.read()
        except StoreError:
            return  # the copy on this machine can still be written
        landed = self._pending.look_for_landed(head) if head is not None else None
        if landed is not None:
            self.stats.durable_step = landed.step

    def _upload(self, step: int) -> CheckpointEntry:
        """Upload the snapshot to the store and verify it there. Only its commit is then missing."""
        claim, series, snapshot = self._claim, self.series, self._uploader.snapshot
        provenance = Provenance(
            stage=series.stage,
            step=step,
            epoch=claim.epoch,
            digest=series.digest,
            at=claim.state.clock.now(),
            ancestor=self._pending.ancestor,
        )
        texts = {STATE: to_json(snapshot.state)}
        files = series.files(snapshot.state)
        texts.update((name, data.decode()) for name, data in files.items())
        folder = None
        if self._workspace.remote:
            folder = str(self._workspace.folder(provenance.key))
            if self._metrics is not None:
                texts[METRICS] = self._metrics.unwritten()
        request = SaveRequest(
            store=claim.store.url,
            key=claim.state.key(provenance.key),
            local_folder=folder,
            extents=snapshot.extents,
            texts=texts,
            provenance=provenance,
        )
        saved = self._uploader.save(request)
        claim.store.adopt(saved.staged)
        return provenance.entry(saved.files)

    def _forget_copies(self, head: Head) -> None:
        """Delete this machine's copies of checkpoints that a restart here would not need."""
        keys = [entry.key for entry in head.checkpoints[:2]]
        self._workspace.forget(keep=[*keys, self._newest_copy() or ""])

    def _newest_copy(self) -> str | None:
        """Return the key of the newest save of which this machine has a whole copy.

        None if there is none, or the store itself is on this machine.
        """
        newest = self._pending.newest_key
        if not self._workspace.remote or newest is None:
            return None
        if (self._workspace.folder(newest) / MANIFEST).exists():
            self._copied = newest
        return self._copied
