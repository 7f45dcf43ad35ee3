"""What HEAD.json says: plain frozen records, their JSON, and the changes a commit can make.

Times are Unix seconds. Keys are relative to the run's folder in the store.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pion.errors import BadInput
from pipeline.state.owner import Owner

FORMAT = 1
CLAIMS_KEPT = 64
WRITE_IDS_KEPT = 64
TRASH_SECONDS = 3600.0

Record = TypeVar("Record")


class Damaged(BadInput):
    """A record can't be read, though not because a newer pion wrote it."""


@dataclass(frozen=True)
class ClaimRecord:
    """Who claimed the run under which epoch, and when."""

    epoch: int
    at: float
    owner: Owner


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: its digest, its last checkpoint's key (if it trains), what it reports."""

    digest: str
    at: float
    checkpoint: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointEntry:
    """A committed checkpoint, complete and verified when it was listed."""

    stage: str
    step: int
    epoch: int
    digest: str
    key: str
    at: float
    bytes: int
    model_sha256: str
    ancestor: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trash:
    """A folder no longer listed; its files may be deleted from `not_before` on."""

    key: str
    not_before: float


@dataclass(frozen=True)
class Head:
    """The one decision-maker of a run. `checkpoints` and `claims` are newest first.

    `restores` maps an epoch to the step each stage went on from under it. `committed_epoch` is the
    last epoch that committed progress, a checkpoint or a finished stage.
    """

    epoch: int = 0
    owner: Owner | None = None
    job: str | None = None
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    checkpoints: tuple[CheckpointEntry, ...] = ()
    restores: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    claims: tuple[ClaimRecord, ...] = ()
    committed_epoch: int = 0
    trash: tuple[Trash, ...] = ()
    write_ids: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def attempts_without_commit(self) -> int:
        """Claims in a row, the present one included, that have committed no progress."""
        return self.epoch - self.committed_epoch

    def claimed(self, me: Owner, at: float) -> "Head":
        """The next epoch, owned by `me`."""
        epoch = self.epoch + 1
        claims = (ClaimRecord(epoch, at, me), *self.claims)[:CLAIMS_KEPT]
        return dataclasses.replace(self, epoch=epoch, owner=me, claims=claims)

    def with_checkpoint(self, entry: CheckpointEntry) -> "Head":
        """`entry` listed as the newest checkpoint."""
        others = tuple(other for other in self.checkpoints if other.key != entry.key)
        return dataclasses.replace(
            self,
            checkpoints=(entry, *others),
            trash=tuple(item for item in self.trash if item.key != entry.key),
            committed_epoch=self.epoch,
        )

    def with_stage(self, stage: str, record: StageRecord) -> "Head":
        """`stage` finished."""
        stages = {**self.stages, stage: record}
        return dataclasses.replace(self, stages=stages, committed_epoch=self.epoch)

    def with_metrics(self, key: str, metrics: Mapping[str, float]) -> "Head":
        """Checkpoint `key` listed with these results."""
        checkpoints = tuple(
            dataclasses.replace(entry, metrics=metrics) if entry.key == key else entry
            for entry in self.checkpoints
        )
        return dataclasses.replace(self, checkpoints=checkpoints)

    def with_digest(self, stage: str, old: str, new: str) -> "Head":
        """Checkpoints of `stage` made under digest `old` count under `new`: both lead to them."""
        checkpoints = tuple(
            dataclasses.replace(entry, digest=new)
            if (entry.stage, entry.digest) == (stage, old)
            else entry
            for entry in self.checkpoints
        )
        return dataclasses.replace(self, checkpoints=checkpoints)

    def without_stages(self, stages: Collection[str], now: float) -> "Head":
        """`stages` not begun: neither their results nor their checkpoints are listed."""
        kept = {stage: record for stage, record in self.stages.items() if stage not in stages}
        dropped = [entry.key for entry in self.checkpoints if entry.stage in stages]
        return dataclasses.replace(self, stages=kept).without_checkpoints(dropped, now)

    def without_checkpoints(self, keys: Collection[str], now: float) -> "Head":
        """`keys` unlisted now, their files to be deleted an hour later."""
        kept = tuple(entry for entry in self.checkpoints if entry.key not in keys)
        return dataclasses.replace(self, checkpoints=kept).with_trash(keys, now)

    def with_trash(self, keys: Collection[str], now: float) -> "Head":
        """Folders `keys` noted for deletion an hour later, those that nothing lists any more."""
        known = {item.key for item in self.trash} | self.listed()
        new = (Trash(key, now + TRASH_SECONDS) for key in keys if key not in known)
        return dataclasses.replace(self, trash=(*self.trash, *new))

    def restored(self, stage: str, step: int, now: float) -> "Head":
        """`stage` goes on from `step` under this epoch; its later checkpoints are rewound."""
        mine = {**self.restores.get(self.epoch, {}), stage: step}
        rewound = [
            entry.key for entry in self.checkpoints if entry.stage == stage and entry.step > step
        ]
        restores = {**self.restores, self.epoch: mine}
        return dataclasses.replace(self, restores=restores).without_checkpoints(rewound, now)

    def listed(self) -> set[str]:
        """Keys of the checkpoints that must not be deleted."""
        finished = {record.checkpoint for record in self.stages.values() if record.checkpoint}
        return finished | {entry.key for entry in self.checkpoints}

    def to_json(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Head":
        """Read HEAD.json. Raises `BadInput` if it is damaged or of another format version."""
        raw = parse(data, where)
        raw["owner"] = raw.get("owner") and build(Owner, raw["owner"], where)
        raw["stages"] = {
            stage: build(StageRecord, record, where)
            for stage, record in raw.get("stages", {}).items()
        }
        raw["checkpoints"] = tuple(
            build(CheckpointEntry, entry, where) for entry in raw.get("checkpoints", ())
        )
        raw["restores"] = {int(epoch): steps for epoch, steps in raw.get("restores", {}).items()}
        raw["claims"] = tuple(
            build(ClaimRecord, {**claim, "owner": build(Owner, claim["owner"], where)}, where)
            for claim in raw.get("claims", ())
        )
        raw["trash"] = tuple(build(Trash, item, where) for item in raw.get("trash", ()))
        raw["write_ids"] = tuple(raw.get("write_ids", ()))
        return build(cls, raw, where)


def parse(data: bytes, where: str) -> dict[str, Any]:
    """A record's JSON object. Raises `Damaged`, or `BadInput` for another format version."""
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise Damaged(
            f"{where} is damaged, it is not JSON ({error}). Nothing was changed."
        ) from error
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        raise Damaged(f"{where} is damaged, it names no format version. Nothing was changed.")
    if raw["format"] != FORMAT:
        raise BadInput(
            f"{where} has format version {raw['format']}; this pion reads version {FORMAT}. "
            "Nothing was changed. Use the pion that wrote it, or update this one."
        )
    return raw


def build(kind: type[Record], raw: Mapping[str, Any], where: str) -> Record:
    """One record from its JSON object. Raises `BadInput` for unknown fields, `Damaged` for
    missing ones."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    unknown = sorted(set(raw) - {item.name for item in fields})
    if unknown:
        raise BadInput(
            f"{where}: this pion (format version {FORMAT}) does not know {', '.join(unknown)} in "
            f"{kind.__name__}; a newer pion wrote it. Nothing was changed. Update this one."
        )
    try:
        return kind(**raw)
    except TypeError as error:
        raise Damaged(f"{where} is damaged: {error}. Nothing was changed.") from error
