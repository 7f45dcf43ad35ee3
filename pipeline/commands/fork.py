"""`pion fork`: make a new run that continues from a checkpoint of another run.

Everything that the new run needs is copied, but for prepared data that the runs of a store share
anyway. So either run may be deleted.
HEAD is written last: an interrupted fork leaves no run behind, and the same command completes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput, PionError, told
from pipeline.console.formats import show, size
from pipeline.job import STAGES, Job
from pipeline.models.bring import refuse_replaced, with_renamed_base
from pipeline.run.done_and_changed_stages import work_left
from pipeline.state.checkpoints.hold import hold
from pipeline.state.checkpoints.layout import MANIFEST, checkpoint_key, parse_manifest
from pipeline.state.checkpoints.restore import check_entry
from pipeline.state.find_run import open_run, read_run, refuse_remains
from pipeline.state.head import SHARED, CheckpointEntry, Head, data_key
from pipeline.state.owner import Owner
from pipeline.state.record_json import finite_json, parse, to_json
from pipeline.state.rows.metrics import read_metrics
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import copy_bases
from pipeline.state.shared.find_or_prepare import find_or_prepare, is_there
from pipeline.state.shared.folder import REFERENCE_FILE, Overtaken, complete
from pipeline.state.shared.records import Writer, read_state
from pipeline.state.stores import Missing, StoreError
from pipeline.state.stores.errors import before_work, verdict
from pipeline.state.workspace import (
    Workspace,
    listed_files,
    scratch_workspace,
)

# The epoch under which the fork command owns the new run until it releases it.
EPOCH = 1
ROWS_PER_SEGMENT = 20_000


def check_data(target: RunState, forked: Head) -> None:
    """Raise PionError if shared data was deleted before HEAD listed it: its user had dropped it."""
    for key in sorted(set(forked.data.values())):
        _, fingerprint, folder = key.split("/")
        if not is_there(target.store, fingerprint, folder):
            raise PionError(
                f"{target.url} was made, but its prepared data {fingerprint[:12]} has just been "
                "deleted. Its weights are safe. Prepare the data again: pion run JOB "
                f"name={target.name} --redo prepare"
            )


def fork(run: str, new: str, *, at: int | None, stage: str | None) -> None:
    """Copy the run called `run` as the run called `new`; see `fork_run`.

    `new` is a name in the store of `run`, or `<store-url>/<name>`.
    """
    with before_work("Nothing was forked."):
        state, head = read_run(run)
    target = open_run(new) if "/" in new else RunState(state.store, new)
    entry = fork_run(state, head, target, at=at, stage=stage, say=show)
    show(
        f"created {target.url} from {state.name} at {entry.stage} step {entry.step:,}. "
        f"To train it: pion run JOB name={target.name}"
        + ("" if target.store.url == state.store.url else f" store={target.store.url}")
        + _published_elsewhere(head, target.name)
        + " [key=value …]"
    )


def _published_elsewhere(head: Head, name: str) -> str:
    """Return the override with which the fork `name` leaves its source's published model alone."""
    record = head.stages.get("publish")
    to = None if record is None else record.result.get("target")
    return f" publish.to={to.rstrip('/')}-{name}" if isinstance(to, str) else ""


