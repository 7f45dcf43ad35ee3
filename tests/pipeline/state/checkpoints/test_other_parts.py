"""Ranks that have a model in parts save a checkpoint together, or there is none."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from pion.errors import BadInput, PionError
from pion.train.optimizer.state_pieces import Piece
from pion.train.side_copy import SideCopy
from pion.train.trainer import Trainer, TrainState
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.layout import MANIFEST
from pipeline.state.checkpoints.other_parts import OtherParts, OwnPart
from pipeline.state.checkpoints.part import CheckpointPart
from pipeline.state.checkpoints.restore import Loaded, load_folder, newest_good
from pipeline.state.checkpoints.snapshot import Snapshot
from pipeline.state.checkpoints.uploader import Saved, SaveRequest, Uploader, UploaderDied
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError, open_store
from pipeline.state.workspace import Workspace
from tests.support.in_process_uploader import InProcessUploader
from tests.support.late_streams import LateStreams
from tests.support.parts import state_of, whole_model, whole_moments
from tests.support.ranks import run_ranks

RUN, STAGE, DIGEST = "run", "pretrain", "d1"


class Saver:
    """One rank that saves its part. `save` is called by all ranks at once.

    Without a `trainer`, the state is that of tests/support/parts.py.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        count: int,
        uploader: Any = None,
        trainer: Trainer | None = None,
    ) -> None:
        self.rank, self.count, self.step, self.trainer = rank, count, 0, trainer
        self.side_copy = SideCopy()
        self.uploader = uploader or InProcessUploader(FileStore(folder / "runs"))
        in_process = isinstance(self.uploader, InProcessUploader)
        store = self.uploader.store if in_process else open_store(self.uploader._store)
        part = CheckpointPart.of(rank, count, self.state()) if count > 1 else None
        self.own = OwnPart(part, self.uploader, self.state) if part and rank else None
        if rank == 0:
            self.others = OtherParts(part) if part else None
            self.run = RunState(store, RUN)
            self.claim = claim_run(self.run, Owner.me())
            self.uploader.snapshot.part, self.uploader.snapshot.others = part, self.others
            series = CheckpointSeries(STAGE, DIGEST, {"config.json": b"{}"})
            self.checkpointer = Checkpointer(self.claim, series, uploader=self.uploader)

    def state(self) -> TrainState:
        if self.trainer is not None:
            return self.trainer.state()
        state = state_of(self.rank, self.count, self.step)
        return TrainState(
            state.model,
            state.optimizer,
            state.meta,
            self.side_copy,
            state.pieces,
            state.model_pieces,
        )

    def begin(self, step: int) -> None:
        self.step = step
        if self.own is not None:
            return self.own.follow()
        with self.others.listening() if self.others else contextlib.nullcontext():
            state = self.state()
            assert self.checkpointer.save(
                state.model,
                state.optimizer,
                state.meta,
                state.side_copy,
                state.pieces,
                state.model_pieces,
            )

    def save(self, step: int) -> None:
        """Save, and wait until rank 0 has listed the checkpoint."""
        self.begin(step)
        if self.own is not None:
            self.own._join()
        else:
            self.checkpointer.wait()
            assert self.checkpointer.stats.outage is None
            assert self.checkpointer.last is not None
            assert self.checkpointer.last.step == step

    def not_saved(self, step: int) -> StoreError | None:
        """Save, which must fail as in an outage; return rank 0's error."""
        self.begin(step)
        if self.own is not None:
            self.own._join()
            return None
        self.checkpointer.wait()
        assert self.checkpointer.last is None or self.checkpointer.last.step < step
        return self.checkpointer.stats.outage

    def close(self) -> None:
        if self.own is not None:
            return self.own.close()
        self.checkpointer.close()
        if self.others is not None:
            self.others.close()
        self.claim.release()


