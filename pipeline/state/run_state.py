"""A run in a store: read its HEAD, swap it, and decide who may own it.

HEAD.json is the only decision-maker and changes only by compare-and-swap.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import moment
from pipeline.kill_points import mark
from pipeline.state.claim import Claim, heartbeat_path, signed, taken_over
from pipeline.state.owner import Owner, is_running, may_take_over
from pipeline.state.records import Head
from pipeline.state.stores import Conflict, Missing, Store, StoreError, write_once
from pipeline.state.stores.base import check_run_name

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

    @property
    def url(self) -> str:
        """What a person calls this run from anywhere: `s3://bucket/runs/demo`."""
        return f"{self.store.url}/{self.name}"

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
        text = self._read_text(heartbeat_path(epoch))
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
        continuing: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> Claim:
        """Own the run under the next epoch, creating it if it does not exist.

        At once when `may_take_over` finds a reason or a person says `take_over`. Otherwise an
        `unattended` start waits until the owner has shown no sign of life for 60 s of its own
        clock (half an hour where only commits are one), and a person's raises `BadInput` saying
        who owns the run. `price` is what this machine costs, in dollars per hour.
        One that is `continuing`, because its session owned the run before, raises `Fenced` if
        somebody else has claimed it since.
        """
        write_id = uuid.uuid4().hex
        silent_version: str | None = None
        waited_for = 0
        while True:
            present, version = self.read_versioned()
            before = present or Head()
            if continuing and not (before.claims and before.claims[0].owner.session == me.session):
                raise taken_over(self, present)
            reason = may_take_over(before.owner, me)
            if reason is None and take_over:
                reason = "told to take over"
            if reason is None and version == silent_version:
                reason = f"no sign of life for {self.silence:.0f} s"
            if reason is None:
                if not unattended:
                    raise BadInput(self._refusal(before, me))
                if before.epoch != waited_for:
                    waited_for = before.epoch
                    say(f"{self._owned_by(before)}; waiting until it shows no sign of life.")
                self._wait_for_silence(before, version, me)
                silent_version = version
                continue
            head = signed(before.claimed(me, self.clock.now(), price), write_id)
            if self.swap(head, version, write_id):
                return Claim(self, head, before, reason, price)

    @property
    def silence(self) -> float:
        """Seconds after which an owner that has shown no sign of life is taken for dead."""
        return COMMIT_SILENCE_SECONDS if self.store.commits else SILENCE_SECONDS

    def _wait_for_silence(self, head: Head, version: str | None, me: Owner) -> None:
        """Until the heartbeat has not changed for 60 s, HEAD has, or the owner is seen to die."""
        seen, since = self._read_text(heartbeat_path(head.epoch)), self.clock.monotonic()
        while self.clock.monotonic() - since < self.silence:
            self.clock.sleep(_POLL_SECONDS)
            if self.read_versioned()[1] != version or may_take_over(head.owner, me):
                return
            beat = self._read_text(heartbeat_path(head.epoch))
            if beat != seen:
                seen, since = beat, self.clock.monotonic()

    def _owned_by(self, head: Head) -> str:
        assert head.owner is not None
        since = f"since {moment(head.claims[0].at)} (epoch {head.epoch})"
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
