"""Give a stage that learns from preferences the numbers of its reference."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from pion.errors import BadInput, PionError, PlanFailed
from pion.train.reference import check_reference
from pipeline.console.messages import Note, Phase, PrepareProgress
from pipeline.cost.timeline import REFERENCE_PASS
from pipeline.job.digest import model_inputs
from pipeline.machine.kill_points import mark
from pipeline.state.claim import Claim
from pipeline.state.head import REFERENCE
from pipeline.state.owner import Owner
from pipeline.state.shared.find_or_prepare import bind, find_or_prepare
from pipeline.state.shared.folder import (
    REFERENCE_FILE,
    Overtaken,
    bring_data,
    complete,
)
from pipeline.state.shared.records import Writer, read_state
from pipeline.state.stores.errors import StoreError
from pipeline.training.reference.columns import (
    Reference,
    delete_unfinished,
    key_of,
    read_reference,
    write_reference,
)
from pipeline.training.reference.compute import compute_columns, smaller_plans

if TYPE_CHECKING:
    from pion.data.stream import RowStream
    from pion.train.settings import ComputePlan
    from pipeline.state.checkpoints.restore import Loaded
    from pipeline.training.context import TrainingContext
    from pipeline.training.stage_model import StageModel


Result = TypeVar("Result")


def with_reference(
    context: TrainingContext,
    streams: Mapping[str, RowStream],
    start: StageModel,
    saved: Loaded | None,
    *,
    resumes: bool,
) -> tuple[Reference, StageModel]:
    """Return the reference of a stage, and the model that the stage starts from, whose weights are
    divided among the ranks now if they have computed with it in parts.

    The numbers are computed, or found, with the model that the stage starts from, and only then. A
    stage that `resumes` has the numbers that HEAD and its checkpoint name. Rank 0 has the
    checkpoint, and the weights of `start` are then of no use, but for a base of LoRA. Every rank
    calls this.
    """
    if not resumes:
        weights = start.weights_sha256()
        start = _ready(context, start)
        return make_reference(context, streams, start, weights), start
    reference = _learned_with(context, streams, None if saved is None else saved.folder)
    if (note := _other_dtype(reference, start.plan)) is not None:
        context.report(Note(note))
    if start.adapter is not None:  # LoRA adds what it does at the start: this is the reference
        start = _ready(context, start)
        wrong = _other_numbers(context, reference, start)
        if wrong is not None:
            raise PionError(
                f"{wrong}. The checkpoints are safe, but prefer would learn with wrong numbers on "
                "this machine. Run the same command on a machine that computes as before, or train "
                "the stage again with --redo prefer"
            )
    return reference, start


def _ready(context: TrainingContext, start: StageModel) -> StageModel:
    """Return the model where it is computed. The ranks of a sharded model get their parts of it."""
    if not start.plan.sharded:
        start.model.to(torch.device(start.plan.device))
        return start
    from pion.train.sharding import sharded

    shards = sharded(start.model, start.weights, start.plan, context.group.rank)
    return dataclasses.replace(start, shards=shards)


# ---------------------------------------------------------------- a stage that begins


def make_reference(
    context: TrainingContext, streams: Mapping[str, RowStream], start: StageModel, weights: str
) -> Reference:
    """Return the numbers of the model that a stage starts from, computed unless the store has them.

    Numbers that are damaged, missing or not of this model are computed again: no step has learned
    with them. `streams` has the rows of each split, `weights` is the hash of the model's. HEAD
    names the numbers from then on. Every rank calls this. Raises as `compute_columns` does.
    """
    about = {
        "weights": weights,
        "rows": {split: stream.contents for split, stream in streams.items()},
        "model": model_inputs(start.model.config),
        "dtype": start.plan.dtype,
        "residual": start.plan.residual,
    }
    key, claim = key_of(about), context.owned
    bound = context.group.from_rank_0(claim is not None and _bind_shared(context, claim, key))
    reference, wrong = _usable(context, streams, start) if bound else (None, "")
    if reference is None:
        if bound:
            context.report(Note(f"{wrong}. No step has learned with it: it is computed again"))
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="pion-reference-") as folder:
            compute_columns(context, streams, start, key, Path(folder))
            if claim is not None:
                computed_by = {"micro_batch": start.plan.micro_batch, "device": start.plan.device}
                write_reference(Path(folder), key, about | computed_by)
                mark("reference")
                _share(context, claim, key, Path(folder), again=bound)
                mark("reference")
        context.group.wait_for_all()  # until HEAD names the numbers
        context.report(Phase(REFERENCE_PASS, time.monotonic() - began))
        reference, wrong = _usable(context, streams, start)
    if claim is not None:  # HEAD names finished numbers now
        context.patiently(partial(delete_unfinished, context.run))
    if reference is None:
        raise BadInput(
            f"{wrong}. Nothing was trained. These numbers were computed just now, so this machine "
            "does not compute the same twice. Set hardware.compile=false, or use another machine, "
            "and run the same command again"
        )
    return reference


def _bind_shared(context: TrainingContext, claim: Claim, key: str) -> bool:
    """Let HEAD name the reference if a run of the store has computed it; return whether HEAD names
    it now. Raises StoreError."""
    folder = context.patiently(partial(read_state, context.run.store, key))[0].folder
    return folder is not None and context.patiently(partial(bind, claim, REFERENCE, key, folder))


def _share(context: TrainingContext, claim: Claim, key: str, folder: Path, *, again: bool) -> None:
    """Share the files in `folder`, or use what another run has shared meanwhile, and let HEAD name
    them.

    `again`: also if the store has such files, which are no good. Raises StoreError.
    """

    def waiting(other: Writer, seconds: float) -> None:
        activity = f"wait for run {other.run} on {other.host}, which shares the same reference"
        context.report(PrepareProgress(activity, seconds, "s", stage="prefer"))

    run, owner = claim.state, Owner(**context.request.owner)
    begin = partial(find_or_prepare, run, key, claim.epoch, owner, waiting, again=again)
    sources = (f"the reference of run {run.name}",)
    while True:
        shared = context.patiently(begin)
        try:
            if isinstance(shared, Writer):
                shared = context.patiently(partial(complete, run, key, shared, folder, sources))
        except Overtaken as overtaken:
            context.report(Note(f"{overtaken}; sharing it again"))
            continue
        if context.patiently(partial(bind, claim, REFERENCE, key, shared)):
            return


# ---------------------------------------------------------------- what HEAD names


def _learned_with(
    context: TrainingContext, streams: Mapping[str, RowStream], folder: Path | None
) -> Reference:
    """Return the numbers that HEAD names, for a stage that has learned with them. Rank 0 has the
    `folder` of its checkpoint.

    Raises PionError if they are missing or damaged, or if the checkpoint was trained with others.
    """
    reference, wrong = _named_by_head(context, streams)
    if reference is None:
        raise PionError(
            f"the numbers of the reference can't be used: {wrong}. The checkpoints are safe, but "
            "prefer can't continue with other numbers. To train it again from its start, use "
            "--redo prefer: then they are computed again"
        )
    path = None if folder is None else folder / REFERENCE_FILE
    same = path is None or (path.is_file() and path.read_bytes() == reference.record)
    other = context.group.from_rank_0(None if same else str(path))
    if other is not None:
        raise PionError(
            f"{other}: this checkpoint was trained with other numbers of a reference than those "
            "that HEAD names. Nothing was changed. To train the stage again from its start, "
            "use --redo prefer"
        )
    return reference


def _usable(
    context: TrainingContext, streams: Mapping[str, RowStream], start: StageModel
) -> tuple[Reference | None, str | None]:
    """Return the numbers that HEAD names, or why they are of no use for this model."""
    reference, wrong = _named_by_head(context, streams)
    if reference is not None:
        wrong = _other_numbers(context, reference, start)
    return (reference, None) if wrong is None else (None, wrong)


def _named_by_head(
    context: TrainingContext, streams: Mapping[str, RowStream]
) -> tuple[Reference | None, str | None]:
    """Return the numbers that HEAD names, or why a rank can't read them."""

    def bring() -> Path:
        head = context.run.read()
        assert head is not None
        return bring_data(context.run, head, REFERENCE)

    return _on_all_ranks(context, lambda: read_reference(context.patiently(bring), streams))


