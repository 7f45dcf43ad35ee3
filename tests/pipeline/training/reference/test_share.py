"""What names the numbers of a reference: all that decides them, and nothing of what is learned."""

import pytest
import torch

from pion.model.decoder import Decoder
from pion.train.settings import ComputePlan
from pipeline.training.reference.compute import StartingModel
from pipeline.training.reference.share import key_of
from tests.support.tiny_config import tiny_config

ROWS = {"train": ["a" * 64], "held_out": ["b" * 64]}


def start_of(weights="w", layers=2, **plan):
    with torch.device("meta"):
        model = Decoder(tiny_config(n_layers=layers))
    return StartingModel(model, weights, ComputePlan(**plan))


def key(start, rows=ROWS):
    return key_of(start.weights, start.settings, rows)


@pytest.mark.parametrize(
    "other",
    [
        key(start_of("other")),
        key(start_of(layers=3)),
        key(start_of(dtype="bfloat16")),
        key(start_of(), ROWS | {"train": ["c" * 64]}),
        key(start_of(), ROWS | {"held_out": ["c" * 64]}),
    ],
    ids=["weights", "model", "dtype", "rows", "held-out rows"],
)
def test_what_decides_the_numbers_is_in_their_name(other):
    assert len(other) == 64
    assert other != key(start_of())


def test_the_dtype_between_blocks_is_in_their_name():
    half, less = (start_of(dtype="bfloat16", residual=r) for r in ("float32", "bfloat16"))
    assert key(half) != key(less)


def test_how_a_machine_divides_the_work_is_not():
    assert key(start_of(micro_batch=7, recompute=True)) == key(start_of())