@contextlib.contextmanager
def saver(folder: Path, rank: int, count: int, uploader: Any = None) -> Iterator[Saver]:
    """Give this process its place in a group of `count` ranks."""
    number = len(list(folder.glob("runs/run/checkpoints/*/*")))
    meet = f"file://{folder}/meet{count}-{number}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=count)
    with closing(Saver(folder, rank, count, uploader)) as one:
        yield one
    dist.destroy_process_group()


def newest(folder: Path) -> Loaded:
    """Return the content of the newest checkpoint that HEAD lists."""
    run = RunState(FileStore(folder / "runs"), RUN)
    head = run.read()
    assert head is not None
    found = newest_good(Workspace(run.store, RUN), head, STAGE, DIGEST)
    assert found.folder is not None
    assert not found.skipped
    return load_folder(found.folder)


def has(loaded: Loaded, step: int) -> bool:
    """Return whether a checkpoint has the whole state after this step."""
    pairs = ((loaded.model, whole_model(step)), (loaded.optimizer, whole_moments(step)))
    return loaded.state["step"] == step and all(
        found.keys() == expected.keys()
        and all(torch.equal(found[n], expected[n]) for n in expected)
        and all(found[n].dtype == expected[n].dtype for n in expected)
        for found, expected in pairs
    )


def no_commit(one: Saver) -> None:
    """Let the store fail once, between the upload and the commit."""
    working = one.claim.commit

    def commit(change: Any) -> Any:
        one.claim.commit = working  # type: ignore[method-assign]
        raise StoreError("write", "HEAD.json", "no answer", outage=True)

    one.claim.commit = commit  # type: ignore[method-assign]


# ---------------------------------------------------------------- a save


def save_twice(rank: int, folder: Path) -> None:
    with saver(folder, rank, 3) as one:
        one.save(1)
        one.save(2)


def test_the_parts_of_all_ranks_are_the_whole_state(tmp_path: Path) -> None:
    run_ranks(save_twice, tmp_path, 3)
    loaded = newest(tmp_path)
    assert has(loaded, 2)
    names = {path.name for path in loaded.folder.iterdir()}
    parts = {f"{kind}-{r}-of-3.safetensors" for kind in ("model", "optimizer") for r in (1, 2, 3)}
    assert names == parts | {MANIFEST, "state.json", "config.json"}
    assert json.loads((loaded.folder / MANIFEST).read_text())["format"] == 2


def save_large(rank: int, folder: Path) -> None:
    with saver(folder, rank, 4) as one:
        one.save(1)
        size = os.fstat(one.uploader.snapshot.fd).st_size
        (folder / f"{rank}.txt").write_text(str(size))


def large(step: int) -> dict[str, torch.Tensor]:
    return {f"layer{i}": torch.randn(1024, 256) for i in range(4)}


@pytest.mark.slow
def test_no_rank_has_more_than_its_part_in_memory_and_in_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.parts.whole_model", large)
    run_ranks(save_large, tmp_path, 4)
    folder = newest(tmp_path).folder
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    own = [path.stat().st_size for path in folder.glob("*-1-of-4.safetensors")]
    assert len(own) == 2
    assert sum(own) <= (1 / 4 + 0.01) * sum(sizes)
    assert sum(int((tmp_path / f"{r}.txt").read_text()) for r in range(4)) <= 1.1 * sum(sizes)


# ---------------------------------------------------------------- what goes wrong


class Refuses(InProcessUploader):
    """Uploads, but the first time the store can't be reached, or its process is killed."""

    def __init__(self, folder: Path, error: Callable[[str], StoreError]) -> None:
        super().__init__(FileStore(folder / "runs"))
        self._error: Callable[[str], StoreError] | None = error

    def save(self, request: SaveRequest) -> Saved:
        error, self._error = self._error, None
        saved = super().save(request)
        if error is not None:
            raise error(request.key)
        return saved


def outage(key: str) -> StoreError:
    return StoreError("write", key, "no answer", outage=True)


def killed(key: str) -> StoreError:
    return UploaderDied("save", key, "exit code -9")


