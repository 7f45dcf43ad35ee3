"""Save a model that ranks have in parts: each rank copies and uploads its own part.

Only rank 0 decides when, at the points where the other ranks listen (channel.py). Each rank copies
its part into memory of its own, next to the next step on a card. Then a thread of rank 0 asks a
thread of each other rank to write and upload the part, and in the end to drop it. Once the store
has all parts, rank 0 writes the manifest and commits. So if a rank dies or can't upload, there is
no checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pion.errors import PionError
from pipeline.state.checkpoints.channel import COPY, GO_ON, Channel
from pipeline.state.checkpoints.memory_file import machine
from pipeline.state.checkpoints.part import CheckpointPart, require_whole
from pipeline.state.checkpoints.uploader import Saved, SaveRequest, Uploader, UploaderDied
from pipeline.state.stores import StoreError
from pipeline.state.stores.errors import error_from_json, error_to_json

if TYPE_CHECKING:
    from pion.train.trainer import TrainState

# What rank 0 sends instead of a request, when it asks for nothing more of a copy.
DROP = "drop"

_log = logging.getLogger(__name__)


class OtherParts:
    """The other ranks, as rank 0 sees them. Every rank makes one of the two classes, at once.

    `part` is that of rank 0. `on_one_machine` says whether all ranks are on the same one. Raises
    BadInput, as the other class does, unless the parts of all ranks are the whole model.
    """

    def __init__(self, part: CheckpointPart) -> None:
        self.part = part
        self._channel = Channel()
        self.on_one_machine = _meet(self._channel, part)
        self._others = range(1, part.count)
        self._abandoned = False
        self._waiting = False  # the other ranks have a copy, and wait for what rank 0 asks

    def listening(self) -> AbstractContextManager[None]:
        """Let the other ranks listen while the block may save. They call `follow` meanwhile."""
        return self._channel.listening()

    def begin(self, fd: int, offsets: Mapping[str, int]) -> None:
        """Let each rank begin to copy its part into its own memory, not into that of rank 0."""
        self.drop()
        self._channel.say(COPY)
        self._waiting = True

    def wait(self, tensors: Mapping[str, Any]) -> None:
        """Do nothing: `saving` waits for the other ranks."""

    @contextlib.contextmanager
    def saving(self, request: SaveRequest) -> Iterator[list[Saved]]:
        """Let the other ranks do what the request asks of their parts, while the block does so with
        that of rank 0.

        Yield the list that gets what they have saved, after the block. Raises RuntimeError if a
        rank is gone or could not copy, and the error of a rank that could not save.
        """
        for rank in self._others:
            self._channel.send(json.dumps(dataclasses.asdict(request)), rank)
        saved: list[Saved] = []
        answers: list[Mapping[str, Any]] = []
        try:
            yield saved
        finally:  # each answer is received, whatever the block has raised
            answers += [json.loads(self._channel.receive(rank)) for rank in self._others]
        for rank, answer in zip(self._others, answers, strict=True):
            if "saved" not in answer:
                raise _error(rank, answer)
            saved.append(Saved.from_json(answer["saved"]))

    def drop(self) -> None:
        """Let the other ranks forget what they have copied."""
        if self._waiting:
            self._waiting = False
            for rank in self._others:
                with contextlib.suppress(RuntimeError):  # it is gone, which the next step says
                    self._channel.send(DROP, rank)

    def abandon(self) -> None:
        """Wait for no rank any more: this process ends, and the other ranks with it. A thread may
        still wait for an answer, so `close` does not leave the groups."""
        self._abandoned = True

    def close(self) -> None:
        """Leave the groups."""
        if not self._abandoned:
            self._channel.close()


class OwnPart:
    """The part that another rank than rank 0 saves, by `uploader`. `state` returns what it has."""

    def __init__(
        self, part: CheckpointPart, uploader: Uploader, state: Callable[[], TrainState]
    ) -> None:
        self._channel = Channel()
        _meet(self._channel, part)
        self._uploader, self._state = uploader, state
        uploader.snapshot.part = part
        self._thread: threading.Thread | None = None

    def follow(self) -> None:
        """Copy whenever rank 0 asks, until rank 0 goes on."""
        while self._channel.say(GO_ON) == COPY:
            self._copy()

    def reserve(self) -> None:
        """Allocate the memory in the background, so that the first save only copies."""
        state = self._state()

        def reserve() -> None:
            with contextlib.suppress(StoreError):  # the first save fails too, and reports it
                self._uploader.snapshot.reserve(state.model, state.optimizer, state.model_pieces)

        self._thread = threading.Thread(target=reserve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for what rank 0 still asks for. Then end the uploader and free the memory."""
        self._join()
        self._uploader.close()
        self._uploader.snapshot.close()
        self._channel.close()

    def _copy(self) -> None:
        self._join()
        state, failure = self._state(), None
        try:
            self._uploader.snapshot.take(
                state.model,
                state.optimizer,
                {},
                state.side_copy,
                state.pieces,
                state.model_pieces,
            )
        except StoreError as error:  # too little memory, which rank 0 reports
            failure = error
        self._thread = threading.Thread(
            target=self._answer, args=(failure,), name="part of a checkpoint", daemon=True
        )
        self._thread.start()

    def _answer(self, failure: StoreError | None) -> None:
        """Do what rank 0 asks with the part, until it is dropped, and tell how that went."""
        copied = True
        try:
            self._uploader.snapshot.wait()
        except RuntimeError:  # the card failed, which the next step says
            copied = False
        with contextlib.suppress(RuntimeError):  # rank 0 is gone, which the next step says
            while (text := self._channel.receive(0)) != DROP:
                answer: dict[str, Any] = {}
                if copied:
                    answer = _failed(failure) if failure else self._save(text)
                self._channel.send(json.dumps(answer), 0)

    def _save(self, text: str) -> dict[str, Any]:
        """Do what rank 0 asks. Rank 0 waits for the answer, whatever happens."""
        snapshot = self._uploader.snapshot
        try:
            request = dataclasses.replace(SaveRequest.from_json(text), extents=snapshot.extents)
            return {"saved": dataclasses.asdict(self._uploader.save(request))}
        except PionError as error:
            return _failed(error)
        except BaseException as error:
            _log.exception("A part of a checkpoint could not be saved")
            rank = "" if snapshot.part is None else f" {snapshot.part.rank}"
            why = f"{type(error).__name__}: {error}"
            return _failed(PionError(f"worker{rank} could not save its part: {why}"))

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _meet(channel: Channel, part: CheckpointPart) -> bool:
    """Raise BadInput unless all ranks together have the whole model; return whether they are on one
    machine."""
    # A rank that can't tell its machine counts as alone on one.
    met = channel.of_all_ranks((part, machine() or f"rank {part.rank}"))
    require_whole([part for part, _ in met])
    return len({where for _, where in met}) == 1


def _failed(error: PionError) -> dict[str, Any]:
    return {"error": error_to_json(error), "died": isinstance(error, UploaderDied)}


def _error(rank: int, answer: Mapping[str, Any]) -> Exception:
    """Return the error of a rank that has saved nothing."""
    if "error" not in answer:
        return RuntimeError(f"worker {rank} could not copy its part of the training state")
    error = error_from_json(answer["error"])
    if answer["died"] and isinstance(error, StoreError):
        return UploaderDied(error.action, error.where, error.reason)
    return error
