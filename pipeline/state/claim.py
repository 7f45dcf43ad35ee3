"""Own a run: commit to its HEAD under one epoch, and find out who took the run over.

Each claim raises the epoch, and a commit under an older epoch is refused. So two processes that
both believe they own a run can't undo each other's work.
"""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pion.errors import BadInput, Fenced
from pipeline.console.formats import moment
from pipeline.state.find_run import refuse_remains
from pipeline.state.head import Head, Spent, StageRecord
from pipeline.state.heartbeat import Heartbeat
from pipeline.state.liveness import Unchanged
from pipeline.state.owner import Owner, is_running, is_suspended, may_take_over
from pipeline.state.run_state import RunState
from pipeline.state.stores.clock import StoreClock

_POLL_SECONDS = 2.0
# No checkpoint is added to a HEAD with more than this share of what readers accept. The rest is for
# claims, and for the commits that list fewer.
SHARE_OF_CHECKPOINTS = 0.9


class Claim:
    """A run owned under `epoch`.

    Any thread may commit. A lock lets only one thread at a time write HEAD.

    Attributes:
        before: HEAD before this claim.
        head: HEAD as this claim last wrote it.
        reason: why this process may own the run.
        heartbeat: this owner's heartbeat; it also looks for new owners and requests.
    """

    def __init__(
        self, state: RunState, head: Head, before: Head, reason: str, price: float | None = None
    ) -> None:
        self.state, self.store = state, state.store
        self.epoch = head.epoch
        self.before = before
        self.reason = reason
        self.heartbeat = Heartbeat(state, head.epoch, head.claims[0].owner, self._lose)
        self._session = head.claims[0].owner.session
        self._price, self._spent = price, head.spent
        self._started = state.clock.monotonic()
        self._store_clock, self._clock_lock = StoreClock(state.clock, state.store), threading.Lock()
        self.head = head
        self._lock = threading.Lock()
        self._fenced: Fenced | None = None

    def store_now(self) -> float:
        """Return Unix seconds by the store's clock, or by this machine's if the store has none.

        Other machines decide by it when to delete what this owner has marked: a clock that is an
        hour behind would give readers no time. The call may take as long as a store's retries.
        """
        with self._clock_lock:
            return self._store_clock.now()

    def check(self) -> None:
        """Raise `Fenced` if the heartbeat or a commit has found another owner. This makes no
        request."""
        if self._fenced is not None:
            raise self._fenced

    def confirm(self) -> None:
        """Raise `Fenced` if HEAD has another owner by now. Raises `StoreError`.

        A process that was stopped for a while calls this before it changes something outside the
        store, and after an error that another owner may have caused.
        """
        present, _ = self.state.read_for_owner()
        # A worker of this session may own the run under a later epoch.
        if present is None or present.session != self._session:
            self._lose(present)
            raise taken_over(self.state, present, self.epoch)

    def commit(self, change: Callable[[Head], Head]) -> Head:
        """Apply `change` to HEAD under this epoch and return the new HEAD.

        After a conflict, `change` is called again on the newer HEAD. Once another process has
        claimed the run, this and every later call raise `Fenced`. Raises `StoreError` when the
        store is down.
        """
        with self._lock:
            self.check()
            write_id = uuid.uuid4().hex
            while True:
                present, version = self.state.read_for_owner()
                if present is not None and write_id in present.write_ids:
                    return present  # a write that looked failed has landed
                if present is None or present.epoch != self.epoch:
                    self._fenced = taken_over(self.state, present, self.epoch)
                    raise self._fenced
                head = dataclasses.replace(change(present), spent=self.spent).signed(write_id)
                if len(head.checkpoints) > len(present.checkpoints):  # leave room for what must be
                    head.refuse_unreadable(f"{self.state.url}/HEAD.json", SHARE_OF_CHECKPOINTS)
                if self.state.swap(head, version, write_id):
                    self.head = head
                    return head

    @property
    def spent(self) -> Spent:
        """What the run has cost so far."""
        clock = self.state.clock
        return self._spent.plus(clock.monotonic() - self._started, self._price, clock.now())

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
        """Record `stages` as not begun. Their files are deleted an hour later."""
        now = self.store_now()
        return self.commit(lambda head: head.without_stages(stages, now))

    def set_restore(self, stage: str, step: int) -> Head:
        """Record that `stage` continues from `step` (0: its start) under this epoch.

        Checkpoints of later steps are no longer listed, and readers of metrics ignore the rows of
        later steps.
        """
        now = self.store_now()
        return self.commit(lambda head: head.restored(stage, step, now))

    def set_job(self, digest: str) -> Head:
        """Record the job file that this run now follows."""
        return self.commit(lambda head: dataclasses.replace(head, job=digest))

    def release(self, *, forget_attempts: bool = False) -> None:
        """Release the run, so that any process may claim it at once. After this, `commit` fails.

        `forget_attempts` resets the count of attempts without a commit. Does nothing if another
        process is known to own the run.
        """
        self.heartbeat.stop()
        if self._fenced is not None:
            return

        def released(head: Head) -> Head:
            progress = self.epoch if forget_attempts else head.committed_epoch
            return dataclasses.replace(head, owner=None, committed_epoch=progress)

        self.commit(released)
        self._fenced = Fenced(f"This process has already released run {self.state.name}.")

    def forget_attempts(self) -> None:
        """Reset the count of attempts without a commit."""
        self.commit(lambda head: dataclasses.replace(head, committed_epoch=self.epoch))

    def _lose(self, head: Head | None) -> None:
        """Refuse every further commit: `head` shows that another process owns the run."""
        self._fenced = self._fenced or taken_over(self.state, head, self.epoch)