def an_upload_fails(rank: int, folder: Path, *, failing: int, error: Any) -> None:
    with saver(folder, rank, 3) as one:
        one.save(1)
        one.uploader.__class__, one.uploader._error = Refuses, None
        if rank == failing:
            one.uploader._error = error
        found = one.not_saved(2)
        if rank == 0:
            assert isinstance(found, UploaderDied) == (error is killed)
            assert has(newest(folder), 1)
        one.save(3)


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "error"), [(2, outage), (0, outage), (1, killed)])
def test_if_one_part_is_not_uploaded_head_keeps_the_old_checkpoint_and_the_next_save_is_whole(
    failing: int, error: Callable[[str], StoreError], tmp_path: Path
) -> None:
    run_ranks(partial(an_upload_fails, failing=failing, error=error), tmp_path, 3)
    assert has(newest(tmp_path), 3)
    folders = (tmp_path / "runs" / RUN / "checkpoints" / STAGE).iterdir()
    with_manifest = {path.name.split("-")[0] for path in folders if (path / MANIFEST).exists()}
    assert with_manifest == {"1", "3"}


def save_the_same_step_again(rank: int, folder: Path) -> None:
    with saver(folder, rank, 2) as one:
        if rank == 0:
            no_commit(one)
        one.not_saved(1)
        if rank == 0:
            one.uploader.save = mock.Mock(side_effect=AssertionError("it is uploaded already"))
        one.save(1)
        if rank == 0:
            del one.uploader.save
        one.save(2)


def test_only_the_commit_of_parts_is_made_again_and_no_rank_waits_for_an_upload(
    tmp_path: Path,
) -> None:
    run_ranks(save_the_same_step_again, tmp_path, 2)
    assert has(newest(tmp_path), 2)


def a_rank_has_a_defect(rank: int, folder: Path) -> None:
    with saver(folder, rank, 2) as one:
        upload = one.uploader.save

        def fails(request: SaveRequest) -> Saved:
            one.uploader.save = upload
            raise ValueError("three is not even")

        if rank == 1:
            one.uploader.save = fails
        one.begin(1)
        if one.own is not None:
            one.own._join()
        else:
            expected = "worker 1 could not save its part: ValueError: three is not even"
            with pytest.raises(PionError, match=expected):
                one.checkpointer.wait()
        one.save(2)


def test_whatever_fails_while_a_rank_saves_its_part_is_said_by_rank_0(tmp_path: Path) -> None:
    run_ranks(a_rank_has_a_defect, tmp_path, 2)
    assert has(newest(tmp_path), 2)


class BrokenCard(LateStreams):
    """A card that copies at once, and fails before anybody knows that the copy is done."""

    def stream(self, side: LateStreams) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")


def a_card_fails(rank: int, folder: Path) -> None:
    with saver(folder, rank, 2) as one:
        one.side_copy = SideCopy(BrokenCard() if rank else None)
        one.begin(1)
        if rank == 0:
            with pytest.raises(RuntimeError, match="worker 1 could not copy its part"):
                one.checkpointer.wait()
            assert one.checkpointer.last is None
        one.side_copy = SideCopy()
        one.save(2)


def test_a_save_without_the_part_of_a_rank_is_never_listed(tmp_path: Path) -> None:
    run_ranks(a_card_fails, tmp_path, 2)
    assert has(newest(tmp_path), 2)


def no_memory(rank: int, folder: Path, *, at: int) -> None:
    """One rank gets no memory for its first save."""
    with saver(folder, rank, 2) as one:
        refusing = mock.patch.object(os, "posix_fallocate", refuse)
        with refusing if rank == at else contextlib.nullcontext():
            if at == 0 and rank == 0:
                with pytest.raises(StoreError, match="memory to save from"):
                    one.begin(1)
            else:
                one.begin(1)
            if at == 1 and rank == 0:
                with pytest.raises(StoreError, match="memory to save from"):
                    one.checkpointer.wait()
            if one.own is not None:
                one.own._join()
        one.save(2)


