"""Own a run and change its HEAD: claim an epoch, commit under it, find out who took over.

HEAD.json changes only by compare-and-swap. Each claim raises the epoch; a commit under an older
epoch is refused, so two processes that both believe they own a run can't undo each other's work.
"""

import dataclasses
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pion.errors import BadInput, Fenced
from pipeline.marks import mark
from pipeline.state.heartbeat import Heartbeat
from pipeline.state.owner import Owner, is_running, may_take_over
from pipeline.state.records import (
    WRITE_IDS_KEPT,
    CheckpointEntry,
    Head,
    SkippedRows,
    Spent,
    StageRecord,
)
from pipeline.state.stores import Conflict, Missing, Store, StoreError, write_once
from pipeline.state.stores.base import check_run_name

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20.0
SILENCE_SECONDS = 60.0
COMMIT_SILENCE_SECONDS = 1800.0
"""On a store without heartbeats, where only commits show that an owner lives."""
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Clock:
    """Time, passed in so that tests need not wait. `monotonic` never jumps; `now` is Unix time."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class RunState:
    """The run called `name` in `store`: read it, or claim it to change it."""

    def __init__(self, store: Store, name: str, clock: Clock | None = None) -> None:
        self.store = store
        self.name = check_run_name(name)
        self.clock = clock or Clock()

    def key(self, path: str) -> str:
        """The store's key of `path` in this run's folder."""
        return f"{self.name}/{path}"

    def read(self) -> Head | None:
        """HEAD as it is now, or None if the run does not exist.

        Raises `BadInput` if it is damaged or of another format version.
        """
        return self.read_versioned()[0]

    def read_versioned(self) -> tuple[Head | None, str | None]:
        """HEAD and its version in the store."""
        key = self.key("HEAD.json")
        try:
            data, version = self.store.read_versioned(key)
        except Missing:
            return None, None
        return Head.from_json(data, f"{self.store.url}/{key}"), version

    def swap(self, head: Head, version: str | None, write_id: str) -> bool:
        """Replace that version of HEAD; False if it was another version.

        `write_id`, in `head`'s history, tells a lost acknowledgement from a lost race.
        """
        mark("commit")
        try:
            self.store.compare_and_swap(self.key("HEAD.json"), head.to_json(), version)
            mark("commit")
        except (Conflict, StoreError) as error:
            present = self.read()
            if present is not None and write_id in present.write_ids:
                return True
            if isinstance(error, StoreError):
                raise
            return False
        return True

    def heartbeat(self, epoch: int) -> dict[str, Any] | None:
        """What that epoch's owner last said: `{epoch, owner, at, beat, status}`."""
        text = self._read_text(_heartbeat_path(epoch))
        return None if text is None else json.loads(text)

    def write_job(self, digest: str, text: str) -> None:
        """Keep the job file that `digest` names."""
        write_once(self.store, self.key(f"jobs/{digest}.yaml"), text.encode())

    def read_job(self, digest: str) -> str | None:
        """The job file that `digest` names."""
        return self._read_text(f"jobs/{digest}.yaml")

    def write_stage(self, stage: str, digest: str, description: Mapping[str, Any]) -> None:
        """Keep what a stage's digest was computed from, to show differences later."""
        text = json.dumps(description, indent=1, sort_keys=True) + "\n"
        write_once(self.store, self.key(f"stages/{stage}/{digest}.json"), text.encode())

    def read_stage(self, stage: str, digest: str) -> dict[str, Any] | None:
        """What that digest of the stage was computed from."""
        text = self._read_text(f"stages/{stage}/{digest}.json")
        return None if text is None else json.loads(text)

    def claim(
        self,
        me: Owner,
        *,
        take_over: bool = False,
        unattended: bool = False,
        price: float | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> "Claim":
        """Own the run under the next epoch, creating it if it does not exist.

        At once when `may_take_over` finds a reason or a person says `take_over`. Otherwise an
        `unattended` start waits until the owner has shown no sign of life for 60 s of its own
        clock (half an hour where only commits are one), and a person's raises `BadInput` saying
        who owns the run. `price` is what this machine costs, in dollars per hour.
        """
        write_id = uuid.uuid4().hex
        silent_version: str | None = None
        waited_for = 0
        while True:
            present, version = self.read_versioned()
            before = present or Head()
            reason = may_take_over(before.owner, me)
            if reason is None and take_over:
                reason = "told to take over"
            if reason is None and version == silent_version:
                reason = f"no sign of life for {self._silence:.0f} s"
            if reason is None:
                if not unattended:
                    raise BadInput(self._refusal(before, me))
                if before.epoch != waited_for:
                    waited_for = before.epoch
                    say(f"{self._owned_by(before)}; waiting until it shows no sign of life.")
                self._wait_for_silence(before, version, me)
                silent_version = version
                continue
            head = _signed(before.claimed(me, self.clock.now(), price), write_id)
            if self.swap(head, version, write_id):
                return Claim(self, head, before, reason, price)

    @property
    def _silence(self) -> float:
        return COMMIT_SILENCE_SECONDS if self.store.commits else SILENCE_SECONDS

    def _wait_for_silence(self, head: Head, version: str | None, me: Owner) -> None:
        """Until the heartbeat has not changed for 60 s, HEAD has, or the owner is seen to die."""
        seen, since = self._read_text(_heartbeat_path(head.epoch)), self.clock.monotonic()
        while self.clock.monotonic() - since < self._silence:
            self.clock.sleep(_POLL_SECONDS)
            if self.read_versioned()[1] != version or may_take_over(head.owner, me):
                return
            beat = self._read_text(_heartbeat_path(head.epoch))
            if beat != seen:
                seen, since = beat, self.clock.monotonic()

    def _owned_by(self, head: Head) -> str:
        assert head.owner is not None
        since = f"since {show_time(head.claims[0].at)} (epoch {head.epoch})"
        return f"Run {self.name} is owned by {head.owner.describe()} {since}"

    def _refusal(self, head: Head, me: Owner) -> str:
        assert head.owner is not None
        if is_running(head.owner, me):
            alive = "That process is running."
        else:
            alive = "Whether it still runs can't be told from this machine."
        return (
            f"{self._owned_by(head)}. {alive} Nothing was started. Stop it there "
            "first, or run the same command with --take-over: it will then stop by itself, and "
            "what it has committed is kept."
        )

    def _read_text(self, path: str) -> str | None:
        try:
            return self.store.read(self.key(path)).decode()
        except Missing:
            return None


class Claim:
    """A run owned under `epoch`. `before` is the HEAD that was taken over, `reason` why.

    Any thread may commit; one lock makes sure that one at a time writes HEAD.
    """

    def __init__(
        self, state: RunState, head: Head, before: Head, reason: str, price: float | None = None
    ) -> None:
        self.state = state
        self.epoch = head.epoch
        self.stop_request: str | None = None  # who asked for a stop and when, once a beat saw it
        self._price, self._spent = price, head.spent
        self._started = state.clock.monotonic()
        self.before = before
        self.reason = reason
        self._head = head
        self._lock = threading.Lock()
        self._fenced: Fenced | None = None
        self._heartbeat: Heartbeat | None = None
        self._beats = 0
        self._status: Mapping[str, Any] = {}

    @property
    def store(self) -> Store:
        return self.state.store

    @property
    def head(self) -> Head:
        """HEAD as this claim last wrote it."""
        return self._head

    def check(self) -> None:
        """Raise `Fenced` if the heartbeat or a commit has found another owner. Costs nothing."""
        if self._fenced is not None:
            raise self._fenced

    def commit(self, change: Callable[[Head], Head]) -> Head:
        """Apply `change` to HEAD under this epoch and return the new HEAD.

        `change` is called again on the newer HEAD after a conflict. Raises `Fenced`, now and ever
        after, once another process has claimed the run; `StoreError` when the store is down.
        """
        with self._lock:
            self.check()
            write_id = uuid.uuid4().hex
            while True:
                present, version = self.state.read_versioned()
                if present is not None and write_id in present.write_ids:
                    return present  # a write given up as lost has landed after all
                if present is None or present.epoch != self.epoch:
                    self._fenced = self._fenced_by(present)
                    raise self._fenced
                head = _signed(dataclasses.replace(change(present), spent=self.spent), write_id)
                if self.state.swap(head, version, write_id):
                    self._head = head
                    return head

    @property
    def spent(self) -> Spent:
        """What the run has cost until now."""
        clock = self.state.clock
        return self._spent.plus(clock.monotonic() - self._started, self._price, clock.now())

    def add_checkpoint(self, entry: CheckpointEntry) -> Head:
        """List a complete, verified checkpoint as the newest."""
        return self.commit(lambda head: head.with_checkpoint(entry))

    def finish_stage(
        self,
        stage: str,
        digest: str,
        result: Mapping[str, Any],
        checkpoint_key: str | None = None,
    ) -> Head:
        """Record `stage` as finished under `digest`, with what later stages and reports need."""
        record = StageRecord(digest, self.state.clock.now(), checkpoint_key, result)
        return self.commit(lambda head: head.with_stage(stage, record))

    def drop_stages(self, stages: Collection[str]) -> Head:
        """Forget that `stages` were done or begun; their files are deleted an hour later."""
        now = self.state.clock.now()
        return self.commit(lambda head: head.without_stages(stages, now))

    def set_restore(self, stage: str, step: int) -> Head:
        """Record that `stage` goes on from `step` (0: afresh) under this epoch.

        Its checkpoints of later steps are unlisted, and readers of metrics drop its later rows.
        """
        now = self.state.clock.now()
        return self.commit(lambda head: head.restored(stage, step, now))

    def skip_rows(self, stage: str, rows: SkippedRows) -> Head:
        """Record that `stage` leaves `rows` out, before it goes back to train without them."""
        return self.commit(lambda head: head.with_skipped(stage, rows))

    def set_job(self, digest: str) -> Head:
        """Record the job file this run now follows."""
        return self.commit(lambda head: dataclasses.replace(head, job=digest))

    def release(self, *, forget_attempts: bool = False) -> None:
        """Let anyone claim the run at once; nothing can be committed after it.

        `forget_attempts` restarts the count of attempts without a commit. Does nothing when the
        claim is known to be fenced.
        """
        self.stop_heartbeat()
        if self._fenced is not None:
            return
        change: dict[str, Any] = {"owner": None}
        if forget_attempts:
            change["committed_epoch"] = self.epoch
        self.commit(lambda head: dataclasses.replace(head, **change))
        self._fenced = Fenced(f"Run {self.state.name} was released by this process.")

    def start_heartbeat(self, seconds: float = HEARTBEAT_SECONDS) -> None:
        """Write `owner/<epoch>.json` and look for a new owner every `seconds`, from a thread."""
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self._beat, seconds)

    def stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

    def report(self, **status: Any) -> None:
        """What `pion status` shows, sent with the next heartbeat: stage, step, loss, …"""
        self._status = {**status, "at": self.state.clock.now()}

    def _beat(self) -> None:
        present = self.state.read()
        if present is None or present.epoch != self.epoch:
            self._fenced = self._fenced or self._fenced_by(present)
            return
        self._look_for_requests()
        if self.store.commits:
            return  # commits are the sign of life where they are counted
        self._beats += 1
        beat = {
            "epoch": self.epoch,
            "owner": dataclasses.asdict(present.owner) if present.owner else None,
            "at": self.state.clock.now(),
            "beat": self._beats,
            "status": dict(self._status),
        }
        key = self.state.key(_heartbeat_path(self.epoch))
        self.store.write(key, (json.dumps(beat, indent=1) + "\n").encode())

    def _look_for_requests(self) -> None:
        from pipeline.state.requests import pending_stop

        request = pending_stop(self.state, _log.warning)
        self.stop_request = request.describe() if request else None

    def _fenced_by(self, head: Head | None) -> Fenced:
        name = self.state.name
        if head is None or not head.claims:
            return Fenced(
                f"Run {name} was deleted from {self.store.url}; this process has stopped."
            )
        newest = head.claims[0]
        return Fenced(
            f"Run {name} was taken over by {newest.owner.describe()} at {show_time(newest.at)} "
            f"(epoch {newest.epoch}; this process had epoch {self.epoch}). This process has "
            "stopped and writes nothing more; everything it had committed is kept. To bring the "
            "run back here, run the same command with --take-over."
        )


def show_time(at: float) -> str:
    """Unix seconds as `2026-11-20 07:33:12 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _heartbeat_path(epoch: int) -> str:
    return f"owner/{epoch}.json"


def _signed(head: Head, write_id: str) -> Head:
    return dataclasses.replace(head, write_ids=(write_id, *head.write_ids)[:WRITE_IDS_KEPT])
