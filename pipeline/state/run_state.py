"""A run in a store: read its HEAD, and swap it.

HEAD.json decides everything, and it changes only by compare-and-swap.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired, TypeVar

from annotated_types import Predicate
from typing_extensions import TypedDict

from pion.untrusted import LARGEST_JOB
from pipeline.machine.kill_points import mark
from pipeline.state.head import BeingRemoved, Head
from pipeline.state.record_file import RecordFile
from pipeline.state.record_json import (
    Count,
    Number,
    Sha256,
    Time,
    build,
    damaged,
    open_record,
    parse_record,
    to_json,
)
from pipeline.state.stores import Missing, Store, write_once
from pipeline.state.stores.base import check_run_name, read_all
from pipeline.state.stores.clock import Clock

T = TypeVar("T")

SILENCE_SECONDS = 60.0
# The same on a store without heartbeats, where only commits show that an owner is alive.
COMMIT_SILENCE_SECONDS = 1800.0


class Progress(TypedDict):
    """What the owner last reported. `pion status` shows it."""

    stage: NotRequired[str | None]
    step: NotRequired[Count]
    steps: NotRequired[Count | None]
    loss: NotRequired[Number]
    tokens_per_second: NotRequired[Number]


@open_record
class Beat(TypedDict):
    """A heartbeat: when it was written, and what the owner reported."""

    at: Time
    beat: NotRequired[Count]
    status: NotRequired[Progress]


@open_record
class StageInputs(TypedDict):
    """The data from which a stage's digest was computed."""

    inputs: Mapping[str, Any]


# Where a run says what it has kept of its inputs. Next to it are the files, by their sha256.
INPUTS = "inputs/files.json"
# The files that a path of the job means, by their names below the folder that the path is in: the
# sha256 of each.
Content = Mapping[
    Annotated[str, Predicate(lambda name: name[:1] != "/" and ".." not in name.split("/"))], Sha256
]


@open_record
class KeptInputs(TypedDict):
    """What paths of the job mean for a run."""

    inputs: Mapping[str, Content]


class RunState:
    """The run called `name` in `store`. Read it here; claim it (claim.py) to change it."""

    def __init__(self, store: Store, name: str, clock: Clock | None = None) -> None:
        self.store = store
        self.name = check_run_name(name)
        self.clock = clock or Clock()
        self._head = RecordFile(
            store,
            self.key("HEAD.json"),
            Head.from_json,
            Head.to_json,
            advice="Restore this file from a backup. The run's checkpoints are not affected.",
        )

    @property
    def url(self) -> str:
        """The run's full name, which works on any machine: `s3://bucket/runs/demo`."""
        return f"{self.store.url}/{self.name}"

    def key(self, path: str) -> str:
        """Return the store's key of `path` in this run's folder."""
        return f"{self.name}/{path}"

    def read(self) -> Head | None:
        """Return HEAD as it is now, or None if the run does not exist.

        Raises `BadInput` if HEAD is damaged or of another format version.
        """
        return self.read_versioned()[0]

    def read_versioned(self) -> tuple[Head | None, str | None]:
        """Return HEAD and its version in the store."""
        return self._head.read()

    def swap(self, head: Head, version: str | None, write_id: str) -> bool:
        """Replace `version` of HEAD; return False if the store has another version.

        `write_id`, in `head`'s history, distinguishes a lost acknowledgement from a lost race.
        Raises `BadInput` for a HEAD that nobody could read.
        """
        head.refuse_unreadable(f"{self.url}/HEAD.json")
        mark("commit")
        swapped = self._head.swap(head, version, lambda present: write_id in present.write_ids)
        if swapped:
            mark("commit")
        return swapped

    def heartbeat(self, epoch: int) -> Beat | None:
        """Return the last heartbeat of that epoch's owner.

        Returns None if there is none that can be read: a heartbeat is a courtesy and must not end a
        command.
        """
        return self._file(heartbeat_path(epoch), Beat).read_if_readable()[0]

    def heartbeats(self, epochs: Sequence[int]) -> dict[int, Beat]:
        """Return the last heartbeats of the owners of these epochs, without those that `heartbeat`
        does not return. They are read side by side."""
        beats = zip(epochs, read_all(self.heartbeat, epochs))
        return {epoch: beat for epoch, beat in beats if beat is not None}

    def write_job(self, digest: str, text: str) -> None:
        """Store the job file under its `digest`."""
        write_once(self.store, self.key(f"jobs/{digest}.yaml"), text.encode())

    def read_job(self, digest: str) -> str | None:
        """Return the job file with that digest; None if the store does not have it.

        Raises `Damaged` if it is not a text of at most 1 MiB.
        """
        key = self.key(f"jobs/{digest}.yaml")
        try:
            return self.store.read(key, LARGEST_JOB).decode()
        except Missing:
            return None
        except UnicodeDecodeError as error:
            raise damaged(f"{self.store.url}/{key}", f"it is not UTF-8 ({error})") from None

    def write_stage(self, stage: str, digest: str, description: Mapping[str, Any]) -> None:
        """Store the data that a stage's digest was computed from, to show differences later."""
        write_once(
            self.store,
            self.key(f"stages/{stage}/{digest}.json"),
            to_json(description).encode(),
        )

    def read_stage(self, stage: str, digest: str) -> StageInputs | None:
        """Return the data that the stage's digest was computed from; None if it is not stored.

        Raises `Damaged`.
        """
        return self._file(f"stages/{stage}/{digest}.json", StageInputs).read()[0]

    def read_inputs(self) -> Mapping[str, Content]:
        """Return what the run has kept of the job's inputs, by their paths. Raises `Damaged`."""
        record = self._file(INPUTS, KeptInputs).read()[0]
        return record["inputs"] if record else {}

    def read_for_owner(self) -> tuple[Head | None, str | None]:
        """Return HEAD and its version; (None, None) also if the run is being removed."""
        try:
            return self.read_versioned()
        except BeingRemoved:
            return None, None

    @property
    def silence(self) -> float:
        """The seconds without a sign of life after which an owner is presumed dead."""
        return COMMIT_SILENCE_SECONDS if self.store.commits else SILENCE_SECONDS

    def _file(self, path: str, kind: type[T]) -> RecordFile[T]:
        """Return a record without a format version."""
        return RecordFile(
            self.store, self.key(path), lambda data, at: build(kind, parse_record(data, at), at)
        )


def heartbeat_path(epoch: int) -> str:
    """Return where the owner of that epoch writes its heartbeat, relative to the run."""
    return f"owner/{epoch}.json"


# The part of an evaluation with the scores of single questions and documents.
BY_ITEM = "by_item"


def part_path(digest: str, name: str) -> str:
    """Return where a part of an evaluation is kept, relative to the run. `digest` is that of the
    evaluate stage."""
    return f"stages/evaluate/{digest}-parts/{name}.json"