def refuse(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("at", [0, 1])
def test_ranks_go_on_if_one_of_them_has_no_memory_to_save_from(at: int, tmp_path: Path) -> None:
    run_ranks(partial(no_memory, at=at), tmp_path, 2)
    assert has(newest(tmp_path), 2)


def die(rank: int, folder: Path, *, after_uploading: bool) -> None:
    """Save after step 1. Rank 1 is killed in the save after step 2."""
    with saver(folder, rank, 2) as one:
        one.save(1)
        if one.own is not None:
            upload = one.uploader.save

            def dies(request: SaveRequest) -> Saved:
                if after_uploading:
                    upload(request)
                os.kill(os.getpid(), signal.SIGKILL)
                raise AssertionError

            one.uploader.save = dies
        one.begin(2)
        if one.own is not None:
            one.own._join()
        one.checkpointer.wait()


def save_once_more(rank: int, folder: Path) -> None:
    with saver(folder, rank, 2) as one:
        one.save(2)


@pytest.mark.slow
@pytest.mark.parametrize("after_uploading", [False, True])
def test_a_rank_killed_in_a_save_leaves_the_old_checkpoint(
    after_uploading: bool, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError) as died:
        run_ranks(partial(die, after_uploading=after_uploading), tmp_path, 2)
    assert "{0: 1, 1: -9}" in str(died.value)
    assert "RuntimeError" in str(died.value)  # of rank 0, which did not wait forever
    assert has(newest(tmp_path), 1)
    run_ranks(save_once_more, tmp_path, 2)
    assert has(newest(tmp_path), 2)


def real_uploaders(rank: int, folder: Path) -> None:
    """Rank 1's uploader, a process, is killed; later the process of rank 0."""
    uploader: Any = Uploader(Snapshot(), FileStore(folder / "runs").url)
    ask = uploader._ask

    def killed_when_asked(process: Any, request: SaveRequest) -> str | None:
        uploader._ask = ask
        os.kill(process.pid, signal.SIGSTOP)  # it can't answer before its end
        process.kill()
        return ask(process, request)

    with saver(folder, rank, 2, uploader) as one:
        one.save(1)
        for at, step in ((1, 2), (0, 4)):
            if rank == at:
                uploader._ask = killed_when_asked
            error = one.not_saved(step)
            assert rank or isinstance(error, UploaderDied)
            one.save(step + 1)


@pytest.mark.soak
def test_a_killed_uploader_of_any_rank_is_replaced(tmp_path: Path) -> None:
    run_ranks(real_uploaders, tmp_path, 2)
    assert has(newest(tmp_path), 5)


# ---------------------------------------------------------------- which rank has what


def both_have_the_same_rows(rank: int, folder: Path) -> None:
    refused(rank, folder, CheckpointPart.of(rank, 2, state_of(0, 2, 1)), "are in two parts")


def nobody_has_a_tensor(rank: int, folder: Path) -> None:
    state = state_of(rank, 2, 1)
    pieces = [piece for piece in state.pieces if piece.name != "exp_avg.gain"]
    part = CheckpointPart.of(rank, 2, dataclasses.replace(state, pieces=pieces))
    refused(rank, folder, part, "exp_avg.gain is in no part")


def refused(rank: int, folder: Path, part: CheckpointPart, why: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    if rank == 0:
        with pytest.raises(BadInput, match=why):
            OtherParts(part)
    else:
        uploader: Any = InProcessUploader(FileStore(folder))
        with pytest.raises(BadInput, match=why):
            OwnPart(part, uploader, lambda: state_of(0, 2, 1))
    dist.destroy_process_group()


@pytest.mark.parametrize("work", [both_have_the_same_rows, nobody_has_a_tensor])
def test_parts_that_are_not_the_whole_model_are_never_saved(
    work: Callable[[int, Path], None], tmp_path: Path
) -> None:
    run_ranks(work, tmp_path, 2)


def test_more_ranks_than_a_checkpoint_has_files_for_are_refused() -> None:
    state = TrainState({}, {}, {}, pieces=[Piece("w", 0, torch.zeros(1))])
    with pytest.raises(BadInput, match="501 workers have the model in parts"):
        CheckpointPart.of(0, 501, state)
