"""Give a fork the prepared data of its source: by its key if both share it, else as a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pion.errors import PionError
from pipeline.console.formats import size
from pipeline.state.files import files_below, link_or_copy
from pipeline.state.owner import Owner
from pipeline.state.records import SHARED, Head, data_key
from pipeline.state.run_data import own_key
from pipeline.state.run_state import RunState
from pipeline.state.shared.begin import begin, is_there
from pipeline.state.shared.complete import Overtaken, complete
from pipeline.state.shared.records import Writer, read_state
from pipeline.state.workspace import Workspace

# The epoch under which the fork command owns the new run until it releases it.
EPOCH = 1

Say = Callable[[str], None]


def copy_data(source: RunState, target: RunState, head: Head, say: Say) -> dict[str, str]:
    """Give `target` the data that the finished `prepare` of `source` made.

    Returns the keys of the data that is shared, by part. Raises PionError if data is missing.
    """
    return _Copy(source, target, say).all(head)


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


@dataclass(frozen=True)
class _Copy:
    """Copies the data of one run to another."""

    source: RunState
    target: RunState
    say: Say

    def all(self, head: Head) -> dict[str, str]:
        """Copy the data that the finished `prepare` made; return the keys of what is shared."""
        record = head.stages.get("prepare")
        kept = self.source.read_stage("prepare", record.digest) if record else None
        own = {
            path.removeprefix("input.data."): str(digest)
            for path, digest in (kept["inputs"] if kept else {}).items()
            if path.startswith("input.data.")
        }
        for part, digest in sorted(own.items()):
            if part not in head.data:
                self._copy_own_data(digest)
        if self.target.store.url == self.source.store.url:
            return dict(head.data)
        return {part: self._share_data(key) for part, key in sorted(head.data.items())}

    def _share_data(self, key: str) -> str:
        """Share data of the source's store in the target's, unless it is there; return its key."""
        _, fingerprint, folder = key.split("/")
        there, now = Owner.me(), self.target.clock.now()
        made_by = read_state(self.source.store, fingerprint)[0].sources
        me = Writer(self.target.name, EPOCH, there.session, there.host, "", now)

        def waiting(writer: Writer, seconds: float) -> None:
            self.say(f"waiting for run {writer.run} on {writer.host}, which makes the same data")

        while True:
            begun = begin(self.target, fingerprint, me, there, waiting)
            if not isinstance(begun, Writer):
                return data_key(fingerprint, begun)
            files = Workspace(self.source.store, SHARED).bring(f"{fingerprint}/{folder}")
            if not (files / "dataset.json").is_file():
                raise _incomplete(files, self.source)
            self.say(f"copying prepared data {fingerprint[:12]}")
            with contextlib.suppress(Overtaken):
                done = complete(self.target, fingerprint, begun, files, made_by)
                return data_key(fingerprint, done)

    def _copy_own_data(self, digest: str) -> None:
        source = Workspace(self.source.store, self.source.name)
        target = Workspace(self.target.store, self.target.name)
        folder = source.bring(own_key(digest))
        # dataset.json goes last: it marks the folder as complete.
        paths = sorted(files_below(folder), key=lambda path: path.name == "dataset.json")
        if not paths or paths[-1].name != "dataset.json":
            raise _incomplete(folder, self.source)
        self.say(
            f"copying prepared data {digest}: {size(sum(path.stat().st_size for path in paths))}"
        )
        key = own_key(digest)
        for path in paths:
            name = path.relative_to(folder).as_posix()
            if target.remote:
                to = target.folder(key) / name
                to.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(path, to)
            else:
                self.target.store.write(self.target.key(f"{key}/{name}"), path)
        target.keep(key)


def _incomplete(folder: Path, run: RunState) -> PionError:
    return PionError(
        f"The prepared data in {folder} is not complete. Nothing was forked. Prepare it again "
        f"first: pion run JOB name={run.name} --redo prepare."
    )
