"""The content of HEAD.json: plain frozen records, their JSON, and the changes a commit can make.

Times are Unix seconds. Keys are relative to the run's folder in the store. `Claim.commit`
(claim.py) writes the record, through `RunState.swap`.
"""

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Predicate

from pion.errors import BadInput
from pion.untrusted import LARGEST_RECORD
from pipeline.state.owner import Owner
from pipeline.state.record_json import (
    MOST_VALUES,
    Amount,
    Count,
    Epoch,
    Number,
    Time,
    build,
    closed_record,
    count_values,
    damaged,
    finite_json,
    parse,
)
from pipeline.state.stores.base import is_key

CLAIMS_KEPT = 64
WRITE_IDS_KEPT = 64
TRASH_SECONDS = 3600.0
# The start of a process takes less than this.
UNCOUNTED_SECONDS = 3600.0

# Formats 1 to 3 are of commits before 0.1.0. None of the three below may be dropped: 0.1.0 has
# written 4 (tests/runs/test_release_0_1_0.py) and has to refuse 5 to 7, and 0.2.0 has to refuse 7.
HEAD_FORMAT = 4
# The format of HEAD.json while the run is being removed (removal.py). No pion continues such a run.
REMOVING_FORMAT = 5
# The formats of HEAD.json of a run with these stages; the last one counts. Versions that do not
# know the stage would take the model before it for the last one. In memory, it is HEAD_FORMAT.
STAGE_FORMATS = {"prefer": 6, "reinforce": 7}
SHARED = "_data"
# The part of the shared data with the numbers of a reference model. The training workers make it.
REFERENCE = "reference"
_DATA_KEY = re.compile(rf"{SHARED}/[0-9a-f]{{64}}/[0-9a-f]{{32}}")

Key = Annotated[str, Predicate(is_key)]


def data_key(fingerprint: str, folder: str) -> str:
    """Return the key of a folder of shared data, relative to the store."""
    return f"{SHARED}/{fingerprint}/{folder}"


def is_data_key(key: str) -> bool:
    """Return whether `key` could be a result of `data_key`."""
    return _DATA_KEY.fullmatch(key) is not None


DataKey = Annotated[str, Predicate(is_data_key)]


class BeingRemoved(BadInput):
    """A `pion rm` has begun to remove the run."""