def fork_run(
    source: RunState,
    head: Head,
    target: RunState,
    *,
    at: int | None = None,
    stage: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> CheckpointEntry:
    """Make `target` a separate run that continues from a checkpoint of `source`, and return it.

    The checkpoint is the one of step `at` (default: the newest) of `stage` (default: the stage that
    has it). The metrics of its stage up to that step, the finished stages before it, the prepared
    data and their descriptions are copied too. The checkpoint's stage is unfinished in `target`,
    even if `at` was its last step. Raises BadInput if there is no such checkpoint, if it is
    damaged, or if `target` exists.
    """
    _refuse_to_overwrite(target)
    chosen = choose(source, head, at, stage)
    if target.store.url != source.store.url:
        with before_work("Nothing was forked."):
            if note := target.store.probe(target.key("")):
                say(note)
    try:
        forked = _Copy(source, target, say).run(head, chosen)
        write_id = uuid.uuid4().hex
        if target.swap(dataclasses.replace(forked, write_ids=(write_id,)), None, write_id):
            check_data(target, forked)
            return forked.checkpoints[0]
    except Missing as error:
        raise PionError(
            f"{error} {source.name} is running and has just removed this file. Nothing was "
            "forked. Run the same command again."
        ) from error
    except StoreError as error:
        safe = (
            f"The copy is incomplete, so it is not a run yet. {source.name} is unchanged. The same "
            "command completes the copy."
        )
        raise verdict(error, PionError, safe) from error
    raise BadInput(
        f"{target.store.url}/{target.name} has just been started by someone else. Give the fork "
        "a different name."
    )


def fork_for(job: Job, source: RunState, target: RunState, *, at: int, stage: str) -> None:
    """Make `target` a run that `job` continues, as `fork_run` does.

    Raises BadInput also if the checkpoint was trained in another way than the job's.
    """
    head = source.read() or Head()
    chosen = choose(source, head, at, stage)
    with told(f"{source.name} can't be continued. Its ", "\nNothing was forked."):
        forked = Head(checkpoints=(chosen,), forked=chosen.key)
        work_left(job, source, job_path=None, forked=forked)
    fork_run(source, head, target, at=at, stage=stage)


def _refuse_to_overwrite(target: RunState) -> None:
    """Raise BadInput if the run exists, or is left without HEAD by more than a cut fork."""
    with before_work("Nothing was forked."):
        head = target.read()
        if head is None:
            refuse_remains(target, but_of_epoch=EPOCH)
    if head is not None:
        raise BadInput(
            f"{target.store.url}/{target.name} exists already. Nothing was changed. Give the fork "
            "a different name."
        )


def choose(source: RunState, head: Head, at: int | None, stage: str | None) -> CheckpointEntry:
    """Return the checkpoint to fork at, or raise BadInput with a list of the checkpoints."""
    entries = [
        entry
        for entry in head.checkpoints  # newest first
        if stage in (None, entry.stage) and at in (None, entry.step) and entry.stage in STAGES
    ]
    if not entries:
        listed = ", ".join(f"{e.stage} {e.step:,}" for e in head.checkpoints) or "none"
        wanted = f"{f' of {stage}' if stage else ''}{f' at step {at:,}' if at is not None else ''}"
        raise BadInput(f"{source.name} has no checkpoint{wanted}. Its checkpoints are: {listed}.")
    stages = sorted({entry.stage for entry in entries}, key=STAGES.index)
    if at is not None and len(stages) > 1:
        raise BadInput(
            f"{source.name} has a checkpoint at step {at:,} of {' and of '.join(stages)}. "
            "Choose one with --stage."
        )
    return entries[0]


@dataclass(frozen=True)
class _Copy:
    """Copies what a fork needs."""

    source: RunState
    target: RunState
    say: Callable[[str], None]

    def run(self, head: Head, chosen: CheckpointEntry) -> Head:
        """Copy everything and return the HEAD of the new run."""
        hold(self.source.store, self.source.key(chosen.key))
        before = [s for s in STAGES[: STAGES.index(chosen.stage)] if s in head.stages]
        self._copy_descriptions()
        copy_bases(self.source, self.target)
        data = self._copy_data(head)
        now = self.target.clock.now()
        # The time of this process before the fork is not the fork's: `pion try` forks many runs.
        owner = dataclasses.replace(Owner.me(), started_at=now)
        new = Head(job=head.job).claimed(owner, now)
        listed = {entry.key: entry for entry in head.checkpoints}
        keys: dict[str, str] = {}  # of copied checkpoints: the old key, and the new one
        for stage in before:
            record = head.stages[stage]
            if record.checkpoint is not None:
                if record.checkpoint not in listed:
                    raise BadInput(
                        f"{self.source.name} can't be forked: its HEAD does not list "
                        f"{record.checkpoint}, the end of {stage}. Nothing was forked."
                    )
                entry = self._copy_checkpoint(listed[record.checkpoint], keys)
                new = new.with_checkpoint(entry)
                keys[record.checkpoint] = entry.key
                record = dataclasses.replace(record, checkpoint=entry.key)
                rows = read_metrics(self.source.store, self.source.name, head, stage)
                self._write_rows(f"metrics/{stage}", rows)
            new = new.with_stage(stage, record)
        entry = self._copy_checkpoint(chosen, keys)
        new = new.with_checkpoint(entry)
        rows = read_metrics(self.source.store, self.source.name, head, chosen.stage)
        rows = [row for row in rows if row["step"] <= chosen.step]
        self._write_rows(f"metrics/{chosen.stage}", rows)
        self._write_event(chosen, now)
        skipped_before = {stage: head.skipped[stage] for stage in before if stage in head.skipped}
        skipped_rows = [
            rows for rows in head.skipped.get(chosen.stage, ()) if rows.step <= chosen.step
        ]
        return dataclasses.replace(
            new.with_data(data),
            owner=None,
            forked=entry.key,
            skipped=skipped_before | ({chosen.stage: tuple(skipped_rows)} if skipped_rows else {}),
        )

    def _copy_data(self, head: Head) -> dict[str, str]:
        """Copy the data that the finished `prepare` made; return the keys of what is shared, by
        part. Raises PionError if data is missing."""
        if self.target.store.url == self.source.store.url:
            return dict(head.data)
        return {part: self._share_data(key) for part, key in sorted(head.data.items())}

    def _share_data(self, key: str) -> str:
        """Share data of the source's store in the target's, unless it is there; return its key."""
        _, fingerprint, folder = key.split("/")
        made_by = read_state(self.source.store, fingerprint)[0].sources

        def waiting(writer: Writer, seconds: float) -> None:
            self.say(f"waiting for run {writer.run} on {writer.host}, which makes the same data")

        while True:
            again = self._has_other_sums(key)
            begun = find_or_prepare(
                self.target, fingerprint, EPOCH, Owner.me(), waiting, again=again
            )
            if not isinstance(begun, Writer):
                return data_key(fingerprint, begun)
            files = Workspace(self.source.store, SHARED).bring(f"{fingerprint}/{folder}")
            if not any((files / name).is_file() for name in ("dataset.json", REFERENCE_FILE)):
                raise PionError(
                    f"The prepared data in {files} is not complete. Nothing was forked. Prepare it "
                    f"again first: pion run JOB name={self.source.name} --redo prepare."
                )
            self.say(f"copying prepared data {fingerprint[:12]}")
            with contextlib.suppress(Overtaken):
                done = complete(self.target, fingerprint, begun, files, made_by)
                if not self._has_other_sums(key):
                    return data_key(fingerprint, done)

    def _has_other_sums(self, key: str) -> bool:
        """Return whether the target's store has a reference by the same fingerprint, but with other
        sums, as another machine computes them. The checkpoint belongs to the source's."""
        _, fingerprint, _ = key.split("/")
        folder = read_state(self.target.store, fingerprint)[0].folder
        if folder is None:
            return False
        ours = _sums_in(self.source, key)
        return ours is not None and ours != _sums_in(self.target, data_key(fingerprint, folder))

    def _copy_descriptions(self) -> None:
        """Copy the job files, the inputs that were kept, and what the stages' digests are of."""
        store = self.source.store
        folders = ("jobs/", "inputs/", "stages/")
        entries = [entry for each in folders for entry in store.list(self.source.key(each))]
        for entry in entries:
            path = entry.key.removeprefix(self.source.key(""))
            if path.count("/") == (2 if path.startswith("stages/") else 1):
                self.target.store.write(self.target.key(path), store.read(entry.key, entry.size))

    def _copy_checkpoint(self, entry: CheckpointEntry, keys: Mapping[str, str]) -> CheckpointEntry:
        """Verify the checkpoint and copy it, under the fork's epoch, with an adapter's base by its
        new key of `keys`."""
        self.say(f"copying {entry.stage} step {entry.step:,}: {size(entry.bytes)}")
        copied = dataclasses.replace(
            entry,
            epoch=EPOCH,
            key=checkpoint_key(entry.stage, entry.step, EPOCH),
            ancestor=None,
        )
        with scratch_workspace(Workspace(self.source.store, self.source.name)) as workspace:
            problem = check_entry(workspace, entry)
            if problem is not None:
                refuse_replaced(self.source, entry.key)
                raise BadInput(
                    f"The checkpoint {entry.key} of {self.source.name} can't be forked: {problem}. "
                    f"Nothing was forked. Fork at a different checkpoint: `pion checkpoints "
                    f"{self.source.name} --verify` shows which are good."
                )
            path = self.source.key(f"{entry.key}/{MANIFEST}")
            where = f"{self.source.store.url}/{path}"
            described = parse_manifest(self.source.store.read(path), where)
            files = listed_files(described, where)
            key = self.target.key(copied.key)
            files, changed = with_renamed_base(workspace.folder(entry.key), files, keys)
            for name in files:
                content = changed.get(name, workspace.folder(entry.key) / name)
                self.target.store.write(f"{key}/{name}", content)
        listed = {name: {"size": length, "sha256": sha} for name, (length, sha) in files.items()}
        manifest = {**described, "epoch": EPOCH, "ancestor": None, "files": listed}
        self.target.store.write(f"{key}/{MANIFEST}", to_json(manifest).encode())
        sizes = {found.key: found.size for found in self.target.store.list(key + "/")}
        wrong = [n for n, (length, _) in files.items() if sizes.get(f"{key}/{n}") != length]
        if wrong:
            raise PionError(
                f"{self.target.store.url}/{key}: {', '.join(wrong)} were not copied completely. "
                "Nothing was forked. Run the same command again."
            )
        return copied

    def _write_event(self, chosen: CheckpointEntry, now: float) -> None:
        event = {
            "event": "forked",
            "from": f"{self.source.store.url}/{self.source.name}",
            "stage": chosen.stage,
            "at_step": chosen.step,
            "checkpoint": chosen.key,
            "model_sha256": chosen.model_sha256,
            "at": now,
        }
        self._write_rows("events", [event])

    def _write_rows(self, log: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the first segments of a log, under the fork's epoch, so that a later epoch can
        rewind rows. A repeated fork writes the same segments again."""
        for number, start in enumerate(range(0, len(rows), ROWS_PER_SEGMENT)):
            some = rows[start : start + ROWS_PER_SEGMENT]
            data = "".join(finite_json({**row, "epoch": EPOCH}) + "\n" for row in some).encode()
            self.target.store.write(self.target.key(f"{log}/{EPOCH}/{number:06d}.jsonl"), data)


def _sums_in(run: RunState, key: str) -> Any:
    """Return the hashes of the sums in a shared folder; None if it has no reference."""
    where = f"{key}/{REFERENCE_FILE}"
    try:
        return parse(run.store.read(where), f"{run.store.url}/{where}").get("files")
    except Missing:
        return None
