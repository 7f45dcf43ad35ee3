"""The arguments of `pion ladder` and `pion try`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.conftest import Pion
from tests.pipeline.ladder.fake_runs import write_job


def test_the_values_to_vary_are_no_override(here: Path, pion: Pion) -> None:
    job = write_job(here)
    code, _, err = pion("try", job, "--vary", "pretrain.lr=1e-3", "pretrain.steps=30")
    assert code == 2
    assert "--vary pretrain.lr=1e-3: one value leaves nothing to compare" in err


def test_overrides_hold_for_all_runs_before_and_after_options(here: Path, pion: Pion) -> None:
    job = write_job(here)
    code, _, err = pion(
        "try", job, "pretrain.steps=1", "--vary", "pretrain.lr=1e-3,2e-3", "pretrain.warmup_steps=0"
    )
    assert code == 2
    assert "pretrain.steps 1: too few to compare 2 settings" in err


def test_nothing_to_vary_is_said(here: Path, pion: Pion) -> None:
    code, _, err = pion("try", write_job(here))
    assert code == 2
    assert "name what to vary: --vary pretrain.lr=1e-3,2e-3" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--hold-out", "many"], "--hold-out many: give a number of runs"),
        (["--widths", "1,x"], "--widths: 'x' is not a number"),
        (["--hours", "-1"], "--hours -1"),
        (["--dollars", "5"], "the price of this machine is not known"),
        (["pretrain=null"], "mistake"),
        (["--tokens", "0.5,1"], "lacks 1 more length"),
    ],
)
def test_a_wrong_ladder_is_one_message(
    here: Path, pion: Pion, options: list[str], says: str
) -> None:
    code, out, err = pion("ladder", write_job(here), *options)
    assert code == 2
    assert says in err
    assert not out
    assert not (here / "runs").exists()