def _other_numbers(context: TrainingContext, reference: Reference, start: StageModel) -> str | None:
    """Return why the numbers of the first rows of a split are not of this model; None if they are.

    The ranks go from split to split together, because those of a sharded model compute together.
    """
    model, plan, wrong = start.model, start.plan, None
    with start.measuring(), smaller_plans(context, start):
        for stream in reference.streams.values():
            # A rank that can't read its rows must say so before the others compute: they would
            # wait for its part of the weights.
            rows = range(min(plan.micro_batch, stream.total_rows))
            batch, wrong = _on_all_ranks(context, partial(stream.batch, rows))
            if batch is not None:
                check = partial(check_reference, model, batch, plan, "prefer")
                _, wrong = _on_all_ranks(context, partial(check, computed_in=reference.dtype))
            if wrong is not None:
                break
    return wrong


def _on_all_ranks(
    context: TrainingContext, work: Callable[[], Result]
) -> tuple[Result | None, str | None]:
    """Return what `work` returns, or why it fails on one of the ranks.

    If it fails on one rank only, the others may not wait for this rank in it.
    """
    result, wrong = None, None
    try:
        result = work()
    except (StoreError, PlanFailed):
        raise
    except PionError as error:
        wrong = str(error)
    refused = [reason for reason in context.group.of_all_ranks(wrong) if reason is not None]
    return (None, refused[0]) if refused else (result, None)


def _other_dtype(reference: Reference, plan: ComputePlan) -> str | None:
    """Return what to say if this machine computes the model otherwise than the reference was."""
    settings = (
        ("hardware.dtype", reference.dtype, plan.dtype),
        ("hardware.residual", reference.residual, plan.residual),
    )
    other = [(name, before, now) for name, before, now in settings if before != now]
    if not other:
        return None
    words = ", ".join(f"{name} was {before} and is {now}" for name, before, now in other)
    back = " ".join(f"{name}={before}" for name, before, _ in other)
    return (
        f"warning: prefer resumes with a reference that was computed otherwise: {words}. The model "
        "and its reference now differ by rounding, too, so the loss jumps a little. The numbers of "
        f"the reference stay as they are. To train as before, stop and continue with {back}"
    )
