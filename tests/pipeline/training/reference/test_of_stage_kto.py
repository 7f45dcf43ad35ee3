"""A stage gets the numbers of its rows, and for kto of its rows with the answers of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pion.data.stream import RowStream
from pion.errors import BadInput
from pipeline.training.reference import compute
from pipeline.training.reference.chunks import Chunks
from pipeline.training.reference.of_stage import Start, with_reference
from pipeline.training.reference.share import MISMATCHED, Bound
from tests.support.reference_world import (
    World,
    config_of_the_world,
    make_world,
    model_of_the_world,
)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(compute, "CHUNK_SECONDS", 0.0)
    return make_world(tmp_path)


def streams(world: World, *, kto: bool) -> Mapping[str, RowStream]:
    found = world.streams()
    longest = config_of_the_world().seq_len
    others = {MISMATCHED[split]: each.of_mismatched(longest) for split, each in found.items()}
    return {**found, **(others if kto else {})}


def made(world: World, name: str = "tiny", *, kto: bool = True) -> tuple[Any, Bound]:
    with world.context(name) as context:
        start = Start(model_of_the_world(), None, world.start().plan)
        given = streams(world, kto=kto)
        found, bound, _ = with_reference(context, given, start, None, resumes=False)
        return found, bound


def sums(bound: Bound) -> dict[str, list[float]]:
    return {split: found.sums.tolist() for split, found in bound.splits.items()}


def test_rows_with_the_answers_of_others_have_their_own_numbers(world: World) -> None:
    found, bound = made(world)
    assert found.keys() == {"train", "held_out"}
    model = model_of_the_world()
    for split, stream in found.items():
        others = bound.splits[MISMATCHED[split]]
        own = stream.mismatched.batch(range(stream.total_rows))
        assert own.sequences is not None
        for row in range(stream.total_rows):
            number = stream.number_of(stream._locate(row))
            stored = own.sequences.reference[row][own.sequences.side[row] != 0].tolist()
            assert stored == others.of(number)
            for document, expected in enumerate(stored):
                inside = own.documents[row] == document  # type: ignore[index]
                ids, targets = own.tokens[row][inside], own.targets[row][inside]
                learned = (targets >= 0).nonzero().flatten()
                scores = model(ids[None])[0].double().log_softmax(dim=-1)
                ours = float(scores[learned, targets[learned]].detach().sum())
                assert ours == pytest.approx(expected, abs=1e-3)


def test_only_kto_needs_them(world: World) -> None:
    found, bound = made(world, kto=False)
    assert bound.splits.keys() == {"train", "held_out"}
    assert found["train"].mismatched is None
    _, other = made(world, "second")
    assert other.record != bound.record
    assert sums(other).items() >= sums(bound).items()


def test_a_stage_that_resumes_and_another_run_compute_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = made(world)
    monkeypatch.setattr(compute, "sums_of", lambda *given: pytest.fail("computed again"))
    with world.context() as context:
        start = Start(model_of_the_world(), None, world.start().plan)
        found, again, _ = with_reference(
            context, streams(world, kto=True), start, None, resumes=True
        )
    assert again.record == first.record
    assert found["train"].mismatched is not None
    assert made(world, "second")[1].record == first.record


class Died(BaseException):
    """The process was killed here."""


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.soak)])
def test_a_kill_at_any_chunk_changes_no_bit(world: World, every: int) -> None:
    _, unbroken = made(world, "unbroken")
    chunks = 2 * (5 + 2)
    for write in range(1, chunks + 1, every):
        other = World(world.folder / f"store-{write}")
        other.folder.mkdir()
        (other.folder / "rows").symlink_to(world.folder / "rows")
        real, seen = Chunks.write, [0]

        def dying(
            self: Chunks, split: str, rows: Any, seen: Any = seen, real: Any = real, at: int = write
        ) -> None:
            seen[0] += 1
            if seen[0] == at:
                raise Died
            real(self, split, rows)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Chunks, "write", dying)
            with pytest.raises(Died):
                made(other)
        assert sums(made(other)[1]) == sums(unbroken)


def test_preferences_with_few_answers_of_others_are_refused_before_training(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pion.data.preference.mismatched.MOST_WITHOUT", -1.0)
    with pytest.raises(BadInput, match="kto measures how far the model is from its reference"):
        made(world)
