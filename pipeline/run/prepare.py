"""The stage `prepare` of a run: find the data in the store, or prepare it there for all its runs.

Data is prepared in the run's own folder, so an interrupted start resumes there, and shared once it
is finished. HEAD lists each part as soon as the part is in the store, before its bytes are brought:
from then on nobody deletes it, however long the download and the other parts take. The data counts
once `prepare` is finished, so the next machine trains on the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, PionError
from pion.usable_cores_and_memory import usable_cores
from pipeline.console.messages import Note, PrepareProgress, Say, Shown
from pipeline.machine.child_process import S3
from pipeline.run.inputs import Start
from pipeline.state.claim import Claim
from pipeline.state.head import REFERENCE, SHARED
from pipeline.state.shared.bases import bring_base
from pipeline.state.shared.find_or_prepare import bind, find_or_prepare
from pipeline.state.shared.folder import Overtaken, bring_data, complete, link_files, own_key
from pipeline.state.shared.prune import mark
from pipeline.state.shared.records import Writer, find_rows, read_state
from pipeline.state.shared.unfinished import EarlyUpload, bring_unfinished, delete_pieces
from pipeline.state.stores import StoreError
from pipeline.state.stores.retry import Patience
from pipeline.state.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.data.tasks import Tasks
    from pipeline.stages.prepare import Prepared

# Said while no piece is finished, because the store is slower than this machine.
WAITS = "waits for uploads"


def prepare_data(start: Start, claim: Claim, say: Say, patiently: Patience) -> dict[str, Any]:
    """Let HEAD list the data of every training stage; return a report of each part.

    Raises BadInput as the stage does, and StoreError.
    """
    data = start.digests.data
    own = {part: start.workspace.folder(own_key(digest)) for part, digest in data.items()}
    again = start.options.redo == "prepare"
    if again:  # what an interrupted start has prepared does not count
        _delete(own.values())
    preparing = _Preparing(start, claim, say, patiently, again)
    ready = {  # each is in HEAD before the next one, and its folder is on this machine
        part: preparing.part(part, folder, preparing.given_tokenizer(part))
        for part, folder in own.items()
    }
    keys = {part: claim.head.data[part] for part in ready}
    if "prefer" in keys and REFERENCE in claim.head.data:
        keys[REFERENCE] = claim.head.data[REFERENCE]  # nobody prepares it here
    if claim.head.data != keys:  # it still lists parts that the job no longer has
        patiently(partial(claim.commit, lambda head: head.with_data(keys)))
    return {part: prepared.report for part, prepared in ready.items()}


def mend_data(start: Start, claim: Claim, say: Say, patiently: Patience) -> None:
    """Check every part of the run's data, also those that only a later stage reads.

    A part that can't be used is prepared again: from the same content come the same shards, so what
    was trained on it stays. Raises PionError if its sources have changed, or are gone.
    """
    for part, digest in start.digests.data.items():
        try:
            patiently(partial(bring_data, start.run, claim.head, part))
        except (BadInput, StoreError):
            raise
        except PionError as damage:
            say(Note(f"{damage} First, the {part} data is prepared once more, and compared"))
            own = start.workspace.folder(own_key(digest))
            _delete([own])
            again = _Preparing(start, claim, say, patiently, again=True, same=claim.head.data[part])
            try:
                again.part(part, own, again.given_tokenizer(part))
            except BadInput as problem:
                raise PionError(f"{damage} It can't be mended: {problem}") from None


def _delete(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Preparing:
    """Prepares the parts of a run's data, one after the other; `again`: also what is there."""

    start: Start
    claim: Claim
    say: Say
    patiently: Patience
    again: bool
    # The key of data that can't be used: the same has to come out.
    same: str = ""
    began: float = field(default_factory=time.monotonic)
    # What uploads the parts so far; the last one is at work.
    uploads: list[EarlyUpload] = field(default_factory=list)

    def given_tokenizer(self, part: str) -> Path | None:
        """Return the tokenizer that a part of the data gets; None: the job says which."""
        base, run = self.start.job.base, self.start.run
        bring = partial(bring_data, run, self.claim.head, "pretrain")
        if part == "pretrain" or "pretrain" not in self.start.digests.data:
            if base is None:
                return None
            bring = partial(bring_base, run.store, base.hash, weights=False)
        return self.patiently(bring) / "tokenizer.json"

    def part(self, part: str, own: Path, tokenizer: Path | None) -> Prepared:
        """Return a part of the data that is in the store by now. It is prepared in `own`."""
        from pipeline.data.source_reading import PrepareOptions
        from pipeline.stages.prepare import prepare_part

        while True:
            begun: list[str | Writer] = []

            def find(fingerprint: str, begun: list[str | Writer] = begun) -> Path | None:
                begun.append(self._begin_or_use(part, fingerprint))
                if not isinstance(begun[0], Writer):
                    return self._bring(f"{fingerprint}/{begun[0]}")
                self._continue(fingerprint, own)
                store = self.start.run.store
                self.uploads.append(EarlyUpload(store, fingerprint, begun[0].folder, own))
                return None

            try:
                how = PrepareOptions(
                    _tasks(self.say, *(S3 if self.start.job.bucket_inputs else ())),
                    finished=lambda path: self.uploads[-1].finished(path),
                    wait=lambda: self.uploads[-1].wait(),
                    find=find,
                    rows_of=self._rows_of,
                )
                prepared = prepare_part(self.start.job, part, own, self._say, tokenizer, how)
            finally:
                for upload in self.uploads:
                    upload.stop()
            writer = begun[0]
            if isinstance(writer, Writer):
                self.uploads[-1].close()
                try:
                    folder = self._complete(prepared, writer, part)
                except Overtaken as overtaken:
                    self.say(Note(f"{overtaken}; this run uses what that run prepares"))
                    continue
                if not self._use(part, prepared.fingerprint, folder):
                    continue
                with contextlib.suppress(BadInput, StoreError):  # pruning does it later
                    self._mark_left(prepared.fingerprint, folder, writer)
            else:
                folder = writer
                where = f"{self.start.run.store.url}/{SHARED}/{prepared.fingerprint[:12]}…"
                rows = f"{prepared.report['train_rows']:,} rows to train on"
                self.say(Note(f"{part} data: {rows}, prepared before in {where}"))
            _delete([own])  # before hashes are remembered: a link that goes changes a file's ctime
            return dataclasses.replace(
                prepared, folder=self._bring(f"{prepared.fingerprint}/{folder}")
            )

    def _rows_of(self, fingerprint: str, place: Path) -> dict[str, Any] | None:
        """Put the rows of a source that finished data has into `place`; return their report. None:
        no data has them, or it is being deleted, or all is prepared again."""
        from pipeline.data.prepared import open_data

        found = self.patiently(partial(find_rows, self.start.run.store, fingerprint))
        if found is None or self.again:
            return None
        key, number = found
        _, whole, folder = key.split("/")
        try:
            data = open_data(self._bring(f"{whole}/{folder}", shards=True))
            report = data.report["sources"][number]
            note = f"{report['name']}: {report['train_rows']:,} rows, prepared before"
            _delete([place])  # the beginning of the same rows
            link_files(data.folder / data.sources[number].folder, place)
            state = partial(read_state, self.start.run.store, whole)
            if self.patiently(state)[0].was_unneeded(folder):
                return None  # no HEAD lists that data: some files may be deleted by now
        except StoreError:
            raise
        except (PionError, LookupError, TypeError, ValueError):
            return None
        self.say(Note(note))
        return {n: value for n, value in report.items() if n not in ("name", "mb_per_second")}

    def _begin_or_use(self, part: str, fingerprint: str) -> str | Writer:
        """Return the id of a folder that this run uses from now on, or this process as writer."""
        if self.same and fingerprint not in self.same:
            raise BadInput("its sources have changed since `prepare`, or its tokenizer has")
        while True:
            begun = self.patiently(lambda: self._begin(fingerprint))
            if isinstance(begun, Writer) or self._use(part, fingerprint, begun):
                return begun

    def _use(self, part: str, fingerprint: str, folder: str) -> bool:
        """Let HEAD list a folder as a part of the data; return whether this run may use it."""
        if self.patiently(partial(bind, self.claim, part, fingerprint, folder)):
            return True
        self.say(Note(f"the {part} data was deleted or replaced just now: looking again"))
        return False

    def _begin(self, fingerprint: str) -> str | Writer:
        run, owner = self.start.run, self.start.owner

        def waiting(writer: Writer, seconds: float) -> None:
            what = f"wait for run {writer.run} on {writer.host}, which prepares the same data"
            self.say(PrepareProgress(what, seconds, "s"))

        return find_or_prepare(run, fingerprint, self.claim.epoch, owner, waiting, again=self.again)

    def _continue(self, fingerprint: str, own: Path) -> None:
        """Bring what another machine has prepared of the data, unless all is prepared again."""
        if not self.again:
            size = self.patiently(partial(bring_unfinished, self.start.run.store, fingerprint, own))
            if size:
                self.say(Note(f"continuing with {size / 1e6:,.1f} MB that were prepared before"))

    def _say(self, message: Shown) -> None:
        """Say a message; of progress, also whether it waits for the store, and what all will have
        cost, if the price is known."""
        if isinstance(message, PrepareProgress) and self.uploads and self.uploads[-1].waits:
            detail = ", ".join(filter(None, [message.detail, WAITS]))
            message = dataclasses.replace(message, detail=detail)
        price = self.start.price
        if isinstance(message, PrepareProgress) and message.eta is not None and price is not None:
            seconds = time.monotonic() - self.began + message.eta
            message = dataclasses.replace(message, dollars=price * seconds / 3600)
        self.say(message)

    def _complete(self, prepared: Prepared, writer: Writer, part: str) -> str:
        key, shared = self.same.removeprefix(f"{SHARED}/"), Workspace(self.start.run.store, SHARED)
        if key and not shared.has_shards_of(key, prepared.folder):
            raise BadInput("other shards came out")

        def progress(done: int, total: int) -> None:
            self.say(PrepareProgress(f"upload {part} data", done / 1e6, "MB", total=total / 1e6))

        folder = self.patiently(
            lambda: complete(
                self.start.run,
                prepared.fingerprint,
                writer,
                prepared.folder,
                prepared.sources,
                progress,
            )
        )
        store = self.start.run.store
        self.patiently(partial(delete_pieces, store, prepared.fingerprint, folder))
        for number, rows in enumerate(prepared.rows):
            # The name of an empty file says which rows the source has. It is deleted with the data.
            key = f"{SHARED}/{prepared.fingerprint}/rows-{rows}-{number}-{folder}"
            self.patiently(partial(store.write, key, b""))
        return folder

    def _mark_left(self, fingerprint: str, folder: str, writer: Writer) -> None:
        """Mark for deletion what other machines have left of this data, as pruning does.

        Data that the writer replaces is there, too. This run needs it if the next part fails.
        """
        store = self.start.run.store
        keys = (entry.key.split("/") for entry in store.list(f"{SHARED}/{fingerprint}/"))
        if writer.replaces is None and {key[2] for key in keys if len(key) > 3} != {folder}:
            mark(store, [fingerprint], self.start.run.clock)

    def _bring(self, key: str, *, shards: bool = False) -> Path:
        # Training fetches its shards when it needs them.
        shared = Workspace(self.start.run.store, SHARED)
        return self.patiently(partial(shared.bring, key, shards=shards))


def _tasks(say: Say, *uses: str) -> Callable[[], AbstractContextManager[Tasks]]:
    """Return what prepares pieces: Ray, with the secrets that it `uses`, or this process on a
    machine with one core."""
    from pipeline.data.tasks import InThisProcess
    from pipeline.workers.ray_tasks import ray_tasks
    from pipeline.workers.ray_workers import RAY_ADDRESS

    if usable_cores() == 1 and not os.environ.get(RAY_ADDRESS):
        return lambda: nullcontext(InThisProcess())
    return partial(ray_tasks, lambda text: say(Note(text)), *uses)
