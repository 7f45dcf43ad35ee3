"""Ranks that have a model in parts, without training it: the state that each of them saves."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pion.formats.parts import MODEL, OPTIMIZER, Elements, part_metadata, part_name
from pion.train.optimizer.state_pieces import Piece
from pion.train.trainer import TrainState
from pipeline.state.checkpoints.layout import MANIFEST, Provenance
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState

Tensors = dict[str, Tensor]


def whole_model(step: int) -> Tensors:
    """Return weights of several shapes and types, other ones after each step."""
    draw = torch.Generator().manual_seed(step)
    return {
        "embed": torch.randn(64, 32, generator=draw),
        "experts": torch.randn(3, 8, 16, generator=draw),
        "gain": torch.randn(7, generator=draw, dtype=torch.bfloat16),
        "few rows": torch.randn(1, 5, generator=draw),
        "scalar": torch.randn((), generator=draw),
        "ids": torch.arange(6) + step,
        "empty": torch.empty(0, 4),
    }


def whole_moments(step: int) -> Tensors:
    """Return the moments of these weights."""
    weights = whole_model(step)
    return {f"exp_avg.{name}": each * 2 for name, each in weights.items() if name != "ids"}


def state_of(rank: int, count: int, step: int) -> TrainState:
    """Return the state of a rank after a step, as `Trainer.state` does of a sharded model."""
    model, moments = whole_model(step), whole_moments(step)
    return TrainState(
        {name: tensor.to("meta") for name, tensor in model.items()},
        {name: tensor.to("meta") for name, tensor in moments.items()},
        {"step": step},
        pieces=pieces_of(moments, rank, count),
        model_pieces=pieces_of(model, rank, count),
    )


def write_parts(folder: Path, kind: str, tensors: Tensors, count: int) -> None:
    """Write tensors as so many ranks do."""
    for rank in range(count):
        elements: dict[str, Elements] = {}
        own: dict[str, list[Tensor]] = {}
        for piece in pieces_of(tensors, rank, count):
            shape, size = tuple(tensors[piece.name].shape), piece.values.numel()
            if size == 0 and (rank > 0 or tensors[piece.name].numel() > 0):
                continue
            before = elements.get(piece.name, Elements(shape, ())).ranges
            new = ((piece.start, piece.start + size),) if size else ()
            elements[piece.name] = Elements(shape, (*before, *new))
            own.setdefault(piece.name, []).append(piece.values)
        save_file(
            {name: torch.cat(values) for name, values in own.items()},
            folder / part_name(kind, rank, count),
            part_metadata(rank, count, elements),
        )


def pieces_of(tensors: Tensors, rank: int, count: int) -> Sequence[Piece]:
    """Return a rank's rows of each tensor; of stacks, its rows of each matrix."""
    pieces = []
    for name, tensor in tensors.items():
        stack = tensor.unsqueeze(0) if tensor.dim() < 3 else tensor
        rows = stack.shape[1] if stack.dim() > 1 else 1
        below = stack.numel() // max(len(stack) * rows, 1)
        first, stop = rows * rank // count, rows * (rank + 1) // count
        for matrix in range(len(stack)):
            start = (matrix * rows + first) * below
            values = tensor.reshape(-1)[start : start + (stop - first) * below]
            pieces.append(Piece(name, start, values))
    return pieces


def split_newest(run: RunState, count: int) -> Path:
    """Write the newest checkpoint of a run in a folder as so many ranks would have; return it."""
    claim = claim_run(run, Owner.me())
    entry = claim.head.checkpoints[0]
    folder = run.store.local_path(run.key(entry.key))
    assert folder is not None
    for kind, name in ((MODEL, "model.safetensors"), (OPTIMIZER, "optimizer.safetensors")):
        write_parts(folder, kind, load_file(folder / name), count)
        (folder / name).unlink()
    (folder / MANIFEST).unlink()
    files = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
    }
    names = (field.name for field in dataclasses.fields(Provenance))
    save = Provenance(**{name: getattr(entry, name) for name in names})
    (folder / MANIFEST).write_bytes(save.manifest(files))
    claim.commit(lambda head: head.with_checkpoint(save.entry(files)))
    claim.release()
    return folder
