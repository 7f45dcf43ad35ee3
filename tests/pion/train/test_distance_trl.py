"""Twenty steps of kto are TRL's, to 1e-5: the losses, and z0 of each step.

TRL's numbers are kept in tests/fixtures/trl_kto.json, so that every change meets them. To make them
again, with TRL: `python -m tests.pion.train.test_distance_trl`.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pion.train.distance import z0_of
from pion.train.objective import OfPreferences
from pion.train.preference import Preference
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.paths import TESTS
from tests.pion.train.test_objective_trl import (
    BATCH,
    LR,
    STEPS,
    decoder,
    rows_of_pairs,
    train_by_trl,
    worst_difference,
)
from tests.support.pair_rows import Pair, PairRows, PlainModel, with_others

# By default, test_distance.py has kto.
pytestmark = pytest.mark.soak

FROZEN = TESTS / "fixtures" / "trl_kto.json"
Numbers = dict[str, list[float]]

# By name: our settings. Those of TRL have the same names.
VARIANTS: dict[str, dict[str, Any]] = {
    "kto": {"beta": 0.1},
    "kto 0.5": {"beta": 0.5},
    "kto weighted": {"beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.5},
}


@cache
def rows() -> list[list[Pair]]:
    return rows_of_pairs()


@cache
def rows_of_others() -> list[list[Pair]]:
    """Return each prompt of a step with the answers of the next one, and the reference's sums."""
    reference, made = PlainModel(decoder(7), LR), []
    with torch.no_grad():
        for step in range(STEPS):
            own = rows()[step * BATCH : (step + 1) * BATCH]
            placed = with_others(own, [(0.0, 0.0)] * sum(map(len, own)))
            for row in placed:
                sums = reference.sums(row)
                both = zip(row, sums.a.tolist(), sums.b.tolist(), strict=True)
                made.append([pair._replace(reference=(w, other)) for pair, w, other in both])
    return made


def examples(row: list[Pair], others: list[Pair]) -> list[dict[str, Any]]:
    """Return the answers of a row, as TRL wants them."""
    return [
        {"prompt_ids": pair.prompt, "completion_ids": ids, "KL_completion_ids": kl, "label": label}
        for pair, other in zip(row, others, strict=True)
        for ids, kl, label in (
            (pair.chosen, other.chosen, True),
            (pair.rejected, other.rejected, False),
        )
    ]


def trls_numbers(folder: Path) -> dict[str, Numbers]:
    both = list(zip(rows(), rows_of_others(), strict=True))
    steps = [both[step * BATCH : (step + 1) * BATCH] for step in range(STEPS)]
    made = [[one for row, others in step for one in examples(row, others)] for step in steps]
    train_by_trl(folder, [["kto", {"learning_rate": LR, **f}, made] for f in VARIANTS.values()])
    losses, z0 = (json.loads((folder / f"{name}.json").read_text()) for name in ("losses", "z0"))
    return {
        name: {"loss": loss, "z0": each}
        for name, loss, each in zip(VARIANTS, losses, z0, strict=True)
    }


def our_numbers(fields: dict[str, Any], others: list[list[Pair]] | None = None) -> Numbers:
    settings = TrainSettings(
        steps=STEPS,
        global_batch=BATCH,
        lr=LR,
        schedule="constant",
        weight_decay=0.0,
        preference=Preference("kto", **fields),
    )
    stream = PairRows(rows(), single=True, others=others or rows_of_others()).as_stream()
    trainer = Trainer(decoder(0), stream, settings, ComputePlan(micro_batch=3, threads=1))
    for _ in range(STEPS):
        assert trainer.train_step()
    steps = trainer.drain_metrics()
    trainer.close()
    return {name: [step[name] for step in steps] for name in ("loss", "z0")}


def worst(ours: Numbers, theirs: Numbers) -> float:
    return max(worst_difference(ours[name], theirs[name]) for name in ("loss", "z0"))


def frozen() -> dict[str, Numbers]:
    found: dict[str, Numbers] = json.loads(FROZEN.read_text())
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_twenty_steps_are_those_that_trl_has_computed(name: str) -> None:
    found = worst(our_numbers(VARIANTS[name]), frozen()[name])
    print(f"{name}: {found:.1e}")
    assert found < 1e-5


def test_the_numbers_have_steps_with_and_without_a_distance() -> None:
    for name, theirs in frozen().items():
        assert 0.0 in theirs["z0"], name
        assert max(theirs["z0"]) > 0.1, name


@pytest.mark.soak
@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None,
    reason="trl is not installed: uv sync --group trl brings it",
)
def test_trl_still_computes_the_same(tmp_path: Path) -> None:
    for name, theirs in trls_numbers(tmp_path).items():
        assert worst(theirs, frozen()[name]) < 1e-6, name


# ---------------------------------------------------------------- planted mistakes


def differs(name: str = "kto", others: list[list[Pair]] | None = None) -> float:
    return worst(our_numbers(VARIANTS[name], others), frozen()[name])


def test_an_answer_that_is_matched_with_its_own_prompt_is_noticed() -> None:
    assert differs(others=rows()) > 1e-3


def test_a_distance_below_0_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pion.train.trainer.z0_of", lambda total: total[0] / total[1])
    assert differs() > 1e-3


def test_a_distance_of_each_micro_batch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right, own = OfPreferences.measured, iter(range(10**9))

    def measured(self: OfPreferences, model: Any, batch: Any, options: Any) -> Any:
        step, part = divmod(next(own), 2)
        first = step * BATCH + 3 * part
        others = PairRows(rows_of_others(), single=True).batch(
            range(first, first + len(batch.tokens))
        )
        from pion.train.distance import distance

        z0 = z0_of(distance(model, others, ComputePlan()))
        return right(OfPreferences(self.preference, self.counts, z0), model, batch, options)

    monkeypatch.setattr(OfPreferences, "measured", measured)
    ours, theirs = our_numbers(VARIANTS["kto"]), frozen()["kto"]
    assert worst_difference(ours["loss"], theirs["loss"]) > 1e-4


def test_swapped_weights_are_noticed() -> None:
    swapped = {"beta": 0.1, "desirable_weight": 0.5, "undesirable_weight": 1.5}
    assert worst(our_numbers(swapped), frozen()["kto weighted"]) > 1e-3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        FROZEN.write_text(json.dumps(trls_numbers(Path(folder)), indent=1) + "\n")


if __name__ == "__main__":
    main()