def taken_over(state: RunState, head: Head | None, epoch: int | None = None) -> Fenced:
    """Return the error for a process whose run another process took over, as `head` shows."""
    where = f"Run {state.name}"
    if head is None or not head.claims:
        return Fenced(
            f"{where} is no longer in {state.store.url}: it was deleted, moved or renamed. This "
            "process has stopped. To continue a run that was moved, move it back and run the same "
            "command again. It resumes from its last commit."
        )
    newest = head.claims[0]
    mine = f"; this process had epoch {epoch}" if epoch is not None else ""
    return Fenced(
        f"{where} was taken over by {newest.owner.describe()} at {moment(newest.at)} (epoch "
        f"{newest.epoch}{mine}). This process has stopped, and will write nothing more. "
        "Everything it committed is kept. To move the run back to this machine, run the same "
        "command with --take-over."
    )


def claim_run(
    state: RunState,
    me: Owner,
    *,
    take_over: bool = False,
    unattended: bool = False,
    price: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Claim:
    """Claim the run under the next epoch. Create the run if it does not exist.

    This succeeds at once when `may_take_over` finds a reason or a person gave `take_over`.
    Otherwise an `unattended` start waits until the owner has shown no sign of life for
    `state.silence` seconds, by this machine's clock. A start by a person raises `BadInput` instead,
    with the owner of the run; so does `refuse_remains`. `price` is what this machine costs, in
    dollars per hour.
    """
    write_id = uuid.uuid4().hex
    silent_version: str | None = None
    waited_for = 0
    while True:
        before, version = _read(state)
        reason = may_take_over(before.owner, me)
        if reason is None and take_over:
            reason = "told to take over"
        if reason is None and version == silent_version:
            reason = f"no sign of life for {state.silence:.0f} s"
        if reason is None:
            if not unattended:
                raise BadInput(_refusal(state, before, me))
            if before.epoch != waited_for:
                waited_for = before.epoch
                say(f"{_owned_by(state, before)}. Waiting until the owner shows no sign of life.")
            _wait_for_silence(state, before, version, me)
            silent_version = version
            continue
        head = before.claimed(me, state.clock.now(), price).signed(write_id)
        if state.swap(head, version, write_id):
            return Claim(state, head, before, reason, price)


def refuse_owned(state: RunState, head: Head, me: Owner) -> None:
    """Raise BadInput, as `claim_run` does for a start by a person, if only a person may take the
    run over. `head` is a HEAD of the run; this makes no request."""
    if may_take_over(head.owner, me) is None:
        raise BadInput(_refusal(state, head, me))


def claim_again(state: RunState, me: Owner, *, price: float | None = None) -> Claim:
    """Claim the run under the next epoch, because a process of this session owned it last.

    Raises `Fenced` if another session has claimed the run since. `price` is what this machine
    costs, in dollars per hour.
    """
    write_id = uuid.uuid4().hex
    while True:
        before, version = _read(state)
        if before.session != me.session:
            raise taken_over(state, before)
        head = before.claimed(me, state.clock.now(), price).signed(write_id)
        if state.swap(head, version, write_id):
            reason = may_take_over(before.owner, me)
            assert reason is not None, "if there is an owner, the owner is in this session"
            return Claim(state, head, before, reason, price)


def _read(state: RunState) -> tuple[Head, str | None]:
    """Return HEAD and its version. Raises BadInput if only HEAD of a run is gone."""
    present, version = state.read_versioned()
    if present is None:
        refuse_remains(state)
    return present or Head(), version


def _wait_for_silence(state: RunState, head: Head, version: str | None, me: Owner) -> None:
    """Block until the heartbeat has not changed for `state.silence` seconds, HEAD has changed, or
    the owner is known to be dead."""
    beat = Unchanged(state.clock)
    while beat.seconds(state.heartbeat(head.epoch)) < state.silence:
        state.clock.sleep(_POLL_SECONDS)
        if state.read_versioned()[1] != version or may_take_over(head.owner, me):
            return


def _owned_by(state: RunState, head: Head) -> str:
    assert head.owner is not None
    when = moment(head.claims[0].at)
    return f"{head.owner.describe()} has owned run {state.name} since {when} (epoch {head.epoch})"


def _refusal(state: RunState, head: Head, me: Owner) -> str:
    assert head.owner is not None
    if is_running(head.owner, me) and is_suspended(head.owner.pid):
        return (
            f"{_owned_by(state, head)}. That process is suspended (Ctrl-Z). Nothing was started. "
            f"To continue it, type `fg` in its terminal, or: kill -CONT {head.owner.pid}"
        )
    alive = (
        "That process is running."
        if is_running(head.owner, me)
        else "This machine can't tell whether that process is still running."
    )
    return (
        f"{_owned_by(state, head)}. {alive} Nothing was started. Stop that process there first, or "
        "run the same command with --take-over. The process then stops by itself. Everything "
        "that it has committed is kept."
    )
