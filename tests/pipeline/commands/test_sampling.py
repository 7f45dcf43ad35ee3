"""`pion generate`: prompts from arguments and standard input."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.pipeline.conftest import Pion
from tests.support.finished_run import make_run


def test_generate_continues_a_prompt_and_repeats_itself_with_a_seed(here: Path, pion: Pion) -> None:
    make_run(here / "runs")
    command = ["generate", "demo", "--prompt", "Return a", "--max-tokens", "8", "--seed", "1"]
    code, first, _ = pion(*command)
    assert code == 0
    assert first.startswith("Return a")
    assert first.endswith("\n")
    assert pion(*command)[1] == first


def test_generate_reads_standard_input_and_refuses_an_empty_prompt(
    here: Path, pion: Pion, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(here / "runs")
    monkeypatch.setattr("sys.stdin", io.StringIO("  \n"))
    code, _, err = pion("generate", "demo")
    assert code == 2
    assert "the prompt is empty" in err


def test_a_prompt_longer_than_the_context_is_refused(here: Path, pion: Pion) -> None:
    make_run(here / "runs")
    code, _, err = pion("generate", "demo", "--prompt", "header " * 100)
    assert code == 2
    assert "the model's context is 64" in err
