"""Save training state durably while training goes on, and find the newest good save again.

A checkpoint is a folder `checkpoints/<stage>/<step>-<epoch>/` holding `model.safetensors`,
`optimizer.safetensors`, `state.json`, small files such as `config.json`, and, written last,
`manifest.json` with every file's size and sha256. It counts once HEAD lists it.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, PionError
from pipeline.state.head import Claim
from pipeline.state.records import FORMAT, CheckpointEntry, Damaged, Head, parse
from pipeline.state.retention import Keep, forget, sweep
from pipeline.state.snapshot import Snapshot, Tensors
from pipeline.state.stores import Missing, Store, StoreError
from pipeline.state.stores.base import check_key

if TYPE_CHECKING:
    import torch

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"


@dataclass
class SaveStats:
    """Seconds of the last stall and the last write, saves skipped, and what is durable by now."""

    stall_seconds: float = 0.0
    write_seconds: float = 0.0
    skipped: int = 0
    durable_step: int | None = None
    durable_at: float | None = None


class Checkpointer:
    """Saves one stage's checkpoints under one claim, from one background thread.

    `files` travel with every checkpoint (`config.json`, `tokenizer.json`). `ancestor` is the key
    of the checkpoint that training goes on from. `before_commit` runs in the background thread
    just before a checkpoint is listed: what it flushes is durable when the checkpoint is.
    """

    def __init__(
        self,
        claim: Claim,
        stage: str,
        digest: str,
        *,
        files: Mapping[str, bytes],
        keep: Keep | None = None,
        ancestor: str | None = None,
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        self._claim = claim
        self._stage = stage
        self._digest = digest
        self._files = dict(files)
        self._keep = keep or Keep()
        self._ancestor = ancestor
        self._before_commit = before_commit
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.last: CheckpointEntry | None = None
        self.stats = SaveStats()

    def save(
        self,
        model: Tensors,
        optimizer: Tensors,
        state: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Snapshot now, write in the background; False if the previous save is still writing.

        `state` is JSON and has `step`. Raises what the previous save failed with: `Fenced`,
        `StoreError`.
        """
        if self.busy:
            self.stats.skipped += 1
            return False
        self.wait()
        if self.last is not None and self.last.step == state["step"]:
            return True
        started = time.perf_counter()
        self._snapshot.take(
            model, optimizer, {**state, "stage": self._stage, "digest": self._digest}
        )
        self.stats.stall_seconds = time.perf_counter() - started
        self._thread = threading.Thread(
            target=self._run, args=(dict(metrics or {}),), name="checkpoint", daemon=True
        )
        self._thread.start()
        return True

    @property
    def busy(self) -> bool:
        """Whether a save is being written, so that `save` would skip."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until the save in progress is durable. Raises what it failed with, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """`wait`, and let go of the buffers."""
        try:
            self.wait()
        finally:
            self._snapshot = Snapshot()

    def _run(self, metrics: dict[str, float]) -> None:
        started = time.perf_counter()
        try:
            entry = self._write(metrics)
        except BaseException as error:  # raised to the training thread by `wait`
            self._failure = error
            return
        self.last = entry
        self._ancestor = entry.key
        self.stats.write_seconds = time.perf_counter() - started
        self.stats.durable_step, self.stats.durable_at = entry.step, entry.at

    def _write(self, metrics: dict[str, float]) -> CheckpointEntry:
        claim, step = self._claim, self._snapshot.state["step"]
        now = claim.state.clock.now()
        key = f"checkpoints/{self._stage}/{step}-{claim.epoch}"
        contents: dict[str, bytes | memoryview] = {
            MODEL: self._snapshot.model,
            OPTIMIZER: self._snapshot.optimizer,
            STATE: _json(self._snapshot.state),
            **self._files,
        }
        files = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in contents.items()
        }
        manifest = {
            "format": FORMAT,
            "stage": self._stage,
            "step": step,
            "epoch": claim.epoch,
            "digest": self._digest,
            "at": now,
            "ancestor": self._ancestor,
            "files": files,
        }
        entry = CheckpointEntry(
            stage=self._stage,
            step=step,
            epoch=claim.epoch,
            digest=self._digest,
            key=key,
            at=now,
            bytes=sum(len(data) for data in contents.values()),
            model_sha256=str(files[MODEL]["sha256"]),
            ancestor=self._ancestor,
            metrics=metrics,
        )
        for name, data in [*contents.items(), (MANIFEST, _json(manifest))]:
            claim.check()
            claim.store.write(claim.state.key(f"{key}/{name}"), data)
        self._verify(entry, files)
        if self._before_commit is not None:
            self._before_commit()
        claim.commit(lambda head: forget(head.with_checkpoint(entry), self._keep, now))
        sweep(claim)
        return entry

    def _verify(self, entry: CheckpointEntry, files: Mapping[str, Mapping[str, Any]]) -> None:
        """What the store now holds is what was written: hashes in place, else every size."""
        store, key = self._claim.store, self._claim.state.key(entry.key)
        if store.local_path(key) is not None:
            problem = check_entry(store, self._claim.state.name, entry)
        else:
            sizes = {found.key: found.size for found in store.list(key + "/")}
            wrong = [n for n, file in files.items() if sizes.get(f"{key}/{n}") != file["size"]]
            problem = f"{', '.join(wrong)}: not the size that was written" if wrong else None
        if problem is not None:
            raise StoreError("store", f"{store.url}/{key}", f"read back, {problem}")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's content. Tensors are on the CPU, mapped from the files in `folder`."""

    folder: Path
    model: dict[str, "torch.Tensor"]
    optimizer: dict[str, "torch.Tensor"]
    state: dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A listed checkpoint that was not used, and why."""

    entry: CheckpointEntry
    why: str

    def __str__(self) -> str:
        return f"Skipped checkpoint {self.entry.key}: {self.why}."


def newest_good(
    store: Store,
    run: str,
    head: Head,
    stage: str,
    digest: str,
    scratch: Path | None = None,
) -> tuple[CheckpointEntry | None, Loaded | None, list[Skipped]]:
    """The stage's newest checkpoint of that digest whose sizes and hashes are right.

    `(None, None, [])` if none is listed; the list says what was skipped. A store that can't be
    memory-mapped is downloaded below `scratch`. Raises `StoreError` when the store is down,
    `BadInput` for a checkpoint of another format version, and `PionError` when checkpoints are
    listed but none is good: starting over is for a person to decide.
    """
    skipped: list[Skipped] = []
    for entry in head.checkpoints:
        if (entry.stage, entry.digest) != (stage, digest):
            continue
        problem = check_entry(store, run, entry, scratch)
        if problem is None:
            folder = store.local_path(f"{run}/{entry.key}") or _scratch_folder(scratch, entry)
            return entry, load_folder(folder), skipped
        skipped.append(Skipped(entry, problem))
    if skipped:
        raise PionError(
            f"None of the checkpoints of {stage} in {store.url}/{run} is good. "
            + " ".join(map(str, skipped))
            + f" Nothing was changed. To train {stage} again from its start, use --redo {stage}."
        )
    return None, None, skipped


def check_entry(
    store: Store, run: str, entry: CheckpointEntry, scratch: Path | None = None
) -> str | None:
    """Why a listed checkpoint can't be used: a file missing, cut short or changed. None if good.

    Raises like `newest_good`.
    """
    key = f"{run}/{entry.key}"
    try:
        manifest = parse(store.read(f"{key}/{MANIFEST}"), f"{store.url}/{key}/{MANIFEST}")
    except Missing:
        return f"{MANIFEST} is missing"
    except Damaged:
        return f"{MANIFEST} is damaged"
    try:
        files = {check_key(n): (f["size"], f["sha256"]) for n, f in manifest["files"].items()}
    except (AttributeError, KeyError, TypeError, BadInput):
        return f"{MANIFEST} is damaged"
    if files.get(MODEL, (0, ""))[1] != entry.model_sha256:
        return f"{MODEL} is not the one that HEAD lists"
    folder = store.local_path(key)
    if folder is None:
        folder = _scratch_folder(scratch, entry)
        for name in files:
            try:
                store.download(f"{key}/{name}", folder / name)
            except Missing:
                return f"{name} is missing"
    paths = [folder / name for name in files]
    with ThreadPoolExecutor() as pool:
        problems = pool.map(_file_problem, paths, *zip(*files.values()))
        return next((problem for problem in problems if problem is not None), None)


def load_folder(folder: Path) -> Loaded:
    """Read a checkpoint's folder, unverified. Raises `PionError` if it isn't one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / STATE).read_bytes())
        return Loaded(folder, load_file(folder / MODEL), load_file(folder / OPTIMIZER), state)
    except (OSError, ValueError, SafetensorError) as error:
        raise PionError(f"{folder} is not a complete checkpoint: {error}") from error


def _file_problem(path: Path, size: int, sha256: str) -> str | None:
    try:
        with path.open("rb") as file:
            found = path.stat().st_size
            if found != size:
                return f"{path.name} has {found:,} bytes instead of {size:,}"
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return f"{path.name} has been altered (its sha256 differs)"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} can't be read ({error.strerror})"
    return None


def _scratch_folder(scratch: Path | None, entry: CheckpointEntry) -> Path:
    if scratch is None:
        raise ValueError("this store can't be memory-mapped: a scratch folder is needed")
    return scratch / entry.key


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