@dataclass(frozen=True)
class ClaimRecord:
    """Who claimed the run, under which epoch, and when."""

    epoch: Epoch
    at: Time
    owner: Owner


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: its digest, its checkpoint, and its results.

    The checkpoint is the key of a training stage's last one. Of evaluate, it is the key of the best
    one, where the job asks for that; else None.
    """

    digest: str
    at: Time
    checkpoint: Key | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointEntry:
    """A committed checkpoint, complete and verified when it was listed."""

    stage: str
    step: Count
    epoch: Epoch
    digest: str
    key: Key
    at: Time
    bytes: Count
    model_sha256: str
    ancestor: str | None = None
    metrics: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class SkippedRows:
    """Rows [first, stop) of a stage that are left out because `step` went wrong on them.

    `digest` is the stage's digest: under another digest these numbers may name other rows. `why`
    says what went wrong, and `epoch` is the attempt in which it happened.
    """

    first: Count
    stop: Count
    step: Count
    epoch: Epoch
    digest: str
    why: str
    at: Time


@dataclass(frozen=True)
class Spent:
    """How long processes owned the run, and what that cost as far as prices are known.

    `until` (Unix seconds) is the time of the last count.
    """

    hours: Amount = 0.0
    dollars: Amount = 0.0
    until: Time = 0.0

    def plus(self, seconds: float, price: float | None, until: float) -> "Spent":
        """Add `seconds` at `price` dollars per hour (None: unknown), and return the sum."""
        hours = max(0.0, seconds) / 3600
        return Spent(self.hours + hours, self.dollars + hours * (price or 0.0), until)


@dataclass(frozen=True)
class Trash:
    """A folder that HEAD no longer lists. Its files may be deleted from `not_before` on."""

    key: Key
    not_before: Time


@closed_record
@dataclass(frozen=True)
class Head:
    """The whole state of a run. `checkpoints` and `claims` are newest first.

    Attributes:
        restores: by epoch, the step that each stage continued from.
        committed_epoch: the last epoch that committed progress: a checkpoint, a finished stage, or
            rows that the next attempt leaves out.
        spent: what owning the run has cost on all machines, as of the last commit.
        forked: if this run is a fork, the key of the last checkpoint that was copied.
        skipped: each stage's rows to leave out, oldest first.
        data: by part of the data (a training stage, or REFERENCE), the key of the shared folder
            with it, relative to the store.
    """

    epoch: Epoch = 0
    owner: Owner | None = None
    job: str | None = None
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    checkpoints: tuple[CheckpointEntry, ...] = ()
    restores: Mapping[Epoch, Mapping[str, Count]] = field(default_factory=dict)
    claims: tuple[ClaimRecord, ...] = ()
    committed_epoch: Epoch = 0
    spent: Spent = field(default_factory=lambda: Spent())
    forked: Key | None = None
    skipped: Mapping[str, tuple[SkippedRows, ...]] = field(default_factory=dict)
    trash: tuple[Trash, ...] = ()
    write_ids: tuple[str, ...] = ()
    data: Mapping[str, DataKey] = field(default_factory=dict)
    format: int = HEAD_FORMAT

    @property
    def failed_attempts(self) -> int:
        """The number of attempts to train before the present claim, since the last progress.

        A `pion run` claims once for itself and once for each start of its workers.
        """
        claims = [claim for claim in self.claims if claim.epoch > self.committed_epoch]
        return len(claims) - len({claim.owner.session for claim in claims}) - 1

    @property
    def session(self) -> str | None:
        """The session of the process that claimed the run last; None if nobody has claimed it."""
        return self.claims[0].owner.session if self.claims else None

    def without_trash(self, keys: Collection[str]) -> "Head":
        """Return HEAD without the trash `keys`. Their files have been deleted."""
        return dataclasses.replace(
            self, trash=tuple(item for item in self.trash if item.key not in keys)
        )

    def claimed(self, me: Owner, at: float, price: float | None = None) -> "Head":
        """Return the HEAD of the next epoch, owned by `me` on a machine that costs `price` dollars
        per hour."""
        epoch = self.epoch + 1
        mine = self.session == me.session
        since = self.spent.until if mine else me.started_at
        if self.claims and me.same_machine(self.claims[0].owner):
            since = max(since, self.spent.until)  # this machine's previous process is counted
        seconds = min(at - since, UNCOUNTED_SECONDS)
        if mine and seconds == UNCOUNTED_SECONDS:
            seconds = 0.0  # a session claims again within seconds, so the clock has jumped
        return dataclasses.replace(
            self,
            epoch=epoch,
            owner=me,
            claims=(ClaimRecord(epoch, at, me), *self.claims)[:CLAIMS_KEPT],
            spent=self.spent.plus(seconds, price, at),
        )

    def with_checkpoint(self, entry: CheckpointEntry) -> "Head":
        """Return HEAD with `entry` listed as the newest checkpoint."""
        others = (other for other in self.checkpoints if other.key != entry.key)
        return dataclasses.replace(
            self.without_trash([entry.key]),
            checkpoints=(entry, *others),
            committed_epoch=self.epoch,
        )

    def with_stage(self, stage: str, record: StageRecord) -> "Head":
        """Return HEAD with `stage` finished."""
        return dataclasses.replace(
            self, stages={**self.stages, stage: record}, committed_epoch=self.epoch
        )

    def with_data(self, data: Mapping[str, str]) -> "Head":
        """Return HEAD with these keys of shared data, by part, in place of the former ones."""
        return dataclasses.replace(self, data=dict(data))

    def with_metrics(self, key: str, metrics: Mapping[str, float | None]) -> "Head":
        """Return HEAD with these metrics for the checkpoint `key`."""
        checkpoints = tuple(
            dataclasses.replace(entry, metrics=metrics) if entry.key == key else entry
            for entry in self.checkpoints
        )
        return dataclasses.replace(self, checkpoints=checkpoints)

    @property
    def left_out(self) -> dict[str, list[SkippedRows]]:
        """The skipped rows of each stage that has some. A finished stage has those of its settings,
        and not those of earlier settings, which went wrong."""
        done = {stage: record.digest for stage, record in self.stages.items()}
        return {
            stage: relevant
            for stage, skipped in self.skipped.items()
            if (
                relevant := [
                    rows for rows in skipped if done.get(stage, rows.digest) == rows.digest
                ]
            )
        }

    def with_skipped(self, stage: str, rows: SkippedRows) -> "Head":
        """Return HEAD with `rows` of `stage` left out from now on.

        The rows are recorded only once, although a commit whose acknowledgement was lost is
        repeated.
        """
        if rows in self.skipped.get(stage, ()):
            return self
        return dataclasses.replace(
            self,
            skipped={**self.skipped, stage: (*self.skipped.get(stage, ()), rows)},
            committed_epoch=self.epoch,
        )

    def with_digest(self, stage: str, old: str, new: str) -> "Head":
        """Return HEAD with the checkpoints and skipped rows of `stage` moved from digest `old` to
        `new`.

        Both digests must describe the same training.
        """
        checkpoints = tuple(
            dataclasses.replace(entry, digest=new)
            if (entry.stage, entry.digest) == (stage, old)
            else entry
            for entry in self.checkpoints
        )
        skipped = dict(self.skipped)
        if stage in skipped:
            skipped[stage] = tuple(
                dataclasses.replace(rows, digest=new) if rows.digest == old else rows
                for rows in skipped[stage]
            )
        return dataclasses.replace(self, checkpoints=checkpoints, skipped=skipped)

    def without_stages(self, stages: Collection[str], now: float) -> "Head":
        """Return HEAD without the results, checkpoints and skipped rows of `stages`.

        Saves of these stages that exist only on one machine no longer count either.
        """
        stages_left = {
            stage: record for stage, record in self.stages.items() if stage not in stages
        }
        skipped = {stage: rows for stage, rows in self.skipped.items() if stage not in stages}
        dropped = [entry.key for entry in self.checkpoints if entry.stage in stages]
        head = dataclasses.replace(self, stages=stages_left, skipped=skipped)
        return head._restored(dict.fromkeys(stages, 0)).without_checkpoints(dropped, now)

    def without_checkpoints(self, keys: Collection[str], now: float) -> "Head":
        """Return HEAD without the checkpoints `keys`; their files are deleted an hour later."""
        checkpoints = tuple(entry for entry in self.checkpoints if entry.key not in keys)
        return dataclasses.replace(self, checkpoints=checkpoints).with_trash(keys, now)

    def with_trash(self, keys: Collection[str], now: float) -> "Head":
        """Return HEAD with the unlisted folders among `keys` marked for deletion in an hour."""
        keys_listed = {item.key for item in self.trash} | self.listed()
        new = (Trash(key, now + TRASH_SECONDS) for key in keys if key not in keys_listed)
        return dataclasses.replace(self, trash=(*self.trash, *new))

    def restored(self, stage: str, step: int, now: float) -> "Head":
        """Return HEAD with `stage` continuing from `step` under this epoch, and without its later
        checkpoints."""
        rewound = [
            entry.key for entry in self.checkpoints if entry.stage == stage and entry.step > step
        ]
        return self._restored({stage: step}).without_checkpoints(rewound, now)

    def signed(self, write_id: str) -> "Head":
        """Return HEAD with an id by which its writer recognizes it if the acknowledgement is
        lost."""
        return dataclasses.replace(self, write_ids=(write_id, *self.write_ids)[:WRITE_IDS_KEPT])

    def listed(self) -> set[str]:
        """Return the keys of the checkpoints that must not be deleted."""
        finished = {record.checkpoint for record in self.stages.values() if record.checkpoint}
        return finished | {entry.key for entry in self.checkpoints}

    def _restored(self, steps: Mapping[str, int]) -> "Head":
        """Return HEAD with these steps from which stages continue under this epoch."""
        mine = {**self.restores.get(self.epoch, {}), **steps}
        return dataclasses.replace(self, restores={**self.restores, self.epoch: mine})

    def to_json(self) -> bytes:
        """Return HEAD.json."""
        return self._json

    @functools.cached_property
    def _json(self) -> bytes:
        # A commit measures HEAD before it writes HEAD.
        content = dataclasses.asdict(self)
        if self.format == HEAD_FORMAT:
            formats = (n for stage, n in STAGE_FORMATS.items() if stage in self.data)
            content["format"] = max(formats, default=HEAD_FORMAT)
        return (finite_json(content, indent=1) + "\n").encode()

    def refuse_unreadable(self, where: str, share: float = 1.0) -> None:
        """Raise `BadInput` if HEAD.json would have more than this share of what readers accept."""
        data = self.to_json()
        if count_values(data) > share * MOST_VALUES or len(data) > share * LARGEST_RECORD:
            raise BadInput(
                f"{where} would list {len(self.checkpoints):,} checkpoints, and no pion could read "
                "it any more. Nothing was changed, and everything committed before is safe. Let "
                "the job keep fewer checkpoints (checkpoint.keep.last or checkpoint.keep.every), "
                "and run the same command again."
            )

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Head":
        """Read HEAD.json. Raises `BadInput` if it is damaged or of another format version, and
        `BeingRemoved`."""
        raw = parse(data, where, (HEAD_FORMAT, REMOVING_FORMAT, *STAGE_FORMATS.values()))
        if raw["format"] == REMOVING_FORMAT:
            run = where.removesuffix("/HEAD.json")
            raise BeingRemoved(
                f"{run} is being removed. Nothing was started. To finish: pion rm {run}"
            )
        if raw["format"] in STAGE_FORMATS.values():
            raw["format"] = HEAD_FORMAT
        head = build(cls, raw, where)
        if head.owner is not None and not head.claims:
            raise damaged(where, "it has an owner, but no claims")
        return head
